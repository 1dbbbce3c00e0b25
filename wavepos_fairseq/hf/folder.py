"""A model folder of transformers as a scorer for `evaluation`: this package's Llama, or any other that reads on."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, Mapping, Tuple, Union

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

from ..common.errors import first_line, prefixing_errors
from ..common.files import shown_path
from . import llama  # noqa: F401  (registers the model)

LOGITS_AT_A_TIME = 2**26
"""A quarter of a gigabyte in fp32. 32,768 tokens of a vocabulary of 32,000 are sixteen times as many."""


@dataclass(frozen=True)
class FolderScorer:
    """A model of transformers ready to be evaluated: an `evaluation.perplexity.Scorer`."""

    model: Any
    l_train: int
    bos: int
    head_alone: bool
    """Whether the model's logits are its last layer's hidden states times the output embedding, and nothing more."""

    @property
    def device(self) -> torch.device:
        return self.model.device

    @torch.no_grad()
    def score(self, source: Tensor, target: Tensor) -> Tensor:
        """Negative log-likelihoods in nats, fp32 (B, L), of the targets (B, L) after the inputs (B, L).

        Where the head alone gives the logits, they are formed `LOGITS_AT_A_TIME`.
        """
        _forget_lengths(self.model)
        if not self.head_alone:
            logits = self.model(source).logits.float()  # (B, L, types)
            return F.cross_entropy(logits.transpose(1, 2), target, reduction="none")
        hidden = self.model.base_model(source)[0].flatten(0, 1)  # (B L, width)
        head = self.model.get_output_embeddings()
        at_a_time = max(1, LOGITS_AT_A_TIME // len(head.weight))
        parts = zip(hidden.split(at_a_time), target.flatten().split(at_a_time))
        return torch.cat([F.cross_entropy(head(part).float(), of, reduction="none") for part, of in parts]).view_as(
            target
        )


def _forget_lengths(model: Any) -> None:
    """Undoes what RoPE of the type ``dynamic`` keeps of longer inputs, so that a loss depends on its own input only."""
    for module in model.modules():
        if getattr(module, "rope_type", None) == "dynamic":
            module.max_seq_len_cached = module.original_max_seq_len
            module.inv_freq = module.original_inv_freq.to(module.inv_freq.device)


@torch.no_grad()
def scorer_of(model: Any, l_train: int, bos: int) -> FolderScorer:
    """The scorer of a model on its device, in its dtype.

    Some models scale or cap what their head gives, or add to it. A few tokens show it; such a model is asked for all of
    its logits at once.
    """
    model.config.use_cache = False
    tokens, head = _some_tokens(model), model.get_output_embeddings()
    alone = False
    if head is not None and model.base_model is not model:
        alone = torch.equal(head(model.base_model(tokens)[0]).float(), model(tokens).logits.float())
    return FolderScorer(model, l_train, bos, alone)


def load_folder(
    folder: Path, dtype: Union[str, torch.dtype] = torch.float32, overrides: Mapping[str, Any] = {}
) -> Tuple[Any, Any]:
    """Model, on the CPU, and tokenizer of a folder that save_pretrained wrote, neither by code that it brings.

    dtype: of the weights, or ``auto`` for that of the file. overrides: entries of the configuration; a dict replaces
    entries of a dict. Raises ValueError with one line where the folder lacks something, and for an encoder.
    """
    transformers_logging.set_verbosity_error()  # texts are longer than the model was trained for, and meant to be
    transformers_logging.disable_progress_bar()
    with prefixing_errors(f"--model {shown_path(folder)}"):
        if not (folder / "config.json").is_file():
            raise ValueError("expected the folder of a transformers model; it has no config.json")
        if not any(folder.glob("*.safetensors")):
            pickles = [path.name for pattern in ("*.bin", "*.pt", "*.pth") for path in sorted(folder.glob(pattern))]
            raise ValueError(
                f"its weights are a pickle ({pickles[0]}), which may run code; accepted are safetensors, which "
                "save_pretrained writes"
                if pickles
                else "it has no weights; accepted is a folder with model.safetensors, which save_pretrained writes"
            )
        tokenizer = _tokenizer(folder)
        config = _configuration(folder, overrides)
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder,
            config=config,
            dtype=dtype,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
        model, about = loaded
        for keys, what in ((about["missing_keys"], "lack"), (about["unexpected_keys"], "have no place for")):
            if keys:
                raise ValueError(f"its weights {what} {min(keys)}, {len(keys)} parameters in all")
        types = model.get_input_embeddings().num_embeddings
        if len(tokenizer) > types:
            raise ValueError(f"its tokenizer has {len(tokenizer)} types, its model {types}")
        _refuse_encoder(model.eval())
    return model, tokenizer


def _tokenizer(folder: Path) -> Any:
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        files = list(tokenizer.vocab_files_names.values())
        if files and not any((folder / name).is_file() for name in files):  # transformers makes an empty one
            raise ValueError(f"there is no {' or '.join(files)}")
    except Exception as error:  # of many types, by what is in the way
        said = f"it has no tokenizer that can be read ({first_line(error)}); tokenizer.save_pretrained writes it"
        raise ValueError(said) from error
    return tokenizer


def _configuration(folder: Path, overrides: Mapping[str, Any]) -> Any:
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    given: Dict[str, Any] = config.to_dict()
    for name, value in overrides.items():
        if name not in given or name == "model_type":
            raise ValueError(f"--model-overrides: {name} is no option of a {config.model_type}")
        known = given[name]
        given[name] = {**known, **value} if isinstance(value, dict) and isinstance(known, dict) else value
    with prefixing_errors("--model-overrides"):
        return type(config).from_dict(given) if overrides else config


def _some_tokens(model: Any) -> Tensor:
    return torch.arange(4, device=model.device)[None]


@torch.no_grad()
def _refuse_encoder(model: Any) -> None:
    """Raises ValueError if the logits of a token depend on the token after it."""
    tokens = _some_tokens(model)
    others = torch.cat((tokens[:, :-1], tokens[:, :1]), dim=1)  # but for the last one, the same
    logits, same = (model(of).logits[:, :-1].float() for of in (tokens, others))
    if (logits - same).abs().max() > 0.01 * logits.abs().max():  # half precision gives less
        raise ValueError(
            f"a {type(model).__name__} predicts a token from those after it, too; accepted is a language model that "
            "reads from left to right"
        )


@torch.no_grad()
def refuse_length(model: Any, length: int) -> None:
    """Raises ValueError if the model, on the CPU, has no position embedding for so many tokens."""
    try:
        model.base_model(_some_tokens(model)[:, :1], position_ids=torch.tensor([[length - 1]]))
    except IndexError:
        raise ValueError(
            f"--lengths {length}: the model has learned {model.config.max_position_embeddings} positions and takes no "
            "longer input; accepted beyond them is --inference non-overlapping"
        ) from None
    except TypeError:  # it takes no positions, as Bloom does not
        pass
