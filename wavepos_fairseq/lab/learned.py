"""The scales and shifts that a preset's trained rows learned: the sheet ``wavelets`` (see `evaluation.probes`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Callable, Dict, Tuple

import pandas as pd

from ..common import commands
from ..common.errors import prefixing_errors
from ..common.files import refuse_unwritable, shown_path
from . import results
from .configs import Preset
from .palette import in_order
from .recall import finished_checkpoints
from .runs import read_result

SHEET = "wavelets"


def measure(folder: Path, preset: Preset, runs: Path, opened: Callable[[Path], Tuple[Any, Any]]) -> pd.DataFrame:
    """The sheet ``wavelets`` in `folder`, of each finished run that was trained with --wavelet-learn.

    A run that is gone keeps its lines. opened: gives a checkpoint's scorer and a text, as
    `plugin.checkpoint.open_checkpoint` does. Raises ValueError if there is neither a line nor such a run.
    """
    sheet = results.read_sheet(folder, SHEET)
    lines: Dict[Tuple[str, int], Any] = {}
    for line in [] if sheet is None else sheet.to_dict("records"):
        lines.setdefault((line["row"], line["seed"]), []).append(line)
    for (row, seed), path in finished_checkpoints(runs, preset, folder.name).items():
        result = read_result(path.parent)
        if result and "--wavelet-learn" in result["training_command"]:
            commands.require_fairseq()
            from ..evaluation.probes import learned_wavelets

            with prefixing_errors(shown_path(path)):
                found = learned_wavelets(opened(path)[0].model)
            lines[row, seed] = [{"row": row, "seed": seed, **line} for line in found]
    ordered = [line for key in in_order(lines, lambda key: key) for line in lines[key]]
    if not ordered:
        raise ValueError(
            f"{shown_path(runs / folder.name)} has no finished run with --wavelet-learn; run scripts/reproduce.sh "
            "learned first"
        )
    refuse_unwritable(results.sheet_file(folder, SHEET))
    results.write_sheet(folder, SHEET, pd.DataFrame(ordered))
    return pd.DataFrame(ordered)
