"""Perplexity of a language model at any length, in the paper's two inferences, with the model loaded once.

    python -m wavepos_fairseq.evaluation DATA_BIN --path CHECKPOINT --lengths 128,256,512,1012 --output FILE.json
    python -m wavepos_fairseq.evaluation --model FOLDER --text FILE --lengths 128,256,512,1012 --output FILE.json

The first evaluates a checkpoint of fairseq, the second any language model of transformers, which needs no fairseq.
`evaluation.perplexity` defines the inferences. ``--per-line FILE`` scores each line on its own, after ``</s>``, like
fairseq's ``--sample-break-mode eos``. Importing this module imports neither PyTorch nor fairseq.
"""

import argparse
import ast
import contextlib
import logging
import sys
from pathlib import Path
from typing import Any, Dict, Optional, Sequence

from ..common import commands
from ..common.commands import parse_count, parse_lengths
from ..common.files import refuse_unwritable, write_json
from ..evaluation.inferences import INFERENCES, PAPERS_INFERENCES, parse_inferences

PROGRAM = "python -m wavepos_fairseq.evaluation"


def parse_overrides(text: str) -> Dict[str, Any]:
    """``{'rope_theta': 20000}`` as a dict of text, numbers, bools, None and such dicts; argparse's error otherwise."""
    try:
        overrides = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        overrides = None
    if not _are_overrides(overrides):
        raise argparse.ArgumentTypeError(f"{text!r} is not a dict of options like {{'rope_theta': 20000}}")
    return overrides


def _are_overrides(value: Any) -> bool:
    scalars = (str, int, float, type(None))
    return isinstance(value, dict) and all(
        isinstance(name, str) and (isinstance(of, scalars) or _are_overrides(of)) for name, of in value.items()
    )


def parse_lines_file(text: str) -> Path:
    """A file whose name ends in .csv or .jsonl; raises argparse's error otherwise."""
    if Path(text).suffix not in (".csv", ".jsonl"):
        raise argparse.ArgumentTypeError(f"{text!r}: accepted are names that end in .csv or .jsonl")
    return Path(text)


def parser(prog: str = PROGRAM) -> argparse.ArgumentParser:
    """All options; `parse` knows which belong together."""
    parser = commands.parser(__doc__, prog=prog)
    parser.add_argument("--lengths", type=parse_lengths, default=[], help="evaluated lengths: 128,256,512,1012")
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
    parser.add_argument(
        "--sequences",
        type=parse_count,
        metavar="N",
        help="full and non-overlapping: score the first N sequences of each length only (default: all)",
    )
    parser.add_argument("--max-tokens", type=parse_count, default=4096, help="tokens in a batch (default: 4096)")
    parser.add_argument(
        "--model-overrides",
        type=parse_overrides,
        default={},
        metavar="DICT",
        help="options that replace those of the training: \"{'rope_theta': 20000}\"",
    )
    parser.add_argument("--cpu", action="store_true", help="use the CPU even if there is a GPU")
    parser.add_argument("--fp16", action="store_true", help="evaluate in half precision")
    parser.add_argument("--output", type=Path, metavar="FILE.json", help="file for the results")
    of = parser.add_argument_group("a checkpoint of fairseq")
    of.add_argument(
        "data", metavar="DATA_BIN", nargs="?", help="folder made by fairseq-preprocess (scripts/prepare_data.sh)"
    )
    of.add_argument("--path", metavar="CHECKPOINT", help="checkpoint written by fairseq-train")
    of.add_argument(
        "--per-line",
        type=parse_lines_file,
        metavar="FILE",
        help="also score each line on its own; tokens, nll and perplexity go to FILE.csv or FILE.jsonl",
    )
    of.add_argument("--subset", default="valid", help="split of the data (default: valid)")
    of.add_argument(
        "--position-encoding",
        metavar="NAME",
        help="representation of a checkpoint of fairseq's own transformer_lm, if its options do not tell: alibi ...",
    )
    of.add_argument(
        "--trust-checkpoint", action="store_true", help="read the checkpoint even if it may run its own code"
    )
    of.add_argument("--ema", action="store_true", help="evaluate the averaged weights that --store-ema keeps")
    of = parser.add_argument_group("a model of transformers")
    of.add_argument("--model", type=Path, metavar="FOLDER", help="what save_pretrained wrote, with its tokenizer")
    of.add_argument("--text", type=Path, metavar="FILE", help="UTF-8 text, all of which is one stream of tokens")
    of.add_argument(
        "--l-train",
        type=parse_count,
        metavar="N",
        help="tokens of a training sequence (default: the model's max_position_embeddings)",
    )
    return parser


def names_a_model(words: Sequence[str]) -> bool:
    """Whether a command line has --model."""
    return any(word.split("=")[0] == "--model" for word in words)


def parse(arguments: Optional[Sequence[str]] = None, prog: str = PROGRAM) -> argparse.Namespace:
    """The arguments; argparse's error for those that do not belong together."""
    accepted = parser(prog)
    args = accepted.parse_args(arguments)
    of_checkpoint = {
        "DATA_BIN": args.data,
        "--path": args.path,
        "--per-line": args.per_line,
        "--subset": args.subset != accepted.get_default("subset"),
        "--position-encoding": args.position_encoding,
        "--trust-checkpoint": args.trust_checkpoint,
        "--ema": args.ema,
    }
    of_model = {"--text": args.text, "--l-train": args.l_train}
    needed = ("--text",) if args.model else ("DATA_BIN", "--path")
    missing = [name for name in needed if not {**of_checkpoint, **of_model}[name]]
    for name, value in (of_checkpoint if args.model else of_model).items():
        if value:
            belongs = "not allowed with --model" if args.model else "needs --model FOLDER, a model of transformers"
            accepted.error(f"argument {name}: {belongs}")
    if missing:
        accepted.error(f"the following arguments are required: {', '.join(missing)}")
    if not args.lengths and not args.per_line:
        accepted.error(f"one of the arguments --lengths{'' if args.model else ' --per-line'} is required")
    if args.output and not args.lengths:
        accepted.error("argument --output: needs --lengths, whose perplexities it holds")
    return args


def main(arguments: Optional[Sequence[str]] = None, prog: str = PROGRAM) -> int:
    args = parse(arguments, prog)
    if args.model:
        commands.require_hf()
    else:
        commands.require_fairseq()
    logging.getLogger("fairseq").setLevel(logging.WARNING)  # on import it recommends packages for speech
    writes = args.output or args.per_line
    with commands.progress_fails_nothing() if writes else contextlib.nullcontext():
        try:
            for file in filter(None, (args.output, args.per_line)):
                refuse_unwritable(file)
            result = _evaluate(args)
            if args.output:
                write_json(args.output, result)
        except (ValueError, OSError, ImportError) as error:  # the last where transformers is installed, and broken
            print(f"error: {error}", file=sys.stderr)
            return 2
        return 0


def _evaluate(args: argparse.Namespace) -> Dict[str, Any]:
    if args.model:
        from ..hf.evaluate import evaluate_folder

        return evaluate_folder(args)
    from ..plugin import evaluate

    return evaluate.evaluate_checkpoint(args)
