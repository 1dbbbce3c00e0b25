"""A results folder: its files, their columns, and how several seeds are averaged.

RESULTS/PRESET holds, for each table, NAME.csv (wide, like the paper's), NAME.tidy.csv (a line per cell and seed),
NAME.stretches.npz (the losses behind each of these lines), NAME.md and NAME.manifest.json (what it was made from); also
the sheets attention.csv and positions.csv (probes), pairs.csv and context.csv (comparisons), growth.csv (checkpoints of
the training), recall.csv (accuracy over distance), wavelets.csv (learned scales and shifts), longbench.csv (what one
model scores above another), claims.md, claims.json, figures/ and report.html. The paper's own tables are such a folder,
with tidy tables called NAME.csv, and press2022.csv.
"""

import io
import re
import zipfile
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, Dict, List, NamedTuple, Optional, Sequence, Tuple

from ..common.errors import first_line
from ..common.files import PAPER, read_json, shown_path, write_json, write_whole

if TYPE_CHECKING:  # slow to import, and not needed for the status of runs
    import numpy as np
    import pandas as pd

UNKNOWN = "unknown"
"""What the interval of a comparison is known by if there is none; see `comparisons` for the others."""
CELL = ["inference", "l_train", "sequence_length"]
NUMBERS = ["perplexity", "low", "high"]
ATTENTION = ["row", "seed", "l_train", "sequence_length", "layer", "head", "mean_lag", "lag95", "beyond"]
POSITIONS = ["row", "l_train", "sequence_length", "start", "stop", "nll"]
PAIRS = ["table", *CELL, "row", "other", "ratio", "low", "high", "seeds", "known_by", "ahead"]
CONTEXT = ["table", "row", "seed", "l_train", "window", "gain", "low", "high", "known_by"]
GROWTH = ["row", "seed", "updates", "trained_tokens", *CELL[1:], "perplexity", "ratio", "low", "high", "known_by"]
RECALL = ["row", "seed", *CELL[1:], "start", "stop", "accuracy", "low", "high", "count"]
WAVELETS = ["row", "seed", "layer", "kind", "number", "before", "after"]
LONGBENCH = ["task", "metric", *CELL[1:], "score", "over_score", "difference", "low", "high", "count"]
SHEETS = {
    "attention": ATTENTION,
    "attention-combinations": ATTENTION,
    "positions": POSITIONS,
    "pairs": PAIRS,
    "context": CONTEXT,
    "growth": GROWTH,
    "recall": RECALL,
    "wavelets": WAVELETS,
    "longbench": LONGBENCH,
}
"""Files beside the tables, and their columns."""
_SINCE_0_5: Dict[str, Dict[str, Any]] = {
    "pairs": {"inference": "full"},
    "attention": {"seed": 1},
    "attention-combinations": {"seed": 1},
}
"""Columns that older sheets lack, and what these were of."""
_TEXT = ("inference", "table", "row", "other", "known_by", "ahead", "task", "metric", "kind")
_NUMERIC = {"seed", "stride", *NUMBERS, *CELL}.union(*SHEETS.values()).difference(_TEXT)
_WHILE_MADE = ["seed", "stride", "bits_per_character", "value", "mean", "std", "count", "shown"]
RESERVED_COLUMN = re.compile(r"\d+( std)?|" + "|".join({*CELL, *NUMBERS, *_WHILE_MADE}.union(*SHEETS.values())))
"""Names that no label may have: the columns beside the labels."""
PAPER_ONLY = ("press2022",)
"""The paper's folder has these besides the tables that this project makes."""
_TABLE1_METHODS = {"Rotary": "RoPE theta=10000"}  # the others are called as in Table 1, or are not there
MAX_STRETCHES = 128
"""Stretches of a cell in NAME.stretches.npz, which stays small enough to be committed."""


class Stretches(NamedTuple):
    """The losses behind a table's cells: cell by cell, the sums over consecutive stretches of the same text.

    nll: in nats, fp32 (cells, MAX_STRETCHES). tokens: int64, of the same shape; 0 after a cell's last stretch.
    units: int64 (cells,), what perplexity counts: tokens, or words of a corpus of characters; 0 if there are no losses.
    A cell's perplexity is exp(its sum of nll / units).
    """

    nll: "np.ndarray"
    tokens: "np.ndarray"
    units: "np.ndarray"

    @classmethod
    def empty(cls, cells: int) -> "Stretches":
        import numpy as np

        shape = (cells, MAX_STRETCHES)
        return cls(np.zeros(shape, "float32"), np.zeros(shape, "int64"), np.zeros(cells, "int64"))


def refuse_table_name(what: str, name: str) -> None:
    """Raises ValueError if a table called `name` would share its files with something else in a results folder."""
    if name in (*SHEETS, *PAPER_ONLY, "claims") or name.endswith((".tidy", ".manifest")):
        raise ValueError(f"{what} {name!r}: this name is taken by other files of a results folder")


def table_files(folder: Path, table: str) -> List[Path]:
    """The files of a table: wide, tidy, Markdown, manifest and stretches."""
    return [folder / f"{table}{ending}" for ending in (".csv", ".tidy.csv", ".md", ".manifest.json", ".stretches.npz")]


def table_names(folder: Path) -> List[str]:
    """The tables of a folder, in alphabetical order."""
    return sorted(path.name[: -len(".tidy.csv")] for path in folder.glob("*.tidy.csv"))


def write_table(
    folder: Path,
    table: str,
    wide: "pd.DataFrame",
    tidy: "pd.DataFrame",
    markdown: str,
    manifest: Dict[str, Any],
    stretches: "Optional[Stretches]",
) -> None:
    """Writes a table's files (see `table_files`), each whole or not at all; without stretches, an older file goes."""
    folder.mkdir(parents=True, exist_ok=True)
    wide_file, tidy_file, markdown_file, manifest_file, stretches_file = table_files(folder, table)
    write_whole(wide_file, wide.to_csv(index=False))
    write_whole(tidy_file, tidy.to_csv(index=False))
    write_whole(markdown_file, markdown)
    write_json(manifest_file, manifest)
    if stretches is not None:
        import numpy as np

        packed = io.BytesIO()
        np.savez_compressed(packed, **stretches._asdict())
        write_whole(stretches_file, packed.getvalue())
    elif stretches_file.exists():
        stretches_file.unlink()


def read_stretches(folder: Path, table: str, cells: "pd.DataFrame") -> Optional[Stretches]:
    """The losses behind a table's cells (see `read_cells`), None if there are none, as in the paper and before 0.4.

    Raises ValueError if the file is not of these cells.
    """
    import numpy as np

    path = table_files(folder, table)[4]
    if not path.is_file():
        return None
    try:
        with np.load(path, allow_pickle=False) as file:
            stretches = Stretches(*(file[name] for name in Stretches._fields))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{shown_path(path)} cannot be read: {first_line(error)}") from None
    known = stretches.units > 0
    if known.shape == (len(cells),) and stretches.nll.shape == stretches.tokens.shape == (len(cells), MAX_STRETCHES):
        perplexity = np.exp(stretches.nll.sum(axis=1, dtype="float64")[known] / stretches.units[known])
        if np.allclose(perplexity, cells.perplexity[known], rtol=1e-4):
            return stretches
    raise ValueError(f"{shown_path(path)} is not of {table}.tidy.csv: make the table again")


def read_manifest(folder: Path, table: str) -> Dict[str, Any]:
    """How a table was made; empty if that is not recorded."""
    return read_json(table_files(folder, table)[3]) or {}


def read_cells(folder: Path, table: str, labels: Sequence[str] = ()) -> "Optional[pd.DataFrame]":
    """A table's cells: its labels, seed, inference, l_train, sequence_length, perplexity, low, high, stride.

    labels: further required columns. Older tables lack the seed, which is 1, or the 95% interval or the stride of
    sliding windows, which are NaN. Returns None if there is no such table. Raises ValueError if a column is missing or
    a cell appears twice.
    """
    folders = [folder, PAPER] if folder.name == PAPER.name else [folder]
    paths = [place / f"{table}{ending}" for place in folders for ending in (".tidy.csv", ".csv")]
    path = next((path for path in paths if path.is_file()), None)
    if path is None:
        return None
    cells = _read_csv(path, [*labels, "l_train", "inference", "sequence_length", "perplexity"])
    labels = labels_of(cells)
    cells = cells.assign(**{name: float("nan") for name in ("seed", "low", "high", "stride") if name not in cells})
    cells = cells.fillna({"seed": 1}).astype({"seed": int})
    cells.loc[cells.low == cells.high, ["low", "high"]] = float("nan")  # up to 0.2.3: of one sequence
    keys = [*labels, "seed", *CELL]
    twice = cells[cells.duplicated(keys)]
    if len(twice):
        cell = twice.iloc[0]
        raise ValueError(
            f"{shown_path(path)} has two numbers of {', '.join(cell[labels])}, seed {cell.seed}, at "
            f"{cell.sequence_length}"
        )
    return cells[[*keys, *NUMBERS, "stride"]]


def read_press(split: str = "valid") -> Dict[Tuple[str, str, int, int, int], float]:
    """Perplexities that other papers have of the paper's model on WikiText-103, by method, `CELL` and stride (or 0).

    Those of Press et al. (2022), whose settings Table 1 took over, and of Chi et al. (2022, KERPLE). Methods are called
    as in Table 1. Up to L_train both of the paper's inferences have a number.
    """
    cells = _read_csv(PAPER / "press2022.csv", ["method", *CELL, "stride", "split", "perplexity"])
    cells = cells[cells.split == split].replace({"method": _TABLE1_METHODS}).fillna({"stride": 0})
    found = dict(zip(cells[["method", *CELL, "stride"]].itertuples(index=False, name=None), cells.perplexity))
    alike = {
        (name, "non-overlapping", l_train, n, stride): perplexity
        for (name, inference, l_train, n, stride), perplexity in found.items()
        if inference == "full" and n <= l_train
    }
    return {**found, **alike}


def labels_of(cells: "pd.DataFrame") -> List[str]:
    """The columns of a table of cells that are labels."""
    return [column for column in cells if column not in (*CELL, *NUMBERS, "seed", "stride", "bits_per_character")]


def over_seeds(cells: "pd.DataFrame", keys: Sequence[str]) -> "pd.DataFrame":
    """A line for each value of the keys, in order of appearance: perplexity's mean, std (NaN for one seed), count."""
    return cells.groupby(list(keys), sort=False).perplexity.agg(["mean", "std", "count"]).reset_index()


def of_common_seeds(cells: "pd.DataFrame", keys: Sequence[str]) -> "pd.DataFrame":
    """The cells of those seeds that all values of the keys have; all cells, if there is no such seed."""
    if "seed" not in cells:
        return cells
    seeds = [set(of) for of in cells.dropna(subset=["perplexity"]).groupby(list(keys)).seed.unique()]
    common = set.intersection(*seeds) if seeds else set()
    return cells[cells.seed.isin(common)] if common else cells


def read_sheet(folder: Path, sheet: str, columns: Sequence[str] = ()) -> "Optional[pd.DataFrame]":
    """The lines of one of SHEETS, None if it was not made.

    columns: the required ones (default: all of the sheet's). Raises ValueError if one is missing.
    """
    path = sheet_file(folder, sheet)
    if not path.is_file():
        return None
    added = _SINCE_0_5.get(sheet, {})
    lines = _read_csv(path, [column for column in columns or SHEETS[sheet] if column not in added])
    return lines.assign(**{name: value for name, value in added.items() if name not in lines})


def write_sheet(folder: Path, sheet: str, lines: "pd.DataFrame") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(sheet_file(folder, sheet), lines[SHEETS[sheet]].to_csv(index=False))


def sheet_file(folder: Path, sheet: str) -> Path:
    return folder / f"{sheet}.csv"


def read_claims(folder: Path) -> List[Dict[str, Any]]:
    """The judged claims, none if there are none yet."""
    return read_json(folder / "claims.json") or []


def write_claims(folder: Path, judged: List[Dict[str, Any]], markdown: str) -> None:
    write_json(folder / "claims.json", judged)
    write_whole(folder / "claims.md", markdown)


def _read_csv(path: Path, required: Sequence[str]) -> "pd.DataFrame":
    """A CSV with these columns; texts stay unchanged, numbers become numbers. Raises ValueError if it is invalid."""
    import pandas as pd

    try:
        lines = pd.read_csv(path, dtype=str, keep_default_na=False)
        for column in _NUMERIC.intersection(lines):
            lines[column] = lines[column].map(_number)
    except ValueError as error:  # pandas' errors are ValueErrors
        raise ValueError(f"{shown_path(path)} cannot be read: {error}") from None
    missing = [column for column in required if column not in lines]
    if missing or lines.empty:
        what = f"column {', '.join(missing)}" if missing else "lines"
        raise ValueError(f"{shown_path(path)} has no {what}")
    return lines


def _number(text: str) -> float:
    """A number to its last digit, which pandas' own reader does not promise; NaN for an empty text."""
    return int(text) if text.isdigit() else float(text or "nan")
