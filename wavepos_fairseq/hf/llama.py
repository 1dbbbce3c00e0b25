"""Llama with any position representation: transformers' own model, in which only attention's positions are others.

    config = WaveletLlamaConfig(position_encoding="wavelet", position_options={"wavelet_scales": "2^2..2^9"}, ...)
    model = WaveletLlamaForCausalLM(config)

Parameters have Llama's names; those that a representation learns are ``model.layers.0.self_attn.position...``. The Auto
classes know the model once this module has been imported.
"""

import copy
from pathlib import Path
from typing import Any, Dict, Optional, Tuple

import torch
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, Cache, LlamaConfig, LlamaForCausalLM, LlamaModel
from transformers.models.llama.modeling_llama import LlamaPreTrainedModel

from ..positions import Position, build_position
from .attention import IMPLEMENTATION, before_attention

_REMOTE_CODE = "from wavepos_fairseq.hf import WaveletLlamaConfig, WaveletLlamaForCausalLM, WaveletLlamaModel\n"
_REMOTE_NAME = "wavepos_llama"
_OF_POSITION = ".self_attn.position."


@strict
class WaveletLlamaConfig(LlamaConfig):
    """A `LlamaConfig` with the position representation. ValueError where it does not fit a head.

    position_encoding: a name of `positions`, or several joined by + (``wavelet+alibi``). position_options: the options
    that it reads. rope_parameters belong to a stock Llama and are refused.
    """

    model_type = "wavelet_llama"

    position_encoding: str = "wavelet"
    position_options: Optional[Dict[str, Any]] = None

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        if self.rope_parameters not in (None, LlamaConfig().rope_parameters):
            raise ValueError(
                f"rope_parameters={self.rope_parameters!r} are a stock Llama's; accepted are position_encoding='rope' "
                "and position_options={'rope_theta': 500000.0}"
            )
        with torch.device("meta"):
            self.build_position().gates(torch.empty(1, 1, self.hidden_size))
        self.auto_map = {name: f"{_REMOTE_NAME}.{class_.__name__}" for name, class_ in _auto_classes().items()}

    def build_position(self) -> Position:
        """A new representation for one layer's attention."""
        shape: Dict[str, Any] = {"head_dim": self.head_dim, "num_heads": self.num_attention_heads}
        position = build_position(self.position_encoding, **shape, **(self.position_options or {}))
        if position.adds_to_embedding:
            raise ValueError(
                f"position_encoding={self.position_encoding!r}: sinusoidal is added to the embeddings, where a Llama "
                "adds nothing; accepted is what acts in the attention, trans-xl for sine waves"
            )
        return position

    @classmethod
    def from_dict(cls, config_dict: Dict[str, Any], **kwargs: Any):
        """As the base class, which gives no more than a warning where the model is another. ValueError here."""
        given = config_dict.get("model_type", cls.model_type)
        if given != cls.model_type:
            raise ValueError(
                f"model_type={given!r}: accepted is {cls.model_type!r}; WaveletLlamaForCausalLM.from_llama takes over "
                "a stock Llama"
            )
        return super().from_dict(config_dict, **kwargs)

    def save_pretrained(self, save_directory: Any, push_to_hub: bool = False, **kwargs: Any) -> None:
        """As the base class, and beside it the file that `trust_remote_code` imports, which imports this package."""
        Path(save_directory).mkdir(parents=True, exist_ok=True)
        Path(save_directory, f"{_REMOTE_NAME}.py").write_text(_REMOTE_CODE, encoding="utf-8")
        super().save_pretrained(save_directory, push_to_hub, **kwargs)

    @classmethod
    def register_for_auto_class(cls, auto_class: Any = "AutoConfig") -> None:
        """Nothing: the base class would have this file copied beside each model."""


class _NoRotation(nn.Module):
    """In place of Llama's rotary embedding: cos 1 and sin 0, as bools, so that queries and keys keep their dtype."""

    def forward(self, x: Tensor, position_ids: Tensor) -> Tuple[Tensor, Tensor]:
        one = x.new_ones(1, 1, 1, dtype=torch.bool)
        return one, ~one


class _Positional(LlamaPreTrainedModel):
    """What both models have in common."""

    config: WaveletLlamaConfig
    _can_compile_fullgraph = False

    def _check_and_adjust_attn_implementation(
        self, attn_implementation: Optional[str], *args: Any, **kwargs: Any
    ) -> str:
        if attn_implementation not in (None, IMPLEMENTATION):
            raise ValueError(
                f"attn_implementation={attn_implementation!r} knows no position representation; accepted is "
                f"{IMPLEMENTATION!r}, the default"
            )
        return IMPLEMENTATION

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, Position):
            module.reset_parameters()

    @classmethod
    def register_for_auto_class(cls, auto_class: Any = "AutoModel") -> None:
        """Nothing: the base class would have this file copied beside each model."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *model_args: Any, **kwargs: Any) -> Any:
        """As the base class, but safetensors unless told otherwise; ValueError where parameters of a position miss."""
        kwargs.setdefault("use_safetensors", True)
        wants_info = kwargs.pop("output_loading_info", False)
        loaded: Any = super().from_pretrained(
            pretrained_model_name_or_path, *model_args, output_loading_info=True, **kwargs
        )
        model, info = loaded
        missing = [name for name in info["missing_keys"] if _OF_POSITION in name]
        if missing:
            raise ValueError(
                f"{pretrained_model_name_or_path} has no {min(missing)}, which "
                f"position_encoding={model.config.position_encoding!r} learns; {len(missing)} such parameters miss"
            )
        return loaded if wants_info else model


class WaveletLlamaModel(_Positional, LlamaModel):
    """`LlamaModel` with a position representation in each layer's attention."""

    def __init__(self, config: WaveletLlamaConfig):
        super().__init__(config)
        self.add_module("rotary_emb", _NoRotation())
        for layer in self.layers:
            attention: Any = layer.self_attn
            attention.position = config.build_position()
            if attention.position.overrides("rotate_key", "gates"):
                attention.register_forward_pre_hook(before_attention, with_kwargs=True)

    def forward(self, input_ids=None, attention_mask=None, position_ids=None, *args, **kwargs):
        """As the base class. Where position_ids restart, the sequences are packed, and there is no cache.

        With one, or with an attention_mask, transformers overlooks the packing. A mask without padding says nothing.
        ValueError if a cache is given.
        """
        if position_ids is not None and (position_ids.diff(dim=-1) != 1).any():
            steps = position_ids.diff(dim=-1)
            if attention_mask is not None and attention_mask.dim() == 2:
                if attention_mask.all():
                    attention_mask = None
                elif attention_mask.size(1) >= position_ids.size(1):
                    real = attention_mask[:, attention_mask.size(1) - position_ids.size(1) :].bool()
                    steps = steps.masked_fill(~(real[:, 1:] & real[:, :-1]), 1)  # padding has any position
                    if (steps < 1).any():
                        raise ValueError(
                            "position_ids restart between tokens that attention_mask shows, but packed sequences have "
                            "no padding; accepted is an attention_mask of ones or none"
                        )
            if (steps > 1).any():
                raise ValueError(
                    "position_ids leave out positions, but distances are counted in the row; accepted are ids that "
                    "count by one, and that begin again where another packed sequence begins"
                )
            if attention_mask is None:
                if any(isinstance(given, Cache) for given in (*args, *kwargs.values())):
                    raise ValueError(
                        "position_ids restart, but packed sequences have no cache; accepted is use_cache=False"
                    )
                kwargs["use_cache"] = False
        return super().forward(input_ids, attention_mask, position_ids, *args, **kwargs)


class WaveletLlamaForCausalLM(_Positional, LlamaForCausalLM):
    """`LlamaForCausalLM` with a position representation in each layer's attention."""

    def __init__(self, config: WaveletLlamaConfig):
        LlamaPreTrainedModel.__init__(self, config)  # the base class would build a LlamaModel
        self.model = WaveletLlamaModel(config)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    @classmethod
    def from_llama(
        cls,
        llama: LlamaForCausalLM,
        position_encoding: Optional[str] = None,
        position_options: Optional[Dict[str, Any]] = None,
    ) -> "WaveletLlamaForCausalLM":
        """A copy of a stock Llama, with its own RoPE, so that logits are equal, or with another representation.

        What a representation learns has its initial values. ValueError for another model and for a scaled RoPE.
        """
        if type(llama) is not LlamaForCausalLM:
            raise ValueError(f"from_llama takes a LlamaForCausalLM, not a {type(llama).__name__}")
        known = llama.config.to_dict()
        rope = known.pop("rope_parameters")
        if position_encoding is None:
            if rope["rope_type"] != "default":
                raise ValueError(
                    f"rope_type={rope['rope_type']!r}: rope has no such scaling; accepted are 'default', or another "
                    "position_encoding"
                )
            position_encoding = "rope"
            position_options = {"rope_theta": rope["rope_theta"], "rope_pairs": "halves"}
        for name in ("model_type", "architectures"):
            known.pop(name, None)
        config = WaveletLlamaConfig(**known, position_encoding=position_encoding, position_options=position_options)
        model: Any = cls(config)
        model.to(device=llama.device, dtype=llama.dtype)
        learned = {name: value for name, value in model.state_dict().items() if _OF_POSITION in name}
        model.load_state_dict({**llama.state_dict(), **learned})
        model.generation_config = copy.deepcopy(llama.generation_config)
        return model.train(llama.training)


def _auto_classes() -> Dict[str, type]:
    return {
        "AutoConfig": WaveletLlamaConfig,
        "AutoModel": WaveletLlamaModel,
        "AutoModelForCausalLM": WaveletLlamaForCausalLM,
    }


AutoConfig.register(WaveletLlamaConfig.model_type, WaveletLlamaConfig, exist_ok=True)
AutoModel.register(WaveletLlamaConfig, WaveletLlamaModel, exist_ok=True)
AutoModelForCausalLM.register(WaveletLlamaConfig, WaveletLlamaForCausalLM, exist_ok=True)
