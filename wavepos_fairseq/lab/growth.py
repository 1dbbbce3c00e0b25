"""How perplexities change while a run trains: the sheet ``growth``, from the checkpoints that the run kept.

fairseq keeps all checkpoints of --save-interval-updates, unless --keep-interval-updates says how many. Each is
evaluated as the run itself, with the preset's options for the evaluation, in full inference at L_train and at the
preset's longest length.
"""

from __future__ import annotations

import contextlib
import re
import sys
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Sequence, Tuple

import pandas as pd

from ..common import commands
from ..common.errors import prefixing_errors
from ..common.files import refuse_unwritable, shown_path
from ..plugin.options import as_arguments
from . import evaluate, results, tables
from .comparisons import Cell, compare, losses_of
from .configs import Preset
from .palette import in_order
from .runs import runs_of

SHEET = "growth"


class Kept(NamedTuple):
    """A checkpoint in the middle of a run's training."""

    row: str
    seed: int
    updates: int
    path: Path


def kept_checkpoints(runs: Path, name: str) -> List[Kept]:
    """The checkpoints of each run in RUNS/NAME and, of other seeds, RUNS/NAME-seedN that kept at least two of them.

    Table 1's rows come first, then the seeds and updates in order.
    """
    kept, left_out = [], []
    for row, seed, run in runs_of(runs, name):
        named = ((re.fullmatch(r"checkpoint_\d+_(\d+)\.pt", path.name), path) for path in run.iterdir())
        by_updates = {int(updates.group(1)): path for updates, path in named if updates}
        if len(by_updates) < 2:
            left_out.append(shown_path(run))
        else:
            kept += [Kept(row, seed, *item) for item in by_updates.items()]
    if kept and left_out:
        print(f"{', '.join(left_out)} kept fewer than two checkpoints: left out", file=sys.stderr, flush=True)
    return in_order(kept, lambda of: of[:3])


def measure(folder: Path, preset: Preset, runs: Path, data: Path, options: Sequence[str] = ()) -> pd.DataFrame:
    """The sheet ``growth`` in `folder`: two lines for each of `kept_checkpoints`, at L_train and the longest length.

    ratio is the perplexity over the same checkpoint's at L_train, with the 95% interval that another text would give.
    A checkpoint that the sheet has is not evaluated again, nor needed; the sheet is written after each one. options:
    further ones of the evaluation. Raises ValueError if there is no such checkpoint, or no length longer than L_train.
    """
    lengths = [preset.l_train, max(preset.lengths)]
    if lengths[0] == lengths[1]:
        raise ValueError(f"preset {preset.name} has no length > l_train {preset.l_train}")
    sheet = results.read_sheet(folder, SHEET)
    known = [] if sheet is None else sheet.to_dict("records")
    lines = {_key(line): line for line in known if line["sequence_length"] in lengths}
    kept = kept_checkpoints(runs, folder.name)
    missing = [of for of in kept if not {(of.row, of.seed, of.updates, length) for length in lengths} <= lines.keys()]
    if missing:
        commands.require_fairseq()
        refuse_unwritable(results.sheet_file(folder, SHEET))
    for number, of in enumerate(missing, 1):
        print(f"growth: {number} of {len(missing)}, {shown_path(of.path)}", file=sys.stderr, flush=True)
        with prefixing_errors(shown_path(of.path)):
            measured = _evaluated(preset, lengths, of, data, options)
        lines.update({_key(line): line for line in measured})
        results.write_sheet(folder, SHEET, pd.DataFrame(in_order(lines.values(), _key)))
    if not lines:
        raise ValueError(
            f"{shown_path(runs / folder.name)} has no run with two checkpoints of --save-interval-updates; run "
            "scripts/reproduce.sh with a preset that has it without keep-interval-updates (wikitext2-chars-cpu-long)"
        )
    return pd.DataFrame(in_order(lines.values(), _key))


def _key(line: Dict[Any, Any]) -> Tuple[str, int, int, int]:
    return line["row"], line["seed"], line["updates"], line["sequence_length"]


def _evaluated(
    preset: Preset, lengths: List[int], of: Kept, data: Path, options: Sequence[str]
) -> List[Dict[str, Any]]:
    """The checkpoint's lines of the sheet."""
    from ..plugin import evaluate as of_checkpoints

    words = [str(data), "--path", str(of.path), "--lengths", ",".join(map(str, lengths))]
    args = evaluate.parse([*words, *as_arguments(preset.evaluate), "--inference", "full", *options])
    with contextlib.redirect_stdout(sys.stderr):
        rows = [tables.RowResult({}, of.seed, of_checkpoints.evaluate_checkpoint(args)["cells"])]
    numbers = tables.tidy(rows, preset.l_train, lengths).astype(dict.fromkeys(results.NUMBERS, float))
    losses = tables.stretches(rows, lengths)
    cells = [
        Cell(line.perplexity, line.low, line.high, losses and losses_of(losses, line.Index))
        for line in numbers.itertuples()
    ]
    run = {"row": of.row, "seed": of.seed, "updates": of.updates, "l_train": preset.l_train}
    run["trained_tokens"] = of.updates * preset.tokens_per_update
    told = [compare({of.seed: cell}, {of.seed: cells[0]}) for cell in cells]
    return [
        {**run, "sequence_length": length, "perplexity": cell.value, **over_l_train._asdict()}
        for length, cell, over_l_train in zip(lengths, cells, told)
    ]
