"""Perplexity of a fairseq language model at any length, in the paper's two inferences, with the checkpoint loaded once.

    python -m wavepos_fairseq.evaluation DATA_BIN --path CHECKPOINT --lengths 128,256,512,1012 --output FILE.json

`evaluation.perplexity` defines the inferences. ``--per-line FILE`` scores each line on its own, after ``</s>``, like
fairseq's ``--sample-break-mode eos``. Importing this module imports neither PyTorch nor fairseq.
"""

import argparse
import ast
import contextlib
import csv
import io
import json
import logging
import math
import platform
import sys
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence

from .. import __version__
from ..common import commands
from ..common.commands import parse_count, parse_lengths
from ..common.files import refuse_unwritable, write_json, write_whole
from ..evaluation.inferences import INFERENCES, PAPERS_INFERENCES, parse_inferences


def parse_overrides(text: str) -> Dict[str, Any]:
    """``{'rope_theta': 20000}`` as a dict of text, numbers, bools and None; raises argparse's error otherwise."""
    try:
        overrides = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        overrides = None
    scalars = (str, int, float, type(None))
    if not isinstance(overrides, dict) or not all(
        isinstance(name, str) and isinstance(value, scalars) for name, value in overrides.items()
    ):
        raise argparse.ArgumentTypeError(f"{text!r} is not a dict of options like {{'rope_theta': 20000}}")
    return overrides


def parse_lines_file(text: str) -> Path:
    """A file whose name ends in .csv or .jsonl; raises argparse's error otherwise."""
    if Path(text).suffix not in (".csv", ".jsonl"):
        raise argparse.ArgumentTypeError(f"{text!r}: accepted are names that end in .csv or .jsonl")
    return Path(text)


def write_lines(path: Path, scored: List[Dict[str, Any]]) -> None:
    """Writes the lines of `evaluate_lines`: CSV with a header if the file's name ends so, JSON lines otherwise."""
    text = io.StringIO()
    if path.suffix == ".csv":
        table = csv.DictWriter(text, list(scored[0]), lineterminator="\n")
        table.writeheader()
        table.writerows(scored)
    else:
        text.writelines(json.dumps(line) + "\n" for line in scored)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, text.getvalue())


def parser() -> argparse.ArgumentParser:
    parser = commands.parser(__doc__, prog="python -m wavepos_fairseq.evaluation")
    parser.add_argument("data", metavar="DATA_BIN", help="folder made by fairseq-preprocess (scripts/prepare_data.sh)")
    parser.add_argument("--path", required=True, metavar="CHECKPOINT", help="checkpoint written by fairseq-train")
    parser.add_argument("--lengths", type=parse_lengths, default=[], help="evaluated lengths: 128,256,512,1012")
    parser.add_argument(
        "--per-line",
        type=parse_lines_file,
        metavar="FILE",
        help="also score each line on its own; tokens, nll and perplexity go to FILE.csv or FILE.jsonl",
    )
    parser.add_argument(
        "--inference",
        type=parse_inferences,
        default=list(PAPERS_INFERENCES),
        help=f"of {','.join(INFERENCES)} (default: {','.join(PAPERS_INFERENCES)})",
    )
    parser.add_argument("--stride", type=parse_count, metavar="S", help="sliding: tokens that each window scores")
    parser.add_argument(
        "--sliding-tokens", type=parse_count, metavar="N", help="sliding: score the first N tokens only (default: all)"
    )
    parser.add_argument("--subset", default="valid", help="split of the data (default: valid)")
    parser.add_argument("--max-tokens", type=parse_count, default=4096, help="tokens in a batch (default: 4096)")
    parser.add_argument(
        "--position-encoding",
        metavar="NAME",
        help="representation of a checkpoint of fairseq's own transformer_lm, if its options do not tell: alibi ...",
    )
    parser.add_argument(
        "--trust-checkpoint", action="store_true", help="read the checkpoint even if it may run its own code"
    )
    parser.add_argument(
        "--model-overrides",
        type=parse_overrides,
        default={},
        metavar="DICT",
        help="options that replace those of the training: \"{'rope_theta': 20000}\"",
    )
    parser.add_argument("--ema", action="store_true", help="evaluate the averaged weights that --store-ema keeps")
    parser.add_argument("--cpu", action="store_true", help="use the CPU even if there is a GPU")
    parser.add_argument("--fp16", action="store_true", help="evaluate in half precision")
    parser.add_argument("--output", type=Path, metavar="FILE.json", help="file for the results")
    return parser


def main(arguments: Optional[Sequence[str]] = None) -> int:
    accepted = parser()
    args = accepted.parse_args(arguments)
    if not args.lengths and not args.per_line:
        accepted.error("one of the arguments --lengths --per-line is required")
    if args.output and not args.lengths:
        accepted.error("argument --output: needs --lengths, whose perplexities it holds")
    commands.require_fairseq()
    logging.getLogger("fairseq").setLevel(logging.WARNING)  # on import it recommends packages for speech
    writes = args.output or args.per_line
    with commands.progress_fails_nothing() if writes else contextlib.nullcontext():
        try:
            for file in filter(None, (args.output, args.per_line)):
                refuse_unwritable(file)
            result = evaluate_checkpoint(args)
            if args.output:
                write_json(args.output, result)
        except (ValueError, OSError) as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        return 0


def evaluate_checkpoint(args: argparse.Namespace) -> Dict[str, Any]:
    """What --output holds, of the arguments that `parser` accepts. Raises ValueError and OSError."""
    import torch  # here, because these imports take seconds

    from ..evaluation.perplexity import evaluate, evaluate_lines
    from ..evaluation.statistics import perplexity_of
    from ..models.transformer_lm_wavelet import errors_in_flags
    from .checkpoint import load_checkpoint
    from .streams import count_words, load_lines, unit_of

    scorer = load_checkpoint(
        args.path, args.data, args.position_encoding, args.trust_checkpoint, args.model_overrides, args.ema
    )
    lines = load_lines(args.data, args.subset, scorer.task.dictionary)
    stream = torch.cat(lines)
    device = torch.device("cuda" if torch.cuda.is_available() and not args.cpu else "cpu")
    scorer.model.to(device, torch.float16 if args.fp16 else torch.float32)

    unit = unit_of(args.data)

    def report(cell: Dict[str, Any]) -> None:
        line = f"{cell['inference']:>15}  length {cell['sequence_length']:>5}  perplexity {cell['perplexity']:8.2f}"
        if unit != "word":  # perplexities over different vocabularies are compared per word
            words = count_words(stream[: cell["tokens"]], scorer.task.dictionary, unit)
            per_word = cell["tokens"] / words
            cell.update(words=words, word_perplexity=perplexity_of(cell["nll"] * per_word))
            line += f"  per word {cell['word_perplexity']:8.2f}"
        if unit == "character":
            cell["bits_per_character"] = cell["nll"] / math.log(2)
            for end in ("low", "high"):
                bound = cell[f"perplexity_{end}"]
                cell[f"word_perplexity_{end}"] = None if bound is None else perplexity_of(math.log(bound) * per_word)
            line += f"  bits per character {cell['bits_per_character']:.4f}"
        print(f"{line}  ({cell['tokens']:,} tokens, {cell['seconds']:.0f} s)", flush=True)

    with errors_in_flags():
        if args.per_line:
            write_lines(args.per_line, evaluate_lines(scorer, lines, args.max_tokens))
            print(f"{args.per_line}: {len(lines):,} lines", flush=True)
        of = (args.lengths, args.inference, args.max_tokens, args.stride, args.sliding_tokens)
        cells = evaluate(scorer, stream, *of, report)
    return {
        "checkpoint": args.path,
        "data": args.data,
        "subset": args.subset,
        "options": scorer.options,
        "stride": args.stride,
        "model_overrides": args.model_overrides,
        "ema": args.ema,
        "parameters": sum(p.numel() for p in scorer.model.parameters()),
        "device": torch.cuda.get_device_name() if device.type == "cuda" else f"cpu ({platform.machine()})",
        "versions": versions(),
        "cells": cells,
    }


def versions() -> Dict[str, str]:
    """The versions that a number depends on."""
    import fairseq
    import torch

    return {
        "wavepos_fairseq": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "fairseq": fairseq.__version__,
    }
