"""A fairseq checkpoint as a scorer for `evaluation`, read without running code that it carries (see `unpickling`)."""

import argparse
import ast
import contextlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Tuple, Union

import torch
import torch.nn.functional as F
from fairseq import checkpoint_utils, tasks
from fairseq.models import (
    ARCH_MODEL_NAME_REGISTRY,
    ARCH_MODEL_REGISTRY,
    MODEL_DATACLASS_REGISTRY,
    FairseqLanguageModel,
    transformer_lm,
)
from omegaconf import DictConfig, OmegaConf, open_dict
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ..common.errors import first_line, prefixing_errors
from ..evaluation.probes import AttentionInputs
from ..models.transformer_lm_wavelet import PositionalSelfAttention, WaveletLanguageModel, errors_in_flags
from ..positions import position_parts
from . import unpickling
from .streams import first_folder, load_dictionary, load_stream

TASKS = ("language_modeling", "language_modeling_wavepos")  # their models and losses are the same
_EMBEDDED = re.compile(r"decoder\.embed_tokens\.(embeddings\.\d+\.0\.)?weight")
# Options of a model that fairseq runs as Python. Only numbers, text, lists and dicts are accepted here, no code.
RUN_BY_FAIRSEQ = (
    "adaptive_input_cutoff",
    "adaptive_softmax_cutoff",
    "character_filters",
    "decoder_xformers_att_config",
)


@dataclass(frozen=True)
class FairseqScorer:
    """A fairseq language model ready to be evaluated: an `evaluation.probes.AttentionScorer`."""

    model: FairseqLanguageModel
    task: tasks.FairseqTask
    l_train: int
    options: Dict[str, Any]
    """The options of the model, as JSON values."""

    @property
    def bos(self) -> int:
        """``</s>``, which fairseq, too, puts before the first token of a text."""
        return self.task.dictionary.eos()

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    def score(self, source: Tensor, target: Tensor) -> Tensor:
        """`token_nll` of the model."""
        return token_nll(self.model, source, target)

    @torch.no_grad()
    def most_probable(self, source: Tensor, among: Tensor) -> Tensor:
        """The most probable of the tokens `among` (N,) after each of the inputs (B, L): int64 (B, L)."""
        decoder = self.model.decoder
        features, _ = decoder(source, features_only=True)
        softmax = decoder.adaptive_softmax
        scores = decoder.output_layer(features) if softmax is None else softmax.get_log_prob(features, None)
        return among[scores[..., among].argmax(-1)]

    @torch.no_grad()
    def attention_inputs(self, tokens: Tensor) -> List[AttentionInputs]:
        """The attention inputs of each layer, from the first on, when the model reads the tokens (L,).

        Raises ValueError for a model without this package's attention, such as fairseq's own transformer_lm.
        """
        layers = [module for module in self.model.modules() if isinstance(module, PositionalSelfAttention)]
        if not layers:
            raise ValueError(
                "fairseq's own transformer_lm does not show its attention; --position-encoding sinusoidal (or nope, "
                "with --no-token-positional-embeddings) reads its checkpoint as a transformer_lm_wavelet"
            )
        seen: List[AttentionInputs] = []

        def see(layer: PositionalSelfAttention, args: Tuple[Any, ...], given: Dict[str, Any]) -> None:
            query, key, _ = layer.project(given["query"])
            position = layer.extend(layer.position)
            seen.append((query, key, position, position.gates(given["query"].transpose(0, 1))))

        with contextlib.ExitStack() as hooks:
            for layer in layers:
                hooks.enter_context(layer.register_forward_pre_hook(see, with_kwargs=True))
            self.model.decoder(tokens[None].to(self.device), features_only=True)
        return seen


def load_checkpoint(
    path: str,
    data: str,
    position_encoding: Optional[str] = None,
    trust: bool = False,
    overrides: Mapping[str, Any] = {},
    ema: bool = False,
) -> FairseqScorer:
    """The language model in the fairseq checkpoint `path`, for the dictionary of the data-bin folder `data`.

    position_encoding: the representation of a checkpoint of fairseq's own transformer_lm, if its options do not tell.
    trust: run code that the checkpoint carries (see `unpickling`). overrides: options that replace the model's own.
    ema: use the averaged weights, which fairseq-train keeps with --store-ema.

    Raises ValueError if either does not exist or cannot be used, the file is damaged or not a checkpoint of a language
    model, the dictionary is not the model's, or its options do not tell the representation.
    """
    data = first_folder(data)
    dictionary = Path(data, "dict.txt")
    if position_encoding is not None:
        with errors_in_flags():
            position_parts(position_encoding)
    if not dictionary.is_file():
        raise ValueError(f"{data} is no fairseq data-bin folder (scripts/prepare_data.sh makes one): no dict.txt in it")
    if not Path(path).is_file():
        raise ValueError(f"--path {path}: there is no such file")
    known = len(load_dictionary(data))
    try:
        state = _up_to_date(unpickling.load(path, trust))
        config, weights = state["cfg"], state["model"]
        task_name, architecture = getattr(config.task, "task", None) or config.task._name, config.model._name
        if ema:
            weights = state["model"] = state["extra_state"].get("ema", {})
        trained_on = Path(first_folder(str(config.task.get("data"))), "dict.txt")
        l_train = config.task.tokens_per_sample
        types = sum(len(weight) for name, weight in weights.items() if _EMBEDDED.fullmatch(name))
    except unpickling.Refused as error:
        raise ValueError(f"--path {path} {error}") from error
    except Exception as error:  # torch and fairseq raise any kind on another file
        raise ValueError(f"--path {path} is no fairseq checkpoint: {first_line(error)}") from error
    if ema and not weights:
        raise ValueError(f"--ema: --path {path} has no averaged weights, which fairseq-train keeps with --store-ema")
    if task_name not in TASKS:
        raise ValueError(f"--path {path} is a model for the task {task_name}, not a language model")
    if ARCH_MODEL_REGISTRY.get(architecture) not in (transformer_lm.TransformerLanguageModel, WaveletLanguageModel):
        raise ValueError(f"--path {path} is a {architecture}; evaluated are transformer_lm and transformer_lm_wavelet")
    if config.task.get("add_bos_token"):
        raise ValueError(f"--path {path} was trained with --add-bos-token, which is not evaluated here")
    said = config.task.get("output_dictionary_size", -1)
    if said in range(known):  # fairseq also maps rare inputs to <unk> if a sequence does not begin with a line
        raise ValueError(f"--path {path} was trained with --output-dictionary-size {said}, which is not evaluated here")
    if type(l_train) is not int or l_train < 1:
        raise ValueError(f"--path {path}: its tokens_per_sample is {l_train!r}, not a whole number > 0")
    if trained_on.is_file() and trained_on.read_bytes() != dictionary.read_bytes():
        raise ValueError(f"--path {path} was trained with another dictionary ({trained_on}) than {dictionary}")
    if types != known:
        raise ValueError(f"--path {path} does not fit {dictionary} with {known} types: the model has {types}")
    _set_position_encoding(path, state, position_encoding)
    if overrides:
        _override(config.model, overrides)
    config.task.data = data
    with prefixing_errors(f"--path {path}"):
        options = {
            name: value if isinstance(value, (bool, int, float, str)) else str(value)  # as JSON has it
            for name, value in sorted(config.model.items())
            if value is not None
        }
        _refuse_code(options)
        task = tasks.setup_task(config.task)
        with _MadeFor(weights, config.model):
            model = task.build_model(config.model, from_checkpoint=True)
        model.load_state_dict(weights, model_cfg=config.model)
    return FairseqScorer(model.eval(), task, l_train, options)


def open_checkpoint(
    path: Union[str, Path], data: Union[str, Path], position_encoding: Optional[str] = None, trust: bool = False
) -> Tuple[FairseqScorer, Tensor]:
    """`load_checkpoint`, on the GPU if there is one, and the validation set."""
    scorer = load_checkpoint(str(path), str(data), position_encoding, trust)
    scorer.model.to("cuda" if torch.cuda.is_available() else "cpu")
    return scorer, load_stream(str(data), "valid", scorer.task.dictionary)


def _up_to_date(content: Dict[str, Any]) -> Dict[str, Any]:
    """A checkpoint of any version of fairseq with the options of this one, in ``cfg``.

    Like fairseq's load_checkpoint_to_cpu, which would read the file itself and run code that it carries. Parts of the
    options kept as a Namespace (an optimizer's) do not describe the model and are left out.
    """
    config = content.get("cfg")
    if config is not None:
        if not isinstance(config, DictConfig):
            config = {name: part for name, part in config.items() if not isinstance(part, argparse.Namespace)}
        content["cfg"] = OmegaConf.create(config)
        OmegaConf.set_struct(content["cfg"], True)  # before omegaconf 2.1, a missing option is None otherwise
    return checkpoint_utils._upgrade_state_dict(content)


def _refuse_code(options: Mapping[str, Any]) -> None:
    """Raises ValueError if an option that fairseq runs as Python is not a literal."""
    for name in RUN_BY_FAIRSEQ:
        try:
            ast.literal_eval(str(options.get(name)))
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            raise ValueError(f"{name}={options[name]!r} is not a literal, and fairseq would run it as Python") from None


class _MadeFor(TorchFunctionMode):
    """Lets a model be built inside only if that takes not much more memory than its weights.

    A file's options may claim any number and width of layers. Memory beyond the weights is small: tables of sine waves,
    and parameters that are tied afterwards, which double an embedding.
    """

    overhead = 2**13  # of a tensor and its module, counted in numbers
    factories = (torch.empty, torch.zeros, torch.ones, torch.full, torch.arange)

    def __init__(self, weights: Mapping[str, Tensor], options):
        super().__init__()
        self.width = options.get("decoder_embed_dim", 2**12)  # enough for the default of any architecture
        if "decoder_embed_dim" in options and not any(self.width in weight.shape for weight in weights.values()):
            raise ValueError(f"its options say that it is {self.width} wide (decoder_embed_dim); its weights are not")
        storages = {
            weight.untyped_storage().data_ptr(): weight.untyped_storage().nbytes() // weight.element_size()
            for weight in weights.values()
        }
        self.left = 2**24 + 2 * (sum(storages.values()) + self.overhead * len(weights))

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function in self.factories:
            numbers = function(*args, **{**kwargs, "device": "meta"}).numel()
            vectors = self.width if function is torch.arange else 1  # a vector per position of a sine wave
            self.left -= self.overhead + numbers * vectors
            if self.left < 0:
                raise ValueError("its options make a larger model than its weights fit")
        return function(*args, **kwargs)


def _override(options: DictConfig, overrides: Mapping[str, Any]) -> None:
    """Sets options of a model; raises ValueError for unknown options and for values of another type."""
    accepted = OmegaConf.structured(MODEL_DATACLASS_REGISTRY[ARCH_MODEL_NAME_REGISTRY[options._name]])
    known = sorted(name for name in accepted.keys() if not name.startswith("_"))
    for name, value in overrides.items():
        if name not in known:
            raise ValueError(
                f"--model-overrides: {name} is no option of a {options._name}; accepted are {', '.join(known)}"
            )
        with prefixing_errors(f"--model-overrides: {name}"), open_dict(options):
            accepted[name] = value
            options[name] = accepted[name]


def _set_position_encoding(path: str, state: Dict[str, Any], given: Optional[str]) -> None:
    """Turns a checkpoint of fairseq's transformer_lm into one of transformer_lm_wavelet if its options mislead.

    The ALiBi release (github.com/ofirpress/attention_with_linear_biases, fairseq/models/transformer.py) makes fairseq's
    sinusoidal embeddings and does not add them, so neither options nor parameters differ from a model that has them.
    But its transformer_lm has an option that fairseq's lacks, max_tokens. It shows if the options are kept in parts
    (``cfg``), but not in checkpoints with a single list (``args``), because training has an option of that name.
    """
    model = state["cfg"].model
    if "position_encoding" in model:
        if given:
            raise ValueError(f"--position-encoding {given}: --path {path} was trained with {model.position_encoding}")
        return
    if given is None:
        if state.get("args") is not None and not model.get("decoder_learned_pos"):
            raise ValueError(
                f"--path {path} is a transformer_lm of a fairseq that may have added sine waves or, like the ALiBi "
                "release, biases; say which by --position-encoding: alibi, sinusoidal, nope ..."
            )
        if "max_tokens" not in model:
            return
        given = "alibi"
    with open_dict(state["cfg"]):
        model._name, model.position_encoding = "transformer_lm_wavelet", given
        state["cfg"].task.pop("max_tokens", None)  # the model's option replaces it
    for buffer in "_float_tensor", "weights":  # of sine waves, not learned
        state["model"].pop(f"decoder.embed_positions.{buffer}", None)


def token_nll(model: FairseqLanguageModel, source: Tensor, target: Tensor) -> Tensor:
    """Negative log-likelihoods in nats, fp32 (B, L), of the targets (B, L) after the inputs (B, L).

    An adaptive softmax (Grave et al., 2017) is asked for the targets' clusters only, not for the whole vocabulary.
    """
    features, _ = model.decoder(source, features_only=True)
    softmax = model.decoder.adaptive_softmax
    if softmax is None:
        logits = model.decoder.output_layer(features).float()
        return F.cross_entropy(logits.transpose(1, 2), target, reduction="none")
    (head, *tails), (head_target, *tail_targets) = softmax(features, target.flatten())
    nll = F.cross_entropy(head.float(), head_target, reduction="none")
    for cluster, (logits, tail_target) in enumerate(zip(tails, tail_targets)):
        if logits is not None:
            nll[head_target == softmax.cutoff[0] + cluster] += F.cross_entropy(
                logits.float(), tail_target, reduction="none"
            )
    return nll.view_as(target)
