"""fairseq's transformer_lm with the position representation as an option.

Everything but the attention's score is fairseq's own: embeddings, layers, adaptive softmax, initialisation, parameter
names. A representation with nothing learned has exactly the parameters of ``transformer_lm
--no-token-positional-embeddings``, and checkpoints load either way.
"""

import ast
import contextlib
import dataclasses
import functools
import re
import sys
from types import SimpleNamespace
from typing import Any, Iterator, Optional, Tuple

import numpy
import torch
from fairseq import utils
from fairseq.data import Dictionary
from fairseq.distributed import fsdp_wrap
from fairseq.models import ARCH_CONFIG_REGISTRY, register_model, register_model_architecture, transformer_lm
from fairseq.models.transformer import TransformerDecoder
from fairseq.models.transformer_lm import TransformerLanguageModel, TransformerLanguageModelConfig
from fairseq.modules import AdaptiveInput, CharacterTokenEmbedder, MultiheadAttention
from fairseq.modules.checkpoint_activations import checkpoint_wrapper
from fairseq.modules.transformer_layer import TransformerDecoderLayerBase
from fairseq.tasks import FairseqTask
from torch import Tensor, nn

from ..attention import IMPLEMENTATIONS, causal_attention
from ..positions import Position, build_position, position_names, position_options
from ..positions.interpolation import INTERPOLATIONS, interpolated, stretchable
from ..positions.temperature import TemperedPosition

if not hasattr(numpy, "compat"):  # NumPy 2 removed it, but fairseq cuts prompts into batches with numpy.compat.long
    numpy.compat = SimpleNamespace(long=int)  # type: ignore[attr-defined]


def _field(default, text):
    return dataclasses.field(default=default, metadata={"help": text})


def _option_field(option):
    default = "" if option.default is None else f" (default: {option.default})"
    return _field(None, f"{option.help}{default}; read by --position-encoding {', '.join(option.readers)}")


# fairseq reads its command line off a dataclass; this one grows with the registry of representations.
WaveletLanguageModelConfig = dataclasses.make_dataclass(
    "WaveletLanguageModelConfig",
    [
        (
            "position_encoding",
            str,
            _field("wavelet", f"position representation: {', '.join(position_names())}; or several, as wavelet+alibi"),
        ),
        *((name, Optional[option.type], _option_field(option)) for name, option in position_options().items()),
        (
            "attention_implementation",
            str,
            _field("auto", f"how attention is computed: {', '.join(IMPLEMENTATIONS)}"),
        ),
        (
            "attention_recompute",
            bool,
            _field(False, "compute the attention weights again in the backward pass instead of keeping them"),
        ),
        (
            "attention_temperature",
            str,
            _field(
                "none",
                "what scores of S > --tokens-per-sample keys are multiplied by: none, or yarn for "
                "(0.1 ln(S / --tokens-per-sample) + 1)^2; made for --model-overrides of an evaluation",
            ),
        ),
        (
            "position_interpolation",
            str,
            _field(
                "none",
                f"how the wavelengths of {', '.join(stretchable())} are stretched beyond --tokens-per-sample: none, "
                f"{', '.join(INTERPOLATIONS)}; yarn sets --attention-temperature yarn, too; made for --model-overrides "
                "of an evaluation, or for fine-tuning",
            ),
        ),
        (
            "position_interpolation_factor",
            Optional[float],
            _field(None, "factor of the stretch (default: S / --tokens-per-sample for S keys, and 1 up to it)"),
        ),
        (
            "position_interpolation_from",
            Optional[int],
            _field(
                None,
                "the length whose wavelengths are stretched, for fine-tuning at a greater one "
                "(default: --tokens-per-sample)",
            ),
        ),
    ],
    bases=(TransformerLanguageModelConfig,),
    namespace={"__doc__": "The options of transformer_lm, and those of the position representations."},
)
WaveletLanguageModelConfig.__module__ = __name__


class PositionalSelfAttention(MultiheadAttention):
    """fairseq's self-attention (projections and incremental state) around `causal_attention`."""

    def __init__(self, embed_dim, num_heads, position, attend, extend=lambda position: position, **kwargs):
        super().__init__(embed_dim, num_heads, self_attention=True, **kwargs)
        self.position = position
        self.attend = attend  # causal_attention with its options
        self.extend = extend  # the position as it is used, beyond the length of the training

    def forward(self, query, key, value, key_padding_mask=None, incremental_state=None, need_weights=False, **unused):
        """query: (L, B, C). Returns (L, B, C), and None instead of the attention weights, which are never formed.

        The attention is causal whether or not a mask is given. Padding must lie on the right, where no real query sees
        it; ValueError otherwise.
        """
        if key_padding_mask is not None and incremental_state is None:
            _refuse_padding_on_the_left(key_padding_mask)
        q, k, v = self.project(query)
        position = self.extend(self.position)
        gates = position.gates(query.transpose(0, 1))  # (L, B, C) -> (B, H, L), or None
        cached = incremental_state is not None
        if cached:
            state = self._get_input_buffer(incremental_state)
            if gates is not None and "prev_gates" in state:
                gates = torch.cat((state["prev_gates"], gates), dim=2)
            k = position.rotate_key(k, state["prev_key"].size(2) if "prev_key" in state else 0)
            if "prev_key" in state:
                k = torch.cat((state["prev_key"], k), dim=2)
                v = torch.cat((state["prev_value"], v), dim=2)
            kept = {"prev_key": k, "prev_value": v, "prev_gates": gates}
            self._set_input_buffer(incremental_state, {name: x for name, x in kept.items() if x is not None})
        dropout = self.dropout_module
        dropout_p = dropout.p if self.training or dropout.apply_during_inference else 0.0
        attended = self.attend(q, k, v, position, dropout_p, rotated_keys=cached, gates=gates)
        return self.out_proj(attended.permute(2, 0, 1, 3).flatten(2)), None  # (B, H, L, d) -> (L, B, C)

    def project(self, x: Tensor) -> Tuple[Tensor, Tensor, Tensor]:
        """The heads' queries, keys and values (B, H, L, d) of x (L, B, C)."""
        return self._heads(self.q_proj(x)), self._heads(self.k_proj(x)), self._heads(self.v_proj(x))

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.num_heads, self.head_dim)).permute(1, 2, 0, 3)  # (L, B, C) -> (B, H, L, d)


def _refuse_padding_on_the_left(padding: Tensor) -> None:
    padding = padding.bool()
    if (padding[:, :-1] & ~padding[:, 1:]).any():
        raise ValueError(
            "transformer_lm_wavelet takes padding on the right only, but a token follows a padding symbol; a literal "
            "<pad> in the text is one to fairseq-preprocess: write another word in its place"
        )


class PositionalDecoderLayer(TransformerDecoderLayerBase):
    """fairseq's decoder layer around `PositionalSelfAttention`."""

    def __init__(self, cfg, args, no_encoder_attn=False):
        self.args = args  # for build_self_attention, which the base class calls
        super().__init__(cfg, no_encoder_attn)

    def build_self_attention(self, embed_dim, cfg, add_bias_kv=False, add_zero_attn=False):
        return PositionalSelfAttention(
            embed_dim,
            cfg.decoder.attention_heads,
            _position_of(self.args),
            functools.partial(
                causal_attention,
                implementation=_option(self.args, "attention_implementation"),
                recompute=_option(self.args, "attention_recompute"),
            ),
            functools.partial(_extended, self.args),
            dropout=cfg.attention_dropout,
            q_noise=self.quant_noise,
            qn_block_size=self.quant_noise_block_size,
        )


class PositionalDecoder(TransformerDecoder):
    """fairseq's decoder of `PositionalDecoderLayer`s."""

    def build_decoder_layer(self, cfg, no_encoder_attn=False):
        # Like the base class, whose layer cannot be replaced.
        layer = PositionalDecoderLayer(cfg, self.args, no_encoder_attn)
        if cfg.checkpoint_activations:
            layer = checkpoint_wrapper(layer, offload_to_cpu=cfg.offload_activations)
        return fsdp_wrap(layer, min_num_params=0 if cfg.checkpoint_activations else cfg.min_params_to_wrap)

    def buffered_future_mask(self, tensor):
        """None instead of the base class's L x L numbers, because `causal_attention` needs no mask."""
        return None


_INTERPOLATION = [f"position_interpolation{end}" for end in ("", "_factor", "_from")]
_FLAGS = {name: f"--{name.replace('_', '-')}" for name in ("position_encoding", *_INTERPOLATION, *position_options())}
_FLAGS["implementation"] = "--attention-implementation"
_PARAMETER = re.compile(rf"\b({'|'.join(_FLAGS)})=")


def in_flags(message: str) -> str:
    """Translates an error of the library (``wavelet_scales='0'``) to fairseq's options (``--wavelet-scales '0'``)."""
    return _PARAMETER.sub(lambda match: f"{_FLAGS[match[1]]} ", message)


@contextlib.contextmanager
def errors_in_flags() -> Iterator[None]:
    """Makes ValueErrors raised inside name fairseq's options (see `in_flags`)."""
    try:
        yield
    except ValueError as error:
        raise ValueError(in_flags(str(error))) from error


def _option(args: Any, name: str) -> Any:
    """An option or its default: a half-parsed command line has only what was given, an old checkpoint fewer options."""
    return getattr(args, name, getattr(WaveletLanguageModelConfig, name))


@errors_in_flags()
def _position_of(args: Any) -> Position:
    """The representation that a model's options ask for; raises ValueError if they do not fit together."""
    option = functools.partial(_option, args)
    implementation = option("attention_implementation")
    if implementation not in IMPLEMENTATIONS:
        raise ValueError(f"implementation={implementation!r} is unknown; accepted are {', '.join(IMPLEMENTATIONS)}")
    temperature = option("attention_temperature")
    if temperature not in ("none", "yarn"):
        raise ValueError(f"--attention-temperature {temperature!r} is unknown; accepted are none, yarn")
    for of in ("factor", "from"):
        if option("position_interpolation") == "none" and option(f"position_interpolation_{of}") is not None:
            raise ValueError(f"--position-interpolation-{of} needs --position-interpolation")
    name = option("position_encoding")
    if option("decoder_learned_pos"):
        raise ValueError("--decoder-learned-pos: learned absolute positions are fairseq's own transformer_lm")
    if getattr(args, "decoder_xformers_att_config", None):
        raise ValueError("--decoder-xformers-att-config: xFormers' attentions know no position representation")
    width, num_heads = option("decoder_embed_dim"), option("decoder_attention_heads")
    if width % num_heads:
        raise ValueError(f"--decoder-embed-dim {width} is not a multiple of --decoder-attention-heads {num_heads}")
    position = build_position(
        name,
        head_dim=width // num_heads,
        num_heads=num_heads,
        **{name: option(name) for name in position_options()},
    )
    if option("no_token_positional_embeddings") and position.adds_to_embedding:
        raise ValueError(f"--no-token-positional-embeddings contradicts --position-encoding {name}")
    _extended(args, position)  # which refuses what does not fit
    return position


def _extended(args: Any, position: Position) -> Position:
    """The position as it is used beyond the length of the training: interpolated, with a temperature, or as it is."""
    option = functools.partial(_option, args)
    method, factor = option("position_interpolation"), option("position_interpolation_factor")
    trained = option("position_interpolation_from")
    trained = args.tokens_per_sample if trained is None else trained
    if method != "none":
        position = interpolated(position, method, trained, factor)
    if "yarn" in (method, option("attention_temperature")):
        position = TemperedPosition(position, trained, factor)
    return position


_TIED = [  # with --tie-adaptive-weights, one value for both
    ("adaptive_input_cutoff", "adaptive_softmax_cutoff"),
    ("adaptive_input_factor", "adaptive_softmax_factor"),
    ("decoder_input_dim", "decoder_output_dim"),
]


def refuse_cutoffs(args: Any, num_types: int) -> None:
    """Raises ValueError if the options of an adaptive input or softmax do not fit each other or this many types.

    args may lack options that are not given, as fairseq's parser leaves them out.
    """
    adaptive_input = getattr(args, "adaptive_input", False)
    for part, is_used in (("input", adaptive_input), ("softmax", getattr(args, "adaptive_softmax_cutoff", None))):
        cutoffs = utils.eval_str_list(getattr(args, f"adaptive_{part}_cutoff"), type=int) if is_used else []
        largest = num_types
        if part == "softmax" and getattr(args, "output_dictionary_size", -1) >= 0:
            largest = min(num_types, args.output_dictionary_size)
        if not all(low < high for low, high in zip([0, *cutoffs], [*cutoffs, largest + 1])):
            raise ValueError(
                f"--adaptive-{part}-cutoff {','.join(map(str, cutoffs))}: accepted are ascending numbers from 1 to "
                f"{largest}, the types of the vocabulary"
            )
    if not getattr(args, "tie_adaptive_weights", False):
        return
    if not adaptive_input:
        raise ValueError("--tie-adaptive-weights needs --adaptive-input")
    for one, other in _TIED:
        if getattr(args, one) != getattr(args, other):
            flags = " and ".join(f"--{name.replace('_', '-')}" for name in (one, other))
            raise ValueError(
                f"--tie-adaptive-weights takes one {flags}, not {getattr(args, one)} and {getattr(args, other)}"
            )


@register_model("transformer_lm_wavelet", dataclass=WaveletLanguageModelConfig)
class WaveletLanguageModel(TransformerLanguageModel):
    """A decoder-only language model with any of the position representations of `wavepos_fairseq.positions`."""

    @classmethod
    def build_model(cls, args: Any, task: FairseqTask) -> "WaveletLanguageModel":
        """A new model; raises ValueError if its options do not fit together.

        As the base class builds its own, which cannot be told of another decoder: the same options, and the same order
        of random draws.
        """
        args.no_token_positional_embeddings = not _position_of(args).adds_to_embedding
        refuse_cutoffs(args, len(task.source_dictionary))
        if args.decoder_layers_to_keep:
            args.decoder_layers = len(args.decoder_layers_to_keep.split(","))
        if utils.safe_getattr(args, "max_target_positions") is None:
            length = utils.safe_getattr(args, "tokens_per_sample", transformer_lm.DEFAULT_MAX_TARGET_POSITIONS)
            args.max_target_positions = length
        embedding = cls._embedding(args, task.source_dictionary)
        return cls(PositionalDecoder(args, task.target_dictionary, embedding, no_encoder_attn=True))

    @classmethod
    def _embedding(cls, args: Any, dictionary: Dictionary) -> nn.Module:
        if args.character_embeddings:
            return CharacterTokenEmbedder(
                dictionary,
                ast.literal_eval(args.character_filters),
                args.character_embedding_dim,
                args.decoder_embed_dim,
                args.char_embedder_highway_layers,
            )
        if args.adaptive_input:
            return AdaptiveInput(
                len(dictionary),
                dictionary.pad(),
                args.decoder_input_dim,
                args.adaptive_input_factor,
                args.decoder_embed_dim,
                utils.eval_str_list(args.adaptive_input_cutoff, type=int),
                args.quant_noise_pq,
                args.quant_noise_pq_block_size,
            )
        return cls.build_embedding(args, dictionary, args.decoder_input_dim)


def _architecture(name, base=None, **defaults):
    """Registers `defaults`, then what `base` adds to them; the options are checked while they are parsed."""

    def configure(args):
        for option, default in defaults.items():
            setattr(args, option, getattr(args, option, default))
        if base is not None:
            base(args)
        try:
            _position_of(args)
        except ValueError as error:
            sys.exit(f"error: {error}")

    if name not in ARCH_CONFIG_REGISTRY:
        register_model_architecture("transformer_lm_wavelet", name)(configure)
    else:  # register_model has put a function that does nothing under the model's own name
        ARCH_CONFIG_REGISTRY[name] = configure


_architecture("transformer_lm_wavelet")
_architecture("transformer_lm_wavelet_wiki103", transformer_lm.transformer_lm_baevski_wiki103)
_SMALL = {
    "decoder_embed_dim": 128,
    "decoder_layers": 2,
    "decoder_attention_heads": 2,
    "decoder_ffn_embed_dim": 512,
    "dropout": 0.0,
    "adaptive_input": True,
    "adaptive_input_cutoff": "2000,10000",
    "adaptive_input_factor": 2,
    "adaptive_softmax_cutoff": "2000,10000",
    "adaptive_softmax_factor": 2,
    "tie_adaptive_weights": True,
    "tie_adaptive_proj": True,
}
_TINY = {**_SMALL, "decoder_embed_dim": 64, "decoder_ffn_embed_dim": 256}
_TINY.update(adaptive_input_cutoff="500,2000", adaptive_softmax_cutoff="500,2000")
_architecture("transformer_lm_wavelet_small", transformer_lm.base_lm_architecture, **_SMALL)
_architecture("transformer_lm_wavelet_tiny", transformer_lm.base_lm_architecture, **_TINY)
