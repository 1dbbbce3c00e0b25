"""Perplexity of a fairseq language model at any length, in the paper's two inferences, with the checkpoint loaded once.

    python -m wavepos_fairseq.evaluation DATA_BIN --path CHECKPOINT --lengths 128,256,512,1012 --output FILE.json

The split's tokens are one stream, as with fairseq's ``--sample-break-mode none``: it is cut into sequences of the
evaluated length, the last one shorter, and every token of it is a target once. The input at a target is the token
before it, so the first input of a sequence is the last target of the one before (``</s>`` at the very start).

- ``full``: each sequence is scored whole ("perplexity without non-overlapping inference").
- ``non-overlapping``: each sequence is divided into pieces of L_train inputs, the last one shorter, and each piece is
  scored on its own. Up to L_train the two are the same.

``--per-line FILE`` scores each line on its own, after ``</s>``, as fairseq's ``--sample-break-mode eos``.
"""

import argparse
import ast
import contextlib
import csv
import functools
import io
import json
import logging
import math
import platform
import re
import sys
import time
from pathlib import Path
from typing import Any, Dict, List, Mapping, NamedTuple, Optional, Sequence, Tuple
from unittest import mock

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from .. import __version__
from ..common import commands
from ..common.commands import parse_count, parse_lengths
from ..common.errors import first_line, prefixing_errors
from ..common.files import refuse_unwritable, write_json, write_whole
from ..evaluation.inferences import INFERENCES, parse_inferences
from ..positions import position_names
from . import unpickling as checkpoints


class Checkpoint(NamedTuple):
    """A language model ready to be evaluated."""

    model: torch.nn.Module
    task: Any
    l_train: int
    options: Dict[str, Any]


def load_checkpoint(
    path: str,
    data: str,
    position_encoding: Optional[str] = None,
    trust: bool = False,
    overrides: Mapping[str, Any] = {},
    ema: bool = False,
) -> Checkpoint:
    """The language model in the fairseq checkpoint `path`, for the dictionary of the data-bin folder `data`.

    position_encoding: what a checkpoint of fairseq's own transformer_lm has, where that cannot be told from it. trust:
    run code that the checkpoint carries (see `checkpoints`). overrides: options of the model, instead of those that it
    was trained with. ema: its averaged weights, which fairseq-train keeps with --store-ema.

    Raises ValueError where either does not exist or cannot be used, the file is no checkpoint of a language model or is
    damaged, the dictionary is another than the model's, or the representation is not to be told.
    """
    from fairseq import checkpoint_utils, tasks, utils
    from fairseq.data import Dictionary
    from fairseq.models import ARCH_MODEL_REGISTRY, transformer_lm

    from ..models.transformer_lm_wavelet import WaveletLanguageModel

    data = first_folder(data)
    dictionary = Path(data, "dict.txt")
    if not dictionary.is_file():
        raise ValueError(f"{data} is no fairseq data-bin folder (scripts/prepare_data.sh makes one): no dict.txt in it")
    if not Path(path).is_file():
        raise ValueError(f"--path {path}: there is no such file")
    with prefixing_errors(f"{dictionary}"):
        known = len(Dictionary.load(str(dictionary)))
    embedded = re.compile(r"decoder\.embed_tokens\.(embeddings\.\d+\.0\.)?weight")
    try:
        content = checkpoints.load(path, trust)
        with mock.patch.object(torch, "load", return_value=content):  # fairseq brings it up to date
            state = checkpoint_utils.load_checkpoint_to_cpu(path)
        config, weights = state["cfg"], state["model"]
        task_name, architecture = getattr(config.task, "task", None) or config.task._name, config.model._name
        if ema:
            weights = state["model"] = state["extra_state"].get("ema", {})
        trained_on = Path(first_folder(str(config.task.get("data"))), "dict.txt")
        l_train = config.task.tokens_per_sample
        types = sum(len(weight) for name, weight in weights.items() if embedded.fullmatch(name))
    except checkpoints.Refused as error:
        raise ValueError(f"--path {path} {error}") from error
    except Exception as error:  # whatever torch and fairseq raise on a file that is something else
        raise ValueError(f"--path {path} is no fairseq checkpoint: {first_line(error)}") from error
    if ema and not weights:
        raise ValueError(f"--ema: --path {path} has no averaged weights, which fairseq-train keeps with --store-ema")
    if task_name != "language_modeling":
        raise ValueError(f"--path {path} is a model for the task {task_name}, not a language model")
    if ARCH_MODEL_REGISTRY.get(architecture) not in (transformer_lm.TransformerLanguageModel, WaveletLanguageModel):
        raise ValueError(f"--path {path} is a {architecture}; evaluated are transformer_lm and transformer_lm_wavelet")
    if config.task.get("add_bos_token"):
        raise ValueError(f"--path {path} was trained with --add-bos-token, which is not evaluated here")
    said = config.task.get("output_dictionary_size", -1)
    if said in range(known):  # fairseq's own makes rare inputs <unk>, too, where a sequence does not begin with a line
        raise ValueError(f"--path {path} was trained with --output-dictionary-size {said}, which is not evaluated here")
    if type(l_train) is not int or l_train < 1:
        raise ValueError(f"--path {path}: its tokens_per_sample is {l_train!r}, no whole number > 0")
    if trained_on.is_file() and trained_on.read_bytes() != dictionary.read_bytes():
        raise ValueError(f"--path {path} was trained with another dictionary ({trained_on}) than {dictionary}")
    if types != known:
        raise ValueError(f"--path {path} does not fit {dictionary} with {known} types: the model has {types}")
    _set_position_encoding(path, state, position_encoding)
    if overrides:
        _override(config.model, overrides)
    config.task.data = data
    # Some options, as adaptive_softmax_cutoff, fairseq runs as Python: here they are numbers, and no code.
    literal = functools.partial(mock.patch.object, attribute="eval", new=ast.literal_eval, create=True)
    with prefixing_errors(f"--path {path}"), literal(utils), literal(transformer_lm):
        options = {
            name: value if isinstance(value, (bool, int, float, str)) else str(value)  # as JSON has it
            for name, value in sorted(config.model.items())
            if value is not None
        }
        task = tasks.setup_task(config.task)
        with _MadeFor(weights, config.model):
            model = task.build_model(config.model, from_checkpoint=True)
        model.load_state_dict(weights, model_cfg=config.model)
    return Checkpoint(model.eval(), task, l_train, options)


def first_folder(data: str) -> str:
    """Of DATA1:DATA2, as fairseq-train takes it, the folder that has the dictionary and the splits of an evaluation."""
    from fairseq import utils

    return next(iter(utils.split_paths(data)), "")


class _MadeFor(TorchFunctionMode):
    """Within it a model is built, if that takes no more memory than its weights do, to which numbers are added.

    The options say how many layers there are, and how wide; a file may have any. What is not in the weights is small:
    tables of sine waves, and what is tied afterwards, which doubles an embedding.
    """

    overhead = 2**13  # what a tensor and its module take besides, in numbers
    factories = (torch.empty, torch.zeros, torch.ones, torch.full, torch.arange)

    def __init__(self, weights: Mapping[str, Tensor], options):
        super().__init__()
        self.width = options.get("decoder_embed_dim", 2**12)  # where it is the architecture's, that is enough
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
            vectors = self.width if function is torch.arange else 1  # a sine wave's position each
            self.left -= self.overhead + numbers * vectors
            if self.left < 0:
                raise ValueError("its options make a larger model than that of which it has the weights")
        return function(*args, **kwargs)


def _override(options, overrides: Mapping[str, Any]) -> None:
    """Sets options of a model; ValueError for those that it does not have, and for values of another type."""
    from fairseq.models import ARCH_MODEL_NAME_REGISTRY, MODEL_DATACLASS_REGISTRY
    from omegaconf import OmegaConf, open_dict

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
    """Makes a checkpoint of fairseq's transformer_lm one of transformer_lm_wavelet where its options mislead.

    The ALiBi release (github.com/ofirpress/attention_with_linear_biases, fairseq/models/transformer.py) makes fairseq's
    sinusoidal embeddings and does not add them: neither options nor parameters differ from a model that has them. But
    its transformer_lm has an option that fairseq's has not, max_tokens. It shows where the options are kept by parts
    (``cfg``), and not in checkpoints that have all in one (``args``), where training has an option of that name.
    """
    model = state["cfg"].model
    if "position_encoding" in model:
        if given:
            raise ValueError(f"--position-encoding {given}: --path {path} was trained with {model.position_encoding}")
        return
    if given is None:
        if state.get("args") is not None and not model.get("decoder_learned_pos"):
            raise ValueError(
                f"--path {path} is a transformer_lm of a fairseq that may have added sine waves or, as the ALiBi "
                "release, biases; --position-encoding tells: alibi, sinusoidal, nope ..."
            )
        if "max_tokens" not in model:
            return
        given = "alibi"
    from omegaconf import open_dict  # it comes with fairseq

    with open_dict(state["cfg"]):
        model._name, model.position_encoding = "transformer_lm_wavelet", given
        state["cfg"].task.pop("max_tokens", None)  # for which model's option stands
    for buffer in "_float_tensor", "weights":  # of sine waves, not learned
        state["model"].pop(f"decoder.embed_positions.{buffer}", None)


def load_lines(data: str, subset: str, dictionary) -> List[Tensor]:
    """The lines of a split of a data-bin folder, of whichever of fairseq's implementations, each ended by ``</s>``."""
    from fairseq.data import data_utils

    split = Path(first_folder(data), subset)
    with prefixing_errors(f"--subset {subset}: {split}.bin with {subset}.idx"):
        dataset = data_utils.load_indexed_dataset(str(split), dictionary)
        if dataset is None:
            raise ValueError("there is no such file")
        if getattr(dataset, "supports_prefetch", False):  # of --dataset-impl cached and lazy, which are one format
            dataset.prefetch(range(len(dataset)))
        lines = [dataset[i].long() for i in range(len(dataset))]
        stream = torch.cat(lines)
        if not (0 <= stream.min() and stream.max() < len(dictionary)):
            raise ValueError(f"tokens other than 0 to {len(dictionary) - 1}, those of dict.txt")
        padding = int((stream == dictionary.pad()).sum())
        if padding:
            raise ValueError(
                f"{padding} words of the text are a literal {dictionary.pad_word}, which is padding to fairseq; write "
                "another in its place, and prepare the text anew"
            )
    return lines


def load_stream(data: str, subset: str, dictionary) -> Tensor:
    """All tokens of a split of a data-bin folder, an ``</s>`` after each line: int64 (tokens,)."""
    return torch.cat(load_lines(data, subset, dictionary))


def inputs_of(stream: Tensor, dictionary) -> Tensor:
    """The token before each of the stream's, ``</s>`` before the first: int64 (tokens,)."""
    return torch.cat((stream.new_tensor([dictionary.eos()]), stream[:-1]))


def token_nll(model: torch.nn.Module, source: Tensor, target: Tensor) -> Tensor:
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


def pieces(num_tokens: int, sequence_length: int, piece_length: int) -> List[Tuple[int, int]]:
    """Where a stream is cut: (start, stop) of the pieces of each sequence of `sequence_length`, in order."""
    cuts = []
    for start in range(0, num_tokens, sequence_length):
        end = min(start + sequence_length, num_tokens)
        cuts += [(first, min(first + piece_length, end)) for first in range(start, end, piece_length)]
    return cuts


@torch.no_grad()
def stream_nll(
    model: torch.nn.Module, source: Tensor, target: Tensor, cuts: Sequence[Tuple[int, int]], max_tokens: int
) -> Tensor:
    """`token_nll` of a stream whose pieces are scored on their own: source and target (tokens,), gives fp32 (tokens,).

    Pieces of one length are batched up to `max_tokens` tokens (one piece at the least), so that nothing is padded.
    """
    nll = torch.empty(len(target))
    device = next(model.parameters()).device
    by_length: Dict[int, List[int]] = {}
    for start, stop in cuts:
        by_length.setdefault(stop - start, []).append(start)
    for length, starts in by_length.items():
        for batch in torch.tensor(starts).split(max(1, max_tokens // length)):
            index = batch[:, None] + torch.arange(length)
            nll[index] = token_nll(model, source[index].to(device), target[index].to(device)).cpu()
    return nll


def perplexity_of(nll: float) -> float:
    """exp of a mean loss in nats; ValueError where that is no finite number."""
    if not nll < math.log(sys.float_info.max):  # as NaN is not
        raise ValueError(f"the perplexity of a mean loss of {nll:.4g} nats is not finite")
    return math.exp(nll)


def bootstrap_interval(nll: Tensor, sequence_length: int) -> Tuple[Optional[float], Optional[float]]:
    """95% percentile interval of a stream's perplexity (Efron, 1979), its sequences being drawn anew 1,000 times.

    nll: in nats, fp64 (tokens,), cut into sequences of `sequence_length`, the last one shorter. It says how much the
    number would move on another text of this kind and size; not what another seed would do. Of one sequence nothing is
    known: None.
    """
    if len(nll) <= sequence_length:
        return None, None
    sums, counts = np.array([(piece.sum().item(), len(piece)) for piece in nll.split(sequence_length)]).T
    draw = np.random.default_rng(0)
    drawn = [draw.integers(len(sums), size=len(sums)) for _ in range(1000)]
    means = [sums[sequences].sum() / counts[sequences].sum() for sequences in drawn]
    low, high = np.percentile(means, (2.5, 97.5))
    return perplexity_of(low), perplexity_of(high)


def evaluate(
    checkpoint: Checkpoint,
    stream: Tensor,
    lengths: Sequence[int],
    inferences: Sequence[str] = INFERENCES,
    max_tokens: int = 4096,
    report=lambda cell: None,
) -> List[Dict[str, Any]]:
    """A cell of a table for each inference and length, `report`ed as soon as it is known.

    stream: int64 (tokens,), see `load_stream`. nll is the mean in nats over all targets, perplexity its exponential,
    perplexity_low and perplexity_high its `bootstrap_interval`, or None. Raises ValueError where one is not finite.
    """
    source = inputs_of(stream, checkpoint.task.dictionary)
    cells: List[Dict[str, Any]] = []
    for length in lengths:
        for inference in inferences:
            started = time.perf_counter()
            twin = [c for c in cells if c["sequence_length"] == length <= checkpoint.l_train]
            if twin:  # the two inferences cut such sequences alike
                cells.append({**twin[0], "inference": inference})
            else:
                piece_length = length if inference == "full" else min(length, checkpoint.l_train)
                cuts = pieces(len(stream), length, piece_length)
                losses = stream_nll(checkpoint.model, source, stream, cuts, max_tokens).double()
                nll = losses.mean().item()
                with prefixing_errors(f"{inference}, length {length}"):
                    perplexity, interval = perplexity_of(nll), bootstrap_interval(losses, length)
                seconds = time.perf_counter() - started
                cells.append(
                    {
                        "inference": inference,
                        "l_train": checkpoint.l_train,
                        "sequence_length": length,
                        "tokens": len(stream),
                        "nll": nll,
                        "perplexity": perplexity,
                        "perplexity_low": interval[0],
                        "perplexity_high": interval[1],
                        "seconds": seconds,
                        "tokens_per_second": len(stream) / seconds,
                    }
                )
            report(cells[-1])
    return cells


def evaluate_lines(checkpoint: Checkpoint, lines: Sequence[Tensor], max_tokens: int = 4096) -> List[Dict[str, Any]]:
    """The perplexity of each line on its own, after ``</s>``: fairseq's ``--sample-break-mode eos``.

    lines: see `load_lines`. line counts from 1; tokens, nll and perplexity are as in `evaluate`.
    """
    stream = torch.cat(list(lines))
    stops = np.cumsum([len(line) for line in lines]).tolist()
    cuts = list(zip([0, *stops], stops))
    source = inputs_of(stream, checkpoint.task.dictionary)
    source[[start for start, _ in cuts]] = checkpoint.task.dictionary.eos()
    losses = stream_nll(checkpoint.model, source, stream, cuts, max_tokens).double()
    scored = []
    for number, (start, stop) in enumerate(cuts, start=1):
        nll = losses[start:stop].mean().item()
        with prefixing_errors(f"line {number}"):
            scored.append({"line": number, "tokens": stop - start, "nll": nll, "perplexity": perplexity_of(nll)})
    return scored


def count_words(stream: Tensor, dictionary) -> int:
    """Words and line ends in a stream of subword-nmt's units, of which all but a word's last end in ``@@``."""
    continued = torch.tensor([symbol.endswith("@@") for symbol in dictionary.symbols])
    return int((~continued[stream]).sum())


def parse_overrides(text: str) -> Dict[str, Any]:
    """``{'rope_theta': 20000}`` as a dict of texts, numbers, True, False and None; argparse's error otherwise."""
    try:
        overrides = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        overrides = None
    scalars = (str, int, float, type(None))
    if not isinstance(overrides, dict) or not all(
        isinstance(name, str) and isinstance(value, scalars) for name, value in overrides.items()
    ):
        raise argparse.ArgumentTypeError(f"{text!r} is no dict of options, as {{'rope_theta': 20000}} is")
    return overrides


def parse_lines_file(text: str) -> Path:
    """A file whose name ends in .csv or .jsonl; argparse's error otherwise."""
    if Path(text).suffix not in (".csv", ".jsonl"):
        raise argparse.ArgumentTypeError(f"{text!r}: accepted are names that end in .csv or .jsonl")
    return Path(text)


def write_lines(path: Path, scored: List[Dict[str, Any]]) -> None:
    """What `evaluate_lines` gives, a line each: CSV with a head where the file's name ends so, JSON otherwise."""
    text = io.StringIO()
    if path.suffix == ".csv":
        table = csv.DictWriter(text, list(scored[0]), lineterminator="\n")
        table.writeheader()
        table.writerows(scored)
    else:
        text.writelines(json.dumps(line) + "\n" for line in scored)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, text.getvalue())


def add_reading_options(parser: argparse.ArgumentParser) -> None:
    """--position-encoding and --trust-checkpoint of `load_checkpoint`."""
    parser.add_argument(
        "--position-encoding",
        choices=position_names(),
        help="representation of a checkpoint of fairseq's own transformer_lm, where it does not tell",
    )
    parser.add_argument(
        "--trust-checkpoint", action="store_true", help="read the checkpoint even where it may run code of its own"
    )


def parser() -> argparse.ArgumentParser:
    parser = commands.parser(__doc__, prog="python -m wavepos_fairseq.evaluation")
    parser.add_argument("data", metavar="DATA_BIN", help="folder made by fairseq-preprocess (scripts/prepare_data.sh)")
    parser.add_argument("--path", required=True, metavar="CHECKPOINT", help="checkpoint written by fairseq-train")
    parser.add_argument("--lengths", type=parse_lengths, default=[], help="evaluated lengths: 128,256,512,1012")
    parser.add_argument(
        "--per-line",
        type=parse_lines_file,
        metavar="FILE",
        help="score each line on its own, too: tokens, nll and perplexity, to FILE.csv or FILE.jsonl",
    )
    parser.add_argument(
        "--inference", type=parse_inferences, default=list(INFERENCES), help="full,non-overlapping (default: both)"
    )
    parser.add_argument("--subset", default="valid", help="split of the data (default: valid)")
    parser.add_argument("--max-tokens", type=parse_count, default=4096, help="tokens in a batch (default: 4096)")
    add_reading_options(parser)
    parser.add_argument(
        "--model-overrides",
        type=parse_overrides,
        default={},
        metavar="DICT",
        help="options of the model instead of those that it was trained with: \"{'rope_theta': 20000}\"",
    )
    parser.add_argument("--ema", action="store_true", help="evaluate the averaged weights that --store-ema keeps")
    parser.add_argument("--cpu", action="store_true", help="stay on the CPU where there is a GPU")
    parser.add_argument("--fp16", action="store_true", help="evaluate in half precision")
    parser.add_argument("--output", type=Path, metavar="FILE.json", help="where the results are written")
    return parser


def main(arguments=None) -> int:
    accepted = parser()
    args = accepted.parse_args(arguments)
    if not args.lengths and not args.per_line:
        accepted.error("one of the arguments --lengths --per-line is required")
    if args.output and not args.lengths:
        accepted.error("argument --output: it holds the perplexities at --lengths, which are not given")
    commands.require_fairseq()
    logging.getLogger("fairseq").setLevel(logging.WARNING)
    writes = args.output or args.per_line
    with commands.progress_fails_nothing() if writes else contextlib.nullcontext():
        try:
            _evaluate_file(args)
        except (ValueError, OSError) as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        return 0


def _evaluate_file(args: argparse.Namespace) -> None:
    for file in filter(None, (args.output, args.per_line)):
        refuse_unwritable(file)
    checkpoint = load_checkpoint(
        args.path, args.data, args.position_encoding, args.trust_checkpoint, args.model_overrides, args.ema
    )
    lines = load_lines(args.data, args.subset, checkpoint.task.dictionary)
    stream = torch.cat(lines)
    device = torch.device("cuda" if torch.cuda.is_available() and not args.cpu else "cpu")
    checkpoint.model.to(device, torch.float16 if args.fp16 else torch.float32)

    subword = Path(first_folder(args.data), "bpe.codes").is_file()
    words = count_words(stream, checkpoint.task.dictionary) if subword else len(stream)

    def report(cell):
        line = f"{cell['inference']:>15}  length {cell['sequence_length']:>5}  perplexity {cell['perplexity']:8.2f}"
        if subword:  # perplexities over different vocabularies are compared per word
            cell["words"] = words
            cell["word_perplexity"] = perplexity_of(cell["nll"] * cell["tokens"] / words)
            line += f"  per word {cell['word_perplexity']:8.2f}"
        print(f"{line}  ({cell['tokens']:,} tokens, {cell['seconds']:.0f} s)", flush=True)

    if args.per_line:
        write_lines(args.per_line, evaluate_lines(checkpoint, lines, args.max_tokens))
        print(f"{args.per_line}: {len(lines):,} lines", flush=True)
    cells = evaluate(checkpoint, stream, args.lengths, args.inference, args.max_tokens, report)
    if args.output:
        result = {
            "checkpoint": args.path,
            "data": args.data,
            "subset": args.subset,
            "options": checkpoint.options,
            "model_overrides": args.model_overrides,
            "ema": args.ema,
            "parameters": sum(p.numel() for p in checkpoint.model.parameters()),
            "device": torch.cuda.get_device_name() if device.type == "cuda" else f"cpu ({platform.machine()})",
            "versions": versions(),
            "cells": cells,
        }
        write_json(args.output, result)


def versions() -> Dict[str, str]:
    """What a number depends on besides the options."""
    import fairseq

    return {
        "wavepos_fairseq": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "fairseq": fairseq.__version__,
    }


if __name__ == "__main__":
    sys.exit(main())
