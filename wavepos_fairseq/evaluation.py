"""Perplexity of a fairseq language model at any length, in the paper's two inferences, with the checkpoint loaded once.

    python -m wavepos_fairseq.evaluation DATA_BIN --path CHECKPOINT --lengths 128,256,512,1012 --output FILE.json

The split's tokens are one stream, as with fairseq's ``--sample-break-mode none``: it is cut into sequences of the
evaluated length, the last one shorter, and every token of it is a target once. The input at a target is the token
before it, so the first input of a sequence is the last target of the one before (``</s>`` at the very start).

- ``full``: each sequence is scored whole ("perplexity without non-overlapping inference").
- ``non-overlapping``: each sequence is divided into pieces of L_train inputs, the last one shorter, and each piece is
  scored on its own. Up to L_train the two are the same.
"""

import argparse
import json
import logging
import math
import platform
import sys
import time
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Sequence, Tuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from . import __version__
from .tables import write_whole

INFERENCES = ("full", "non-overlapping")


class Checkpoint(NamedTuple):
    """A language model ready to be evaluated."""

    model: torch.nn.Module
    task: Any
    l_train: int
    options: Dict[str, Any]


def load_checkpoint(path: str, data: str) -> Checkpoint:
    """The language model in the fairseq checkpoint `path`, for the dictionary of the data-bin folder `data`.

    Raises ValueError where either does not exist, the file is no checkpoint of a language model, or the dictionary is
    another than the model's.
    """
    from fairseq import checkpoint_utils, tasks

    from . import models  # noqa: F401  (registers the architectures)

    dictionary = Path(data, "dict.txt")
    if not dictionary.is_file():
        raise ValueError(f"{data} is no fairseq data-bin folder (scripts/prepare_data.sh makes one): no dict.txt in it")
    if not Path(path).is_file():
        raise ValueError(f"--path {path}: there is no such file")
    try:
        state = checkpoint_utils.load_checkpoint_to_cpu(path)
        config = state["cfg"]
    except Exception as error:  # whatever torch and fairseq raise on a file that is something else
        raise ValueError(f"--path {path} is no fairseq checkpoint: {first_line(error)}") from error
    if config.task._name != "language_modeling":
        raise ValueError(f"--path {path} is a model for the task {config.task._name}, not a language model")
    if config.task.get("add_bos_token"):
        raise ValueError(f"--path {path} was trained with --add-bos-token, which is not evaluated here")
    trained_on = Path(config.task.data, "dict.txt")
    if trained_on.is_file() and trained_on.read_bytes() != dictionary.read_bytes():
        raise ValueError(f"--path {path} was trained with another dictionary ({trained_on}) than {dictionary}")
    config.task.data = data
    task = tasks.setup_task(config.task)
    try:
        (model,), _, _ = checkpoint_utils.load_model_ensemble_and_task([path], task=task, state=state)
    except RuntimeError as error:  # of load_state_dict
        types = len(task.dictionary)
        raise ValueError(f"--path {path} does not fit {dictionary} with {types} types: {first_line(error)}") from error
    options = {name: value for name, value in sorted(config.model.items()) if value is not None}
    return Checkpoint(model.eval(), task, config.task.tokens_per_sample, options)


def first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


def load_stream(data: str, subset: str, dictionary) -> Tensor:
    """All tokens of a split of a data-bin folder, an ``</s>`` after each line: int64 (tokens,)."""
    from fairseq.data import data_utils

    lines = data_utils.load_indexed_dataset(str(Path(data, subset)), dictionary)
    if lines is None:
        raise ValueError(f"--subset {subset}: {data} has no {subset}.bin and {subset}.idx")
    return torch.cat([lines[i] for i in range(len(lines))]).long()


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


def bootstrap_interval(nll: Tensor, sequence_length: int) -> Tuple[float, float]:
    """95% percentile interval of a stream's perplexity (Efron, 1979), its sequences being drawn anew 1,000 times.

    nll: in nats, fp64 (tokens,), cut into sequences of `sequence_length`, the last one shorter. It says how much the
    number would move on another text of this kind and size; not what another seed would do.
    """
    sums, counts = np.array([(piece.sum().item(), len(piece)) for piece in nll.split(sequence_length)]).T
    draw = np.random.default_rng(0)
    drawn = [draw.integers(len(sums), size=len(sums)) for _ in range(1000)]
    means = [sums[sequences].sum() / counts[sequences].sum() for sequences in drawn]
    low, high = np.exp(np.percentile(means, (2.5, 97.5)))
    return float(low), float(high)


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
    perplexity_low and perplexity_high its `bootstrap_interval`.
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
                nll, interval = losses.mean().item(), bootstrap_interval(losses, length)
                seconds = time.perf_counter() - started
                cells.append(
                    {
                        "inference": inference,
                        "l_train": checkpoint.l_train,
                        "sequence_length": length,
                        "tokens": len(stream),
                        "nll": nll,
                        "perplexity": math.exp(nll),
                        "perplexity_low": interval[0],
                        "perplexity_high": interval[1],
                        "seconds": seconds,
                        "tokens_per_second": len(stream) / seconds,
                    }
                )
            report(cells[-1])
    return cells


def count_words(stream: Tensor, dictionary) -> int:
    """Words and line ends in a stream of subword-nmt's units, of which all but a word's last end in ``@@``."""
    continued = torch.tensor([symbol.endswith("@@") for symbol in dictionary.symbols])
    return int((~continued[stream]).sum())


def parse_lengths(text: str) -> List[int]:
    """``128,256`` as a list of whole numbers > 0; argparse's error otherwise."""
    return list(dict.fromkeys(parse_count(item) for item in text.split(",")))


def parse_count(text: str) -> int:
    """A whole number > 0; argparse's error otherwise."""
    if not text.isdigit() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number > 0")
    return int(text)


def parse_inferences(text: str) -> List[str]:
    """``full,non-overlapping`` as a list; argparse's error otherwise."""
    inferences = text.split(",")
    if not set(inferences) <= set(INFERENCES):
        raise argparse.ArgumentTypeError(f"{text!r}: accepted are {','.join(INFERENCES)} or one of them")
    return list(dict.fromkeys(inferences))


def write_json(path: Path, content: Any) -> None:
    """Writes a whole file or none (see `tables.write_whole`), in a folder that is made where there is none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, json.dumps(content, indent=1) + "\n")


def main(arguments=None) -> int:
    parser = argparse.ArgumentParser(prog="python -m wavepos_fairseq.evaluation", description=__doc__.split("\n")[0])
    parser.add_argument("data", metavar="DATA_BIN", help="folder made by fairseq-preprocess (scripts/prepare_data.sh)")
    parser.add_argument("--path", required=True, metavar="CHECKPOINT", help="checkpoint written by fairseq-train")
    parser.add_argument("--lengths", required=True, type=parse_lengths, help="evaluated lengths: 128,256,512,1012")
    parser.add_argument(
        "--inference", type=parse_inferences, default=list(INFERENCES), help="full,non-overlapping (default: both)"
    )
    parser.add_argument("--subset", default="valid", help="split of the data (default: valid)")
    parser.add_argument("--max-tokens", type=parse_count, default=4096, help="tokens in a batch (default: 4096)")
    parser.add_argument("--cpu", action="store_true", help="stay on the CPU where there is a GPU")
    parser.add_argument("--fp16", action="store_true", help="evaluate in half precision")
    parser.add_argument("--output", type=Path, metavar="FILE.json", help="where the results are written")
    args = parser.parse_args(arguments)
    logging.getLogger("fairseq").setLevel(logging.WARNING)
    try:
        checkpoint = load_checkpoint(args.path, args.data)
        stream = load_stream(args.data, args.subset, checkpoint.task.dictionary)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    device = torch.device("cuda" if torch.cuda.is_available() and not args.cpu else "cpu")
    checkpoint.model.to(device, torch.float16 if args.fp16 else torch.float32)

    subword = Path(args.data, "bpe.codes").is_file()
    words = count_words(stream, checkpoint.task.dictionary) if subword else len(stream)

    def report(cell):
        line = f"{cell['inference']:>15}  length {cell['sequence_length']:>5}  perplexity {cell['perplexity']:8.2f}"
        if subword:  # perplexities over different vocabularies are compared per word
            cell["words"] = words
            cell["word_perplexity"] = math.exp(cell["nll"] * cell["tokens"] / words)
            line += f"  per word {cell['word_perplexity']:8.2f}"
        print(f"{line}  ({cell['tokens']:,} tokens, {cell['seconds']:.0f} s)", flush=True)

    cells = evaluate(checkpoint, stream, args.lengths, args.inference, args.max_tokens, report)
    if args.output:
        result = {
            "checkpoint": args.path,
            "data": args.data,
            "subset": args.subset,
            "options": checkpoint.options,
            "parameters": sum(p.numel() for p in checkpoint.model.parameters()),
            "device": torch.cuda.get_device_name() if device.type == "cuda" else f"cpu ({platform.machine()})",
            "versions": versions(),
            "cells": cells,
        }
        write_json(args.output, result)
    return 0


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
