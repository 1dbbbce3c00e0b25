"""Recall over distance of a preset's trained rows: the sheet ``recall`` (see `evaluation.recall`)."""

from __future__ import annotations

import sys
from itertools import chain
from operator import itemgetter
from pathlib import Path
from typing import Any, Callable, Dict, List, Tuple

import pandas as pd

from ..common import commands
from ..common.errors import prefixing_errors
from ..common.files import refuse_unwritable, shown_path
from ..data.recall import KEYS, VALUES
from ..plugin.streams import tokens_of
from . import results
from .configs import RECALL, Preset
from .palette import in_order
from .runs import finished_checkpoint, runs_of

Finished = Dict[Tuple[str, int], Path]
"""Checkpoints by row and seed."""


def finished_checkpoints(runs: Path, preset: Preset, name: str) -> Finished:
    """The checkpoints of the finished runs in RUNS/NAME and, of other seeds, RUNS/NAME-seedN: Table 1's rows first."""
    found = [((row, seed), finished_checkpoint(run, preset.checkpoint)) for row, seed, run in runs_of(runs, name)]
    return {key: path for key, path in in_order(found, lambda one: one[0]) if path}


def measure(folder: Path, preset: Preset, runs: Path, opened: Callable[[Path], Tuple[Any, Any]]) -> pd.DataFrame:
    """The sheet ``recall`` in `folder`, of each of `finished_checkpoints`, on the validation set.

    A run that the sheet has is not evaluated again, nor needed; the sheet is written after each one. opened: gives a
    checkpoint's scorer and the text, `plugin.checkpoint.open_checkpoint` for example. Raises ValueError if there is no
    finished run, or if the text is not of the corpus recall.
    """
    sheet = results.read_sheet(folder, RECALL)
    lines: List[Dict[Any, Any]] = [] if sheet is None else sheet.to_dict("records")
    known = {(line["row"], line["seed"]) for line in lines}
    missing = {key: path for key, path in finished_checkpoints(runs, preset, folder.name).items() if key not in known}
    if missing:
        commands.require_fairseq()
        from ..evaluation.recall import recall

        refuse_unwritable(results.sheet_file(folder, RECALL))
    for number, ((row, seed), path) in enumerate(missing.items(), 1):
        print(f"recall: {number} of {len(missing)}, {shown_path(path)}", file=sys.stderr, flush=True)
        with prefixing_errors(shown_path(path)):
            scorer, stream = opened(path)
            with prefixing_errors("not trained on the corpus recall"):
                keys, values = (
                    tokens_of(scorer.task.dictionary, symbols) for symbols in (KEYS, chain(*VALUES.values()))
                )
            measured = recall(scorer, stream, keys, values)
        lines += [{"row": row, "seed": seed, "l_train": scorer.l_train, **line} for line in measured]
        lines = in_order(lines, itemgetter("row", "seed", "sequence_length", "start"))
        results.write_sheet(folder, RECALL, pd.DataFrame(lines))
    if not lines:
        raise ValueError(f"{shown_path(runs / folder.name)} has no finished run; run scripts/reproduce.sh table1 first")
    return pd.DataFrame(lines)
