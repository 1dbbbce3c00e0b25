"""Compares cells of a results folder. All rows score the same text with the same seeds, so differences are paired.

Two rows are compared seed by seed and stretch by stretch (see `evaluation.statistics`), from the losses that a table
keeps in NAME.stretches.npz. A table without them, published or made before 0.4, has less certain intervals.
"""

import itertools
import math
from collections import defaultdict
from pathlib import Path
from typing import Any, Dict, List, Mapping, NamedTuple, Optional, Tuple

import numpy as np
import pandas as pd

from ..evaluation.statistics import paired_difference, students_half_width
from . import results
from .configs import ATTENTION, LONGBENCH, RECALL, names, rows_of

TEXT, TEXT_AND_SEEDS, SEEDS, UNPAIRED = "text", "text and seeds", "seeds", "unpaired"
"""What an interval is of; TEXT alone if there is one seed, whose chance is then unknown."""


class Losses(NamedTuple):
    """Of a cell: the sums of each stretch, fp64 (stretches,), its tokens (stretches,), what perplexity counts."""

    nll: np.ndarray
    tokens: np.ndarray
    units: int

    @property
    def bits_per_character(self) -> Optional[float]:
        """None unless tokens are characters, of which perplexity counts the words."""
        tokens = int(self.tokens.sum())
        return None if self.units == tokens else float(self.nll.sum()) / tokens / math.log(2)


class Cell(NamedTuple):
    """A number of one seed, its 95% bootstrap interval, NaN if unknown, and the losses behind it, None if unknown."""

    value: float
    low: float
    high: float
    losses: Optional[Losses] = None


Where = Tuple[int, str, str, int]  # L_train, inference, row and length
Cells = Dict[Where, Dict[int, Cell]]  # then by seed


def load_cells(folder: Path, table: str) -> Cells:
    """The numbers of a table in a results folder, none if it is missing. ValueError if a column is missing."""
    losses = None
    if table == ATTENTION:
        keys = ["row", "seed", "l_train", "sequence_length"]
        heads = results.read_sheet(folder, ATTENTION, [*keys, "beyond"])
        if heads is None:
            return {}
        lines = heads.groupby(keys, as_index=False).beyond.mean().rename(columns={"beyond": "value"})
        lines = lines.assign(inference="full", low=math.nan, high=math.nan)
    elif table == RECALL:
        sheet = results.read_sheet(folder, RECALL)
        if sheet is None:
            return {}
        lines = sheet[sheet.sequence_length > sheet.l_train].rename(columns={"accuracy": "value"})
        lines = lines.assign(inference="full", sequence_length=lines.stop - 1)  # the largest distance
    elif table == LONGBENCH:
        sheet = results.read_sheet(folder, LONGBENCH)
        if sheet is None:
            return {}
        lines = sheet.rename(columns={"task": "row", "difference": "value"}).assign(inference="full", seed=1)
    else:
        read = _read_cells(folder, table)
        if read is None:
            return {}
        losses = results.read_stretches(folder, table, read)
        lines = read.rename(columns={"perplexity": "value"})
    cells: Cells = defaultdict(dict)
    for line in lines.dropna(subset=["value", "row"]).itertuples():
        where = (line.l_train, line.inference, line.row, line.sequence_length)
        cells[where][line.seed] = Cell(line.value, line.low, line.high, losses and losses_of(losses, line.Index))
    return dict(cells)


def load_labels(folder: Path, table: str) -> Dict[str, Dict[str, str]]:
    """The labels of each row of a table in a results folder, where a label d/N is a number."""
    read = _read_cells(folder, table)
    lines = [] if read is None else read.drop_duplicates("row").dropna(subset=["row"]).to_dict("records")
    return {line["row"]: {name: str(line[name]) for name in rows_of(table)[0].labels} for line in lines}


def _read_cells(folder: Path, table: str) -> "Optional[pd.DataFrame]":
    """`results.read_cells`, and the name of each line's row, None if configs/tables has none with its labels."""
    rows = rows_of(table)
    # Without num_shifts, a fraction of the head's width d, which is 128 in the paper and 64 in wikitext2-cpu.
    labels = [label for label in rows[0].labels if not any(row.labels[label].startswith("d/") for row in rows)]
    known = {tuple(row.labels[label] for label in labels): row.name for row in rows}
    if len(known) < len(rows):
        raise ValueError(f"table {table}: two rows differ only in a label d/N, which varies with the head's width")
    read = results.read_cells(folder, table, labels)
    if read is None:
        return None
    return read.assign(row=[known.get(key) for key in read[labels].itertuples(index=False, name=None)])


def losses_of(stretches: results.Stretches, line: int) -> Optional[Losses]:
    """The losses behind a line of a table's cells, None if they were not kept."""
    count = int((stretches.tokens[line] > 0).sum())
    nll, tokens = stretches.nll[line, :count].astype("float64"), stretches.tokens[line, :count]
    return Losses(nll, tokens, int(stretches.units[line])) if count else None


class Comparison(NamedTuple):
    """The ratio of two perplexities, or a number over 1; its 95% interval, the ratio itself if that is not known."""

    ratio: float
    low: float
    high: float
    known_by: str
    seeds: List[int]


def compare(of: Mapping[int, Cell], over: Mapping[int, Cell]) -> Comparison:
    """The geometric mean over the seeds that both have of the ratios of their perplexities.

    over: empty for the mean of the numbers themselves. Both by seed; at least one seed must be in both.
    """
    seeds = sorted(of.keys() & over.keys() if over else of)
    if not over:
        only = of[seeds[0]]
        if len(seeds) == 1 and not math.isnan(only.low):
            return Comparison(only.value, only.low, only.high, TEXT, seeds)
        values = np.array([of[seed].value for seed in seeds])
        mean, half = float(values.mean()), students_half_width(values)
        return Comparison(mean, mean - half, mean + half, SEEDS if len(seeds) > 1 else results.UNKNOWN, seeds)
    found = [(of[seed].losses, over[seed].losses) for seed in seeds]
    both = [(one, other) for one, other in found if one and other]
    tokens = both[0][0].tokens if both else np.zeros(0)
    alike = all(np.array_equal(of.tokens, tokens) for pair in both for of in pair)
    if alike and len(both) == len(seeds) and len(tokens) > 1:
        units = both[0][0].units
        difference = paired_difference(np.array([one.nll - other.nll for one, other in both]), tokens)
        ratio, low, high = (float(bound) for bound in np.exp(np.array(difference) * (tokens.sum() / units)))
        return Comparison(ratio, low, high, TEXT_AND_SEEDS if len(seeds) > 1 else TEXT, seeds)
    ratios = np.array([of[seed].value / over[seed].value for seed in seeds])
    ratio, known_by, half = math.prod(ratios) ** (1 / len(seeds)), SEEDS, students_half_width(np.log(ratios))
    if len(seeds) == 1:  # as if the two were independent; they share their text, so their ratio varies less
        cells = [by_seed[seed] for by_seed in (of, over) for seed in seeds]
        half = math.hypot(*(math.log(cell.high / cell.low) / 2 for cell in cells))
        known_by, half = (results.UNKNOWN, 0.0) if math.isnan(half) else (UNPAIRED, half)
    return Comparison(ratio, ratio * math.exp(-half), ratio * math.exp(half), known_by, seeds)


def pairs(folder: Path) -> pd.DataFrame:
    """The sheet ``pairs``: each two rows of a table at L_train and at the longest length, whole and in sliding windows.

    ratio is the row's perplexity over the other's. ahead is the one with the lower perplexity, empty if the interval of
    the ratio holds 1. Tables without stretches are left out.
    """
    lines: List[Dict[str, Any]] = []
    for table, cells in _tables(folder):
        for inference, l_train in itertools.product(("full", "sliding"), sorted({where[0] for where in cells})):
            found = {where: seeds for where, seeds in cells.items() if where[:2] == (l_train, inference)}
            for length in sorted({l_train, max((length for *_, length in found), default=l_train)}):
                rows = {row: seeds for (_, _, row, at), seeds in found.items() if at == length}
                for row, other in itertools.combinations(rows, 2):
                    if rows[row].keys() & rows[other].keys():
                        told = compare(rows[row], rows[other])
                        ahead = row if told.high < 1 else other if told.low > 1 else ""
                        line = {"table": table, "inference": inference, "l_train": l_train, "sequence_length": length}
                        numbers = {**told._asdict(), "seeds": len(told.seeds)}
                        lines.append({**line, "row": row, "other": other, **numbers, "ahead": ahead})
    return pd.DataFrame(lines, columns=results.PAIRS)


def context(folder: Path) -> pd.DataFrame:
    """The sheet ``context``: what a row gains by windows longer than L_train, in sliding-window inference.

    gain: the loss with windows of L_train minus that with longer ones, in nats a token, of the same tokens. Those have
    L_train - S to L_train - 1 tokens before them in the shorter windows. So a row that gains nothing uses nothing that
    lies further back than L_train; what one gains may in part be the last S tokens within it. A line for each seed and,
    of several, one for their mean, whose seed is empty.
    """
    lines: List[Dict[str, Any]] = []
    for table, cells in _tables(folder):
        for (l_train, inference, row, window), seeds in cells.items():
            over = cells.get((l_train, inference, row, l_train), {})
            common = sorted(seeds.keys() & over.keys())
            if inference != "sliding" or window <= l_train or not common:
                continue
            for some in [*([seed] for seed in common), *([common] if len(common) > 1 else [])]:
                told = compare({seed: over[seed] for seed in some}, {seed: seeds[seed] for seed in some})
                losses = over[common[0]].losses
                per_token = losses.units / losses.tokens.sum() if losses else math.nan
                gain, low, high = (math.log(bound) * per_token for bound in (told.ratio, told.low, told.high))
                line = {"table": table, "row": row, "seed": some[0] if len(some) == 1 else None, "l_train": l_train}
                numbers = {"window": window, "gain": gain, "low": low, "high": high, "known_by": told.known_by}
                lines.append({**line, **numbers})
    return pd.DataFrame(lines, columns=results.CONTEXT).astype({"seed": "Int64"})


def _tables(folder: Path) -> List[Tuple[str, Cells]]:
    """The tables of configs/tables that the folder has with the losses of stretches."""
    kept = [table for table in names("tables") if results.table_files(folder, table)[4].is_file()]
    return [(table, load_cells(folder, table)) for table in kept]
