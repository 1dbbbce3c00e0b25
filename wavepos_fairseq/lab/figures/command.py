"""Draws figures as SVG and PNG: of formulas or, with --preset or --path, of trained models.

    wavepos figures [--output DIR] [NAME ...]
    wavepos figures --preset wikitext2-cpu [NAME ...]
    wavepos figures --path runs/mine/checkpoint_last.pt --data data/wikitext-2 [NAME ...]

`formulas` and `trained` draw them; they are imported only when needed, because help needs neither.
"""

import argparse
import logging
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Iterable, Sequence, Tuple

from ...common import commands
from ...common.files import ROOT

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMULAS = (
    *("figure4", "figure5", "figure6", "figure9", "figure10"),
    *("basis-ricker", "basis-gaussian", "basis-morlet", "basis-haar", "basis-db4", "singular-values"),
)
TABLES = (
    *("perplexity", "perplexity-table2", "perplexity-table3", "perplexity-combinations", "perplexity-beyond"),
    *("pairs", "context", "longbench"),
)
MEASURED = ("positions", "receptive-field", "receptive-field-combinations")
GROWTH, RECALL, WAVELETS = "growth", "recall", "wavelets"
MAP = "attention-"


def main(arguments=None) -> int:
    parser = commands.parser(__doc__, prog="wavepos figures")
    formulas = f"default: all of {', '.join(FORMULAS)}"
    trained = f"with --preset {', '.join([*TABLES, *MEASURED, GROWTH, RECALL, WAVELETS, f'{MAP}ROW'])}"
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"{formulas}; {trained}")
    parser.add_argument("--output", type=Path, metavar="DIR", help="formulas' folder (default: results/figures)")
    group = parser.add_argument_group("trained models")
    of = group.add_mutually_exclusive_group()
    of.add_argument("--preset", help="preset whose tables and runs are drawn; paper: the paper's own tables")
    of.add_argument("--path", type=Path, metavar="CHECKPOINT", help="a checkpoint of a language model, with --data")
    group.add_argument("--runs", type=Path, help="folder of the runs (default: runs)")
    group.add_argument("--results", type=Path, help="folder of the tables (default: results)")
    group.add_argument("--data", type=Path, help="data-bin folder (default: data/CORPUS)")
    reads = "as for python -m wavepos_fairseq.evaluation"
    group.add_argument("--position-encoding", metavar="NAME", help=reads)
    group.add_argument("--trust-checkpoint", action="store_true", help=reads)
    group.add_argument("--text", help=f"text for {MAP}ROW instead of the validation set; draws {MAP}ROW-text")
    group.add_argument(
        "--threshold", type=float, help=f"from where {MAP}ROW is black (default: 1 / tokens; paper: 0.001)"
    )
    args = parser.parse_args(arguments)
    if args.preset is None and args.path is None:
        return _formulas(parser, args)
    return _trained(parser, args)


def _formulas(parser: argparse.ArgumentParser, args: argparse.Namespace) -> int:
    for name in ("runs", "results", "data", "position_encoding", "trust_checkpoint", "text", "threshold"):
        if getattr(args, name) not in (None, False):
            parser.error(f"--{name.replace('_', '-')} needs --preset or --path")
    _refuse_unknown(parser, args.names, FORMULAS)
    commands.require_lab("matplotlib")
    if "torch" not in sys.modules:  # PyTorch reads it on import; the singular values' last digits depend on it
        os.environ["OMP_NUM_THREADS"] = "1"
    from .formulas import FIGURES

    output = args.output or ROOT / "results" / "figures"
    return _save(((name, FIGURES[name]()) for name in args.names or FIGURES), output)


def _trained(parser: argparse.ArgumentParser, args: argparse.Namespace) -> int:
    if args.output is not None:
        parser.error("--output is for formulas; figures of trained models go to RESULTS/PRESET/figures")
    if args.path and not args.data:
        parser.error("--path needs --data, the data-bin folder")
    args.runs, args.results = args.runs or ROOT / "runs", args.results or ROOT / "results"
    args.folder = args.results / (args.preset or args.path.resolve().parent.name)
    if args.path:
        _refuse_unknown(parser, args.names, [*MEASURED, f"{MAP}{args.folder.name}"])
    else:
        named = [name for name in args.names if not name.startswith(MAP)]
        _refuse_unknown(parser, named, [*TABLES, *MEASURED, GROWTH, RECALL, WAVELETS, f"{MAP}ROW"])
    if args.threshold is not None and not args.threshold > 0:
        parser.error(f"--threshold {args.threshold}: accepted are weights > 0")
    commands.require_lab("matplotlib")
    for library in ("fairseq", "matplotlib"):  # importing fairseq turns on the log messages of all
        logging.getLogger(library).setLevel(logging.WARNING)
    from ...positions import position_parts
    from .trained import draw_figures

    if args.position_encoding is not None:
        try:
            position_parts(args.position_encoding)
        except ValueError as error:
            parser.error(str(error).replace("position_encoding=", "--position-encoding "))
    return _save(draw_figures(args), args.folder / "figures")


def _refuse_unknown(parser: argparse.ArgumentParser, names: Sequence[str], accepted: Sequence[str]) -> None:
    for name in names:
        if name not in accepted:
            parser.error(f"{name!r} is unknown; accepted are {', '.join(accepted)}")


def _save(figures: "Iterable[Tuple[str, Figure]]", output: Path) -> int:
    """Writes each figure as soon as it is drawn and prints its paths; if that fails, status 2 and one line."""
    from .style import save

    with commands.progress_fails_nothing():
        try:
            for name, figure in figures:
                output.mkdir(parents=True, exist_ok=True)
                for path in save(figure, output, name):
                    print(path, flush=True)
        except (ValueError, OSError) as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
    return 0
