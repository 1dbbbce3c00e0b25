"""Runs to tables: wide as the paper prints them, tidy with the columns of the paper's CSV, and Markdown.

The tidy table has a line for each seed; the others show mean and standard deviation.
"""

import math
from typing import Any, Dict, Iterator, List, NamedTuple, Optional, Tuple, Union

import numpy as np
import pandas as pd

from ..evaluation.inferences import PAPERS_INFERENCES
from ..evaluation.statistics import STRETCH
from .results import CELL, MAX_STRETCHES, NUMBERS, Stretches, over_seeds, read_press

PAPER_CORPUS = "wikitext-103"
_BLOCKS = {
    "non-overlapping": "Perplexity in non-overlapping inference with L_train",
    "full": "Perplexity without non-overlapping inference",
    "sliding": "Perplexity with sliding windows",
}
_SPLITS = {"valid": "validation"}
_IN_RESULT = ["perplexity", "perplexity_low", "perplexity_high"]


class RowResult(NamedTuple):
    """A table's row, by its labels, trained with a seed: its cells, or a word instead ("failed")."""

    labels: Dict[str, str]
    seed: int
    cells: Union[List[Dict[str, Any]], str]


def tidy(rows: List[RowResult], l_train: int, lengths: List[int]) -> pd.DataFrame:
    """A line per seed and cell: the columns of the paper's CSV and the 95% interval. Missing numbers are NaN.

    Of characters it is the perplexity per word, the paper's unit, with bits_per_character beside it; sliding windows
    add their stride. See `evaluation.statistics.bootstrap_interval`.
    """
    lines = list(_lines(rows, lengths))
    characters = any(_is_of_characters(cell) for *_, cell in lines)
    keys = [f"word_{key}" for key in _IN_RESULT] + ["bits_per_character"] if characters else _IN_RESULT
    numbers = [
        (*row.labels.values(), row.seed, inference, l_train, length, *(cell.get(key, float("nan")) for key in keys))
        for inference, row, length, cell in lines
    ]
    names = [*NUMBERS, *(["bits_per_character"] if characters else [])]
    made = pd.DataFrame(numbers, columns=[*rows[0].labels, "seed", *CELL, *names])
    if any(cell.get("stride") for *_, cell in lines):
        made["stride"] = pd.array([cell.get("stride") for *_, cell in lines], dtype="Int64")
    return made


def stretches(rows: List[RowResult], lengths: List[int]) -> Optional[Stretches]:
    """The losses of each stretch of text, a line for each of `tidy`'s; None if the runs have none (before 0.4).

    Neighbouring stretches are added up until a cell has no more than `MAX_STRETCHES`.
    """
    cells = [cell for *_, cell in _lines(rows, lengths)]
    if not any(cell.get("stretch_nll") for cell in cells):
        return None
    made = Stretches.empty(len(cells))
    for number, cell in enumerate(cells):
        sums = np.array(cell.get("stretch_nll") or [])
        if len(sums):
            tokens = np.diff([*range(0, cell["tokens"], STRETCH), cell["tokens"]])
            joined = np.arange(0, len(sums), math.ceil(len(sums) / MAX_STRETCHES))
            made.nll[number, : len(joined)] = np.add.reduceat(sums, joined)
            made.tokens[number, : len(joined)] = np.add.reduceat(tokens, joined)
            made.units[number] = cell["words"] if _is_of_characters(cell) else cell["tokens"]
    return made


def _is_of_characters(cell: Dict[str, Any]) -> bool:
    return "bits_per_character" in cell


def _lines(rows: List[RowResult], lengths: List[int]) -> Iterator[Tuple[str, RowResult, int, Dict[str, Any]]]:
    """Inference, row, length and cell of each line of the tidy table. A missing cell is empty."""
    cells_of = [[] if isinstance(row.cells, str) else row.cells for row in rows]
    made = {cell["inference"] for cells in cells_of for cell in cells} or {*PAPERS_INFERENCES}
    for inference in _BLOCKS:
        for row, cells in zip(rows, cells_of):
            found = {cell["sequence_length"]: cell for cell in cells if cell["inference"] == inference}
            for length in lengths if inference in made else []:
                yield inference, row, length, found.get(length, {})


def _over_seeds(rows: List[RowResult], l_train: int, lengths: List[int]) -> pd.DataFrame:
    """A line per cell: mean and std of the perplexity, as text, and the number of seeds that have one.

    If no seed has one, the mean is the row's word, if any. If only one seed was asked for, std is None. Of characters
    there are the mean bits_per_character, too.
    """
    labels = list(rows[0].labels)
    words = {tuple(row.labels.values()): row.cells for row in rows if isinstance(row.cells, str)}
    lines = tidy(rows, l_train, lengths)
    cells = over_seeds(lines, [*labels, *CELL])
    if "bits_per_character" in lines:
        by_cell = lines.groupby([*labels, *CELL], sort=False)
        cells["bits_per_character"] = by_cell.bits_per_character.mean().to_numpy()
    several = len({row.seed for row in rows}) > 1
    cells["std"] = [f"{std:.2f}" if several and not math.isnan(std) else None for std in cells["std"]]
    cells["mean"] = [
        f"{mean:.2f}" if count else words.get(cell[: len(labels)], "")
        for mean, count, cell in zip(cells["mean"], cells["count"], cells.itertuples(index=False, name=None))
    ]
    return cells


def wide(rows: List[RowResult], l_train: int, lengths: List[int]) -> pd.DataFrame:
    """A line per inference and row, a column per length, two decimals, like the paper's tables.

    With several seeds it shows the mean, and a column of standard deviations for each length at the end.
    """
    cells = _over_seeds(rows, l_train, lengths)
    table = _side_by_side(cells, cells["mean"], rows)
    if cells["std"].notna().any():
        spread = _side_by_side(cells, cells["std"], rows).iloc[:, -len(lengths) :]
        table = table.join(spread.fillna("").add_suffix(" std"))
    return table


def _side_by_side(cells: pd.DataFrame, shown: "pd.Series[str]", rows: List[RowResult]) -> pd.DataFrame:
    index = ["inference", *rows[0].labels]
    order = cells[index].drop_duplicates()
    table = cells.assign(shown=shown).pivot(index=index, columns="sequence_length", values="shown")
    table.columns = [str(length) for length in table.columns]
    return order.merge(table.reset_index(), on=index)


def markdown(
    rows: List[RowResult],
    l_train: int,
    lengths: List[int],
    title: str,
    corpus: str,
    paper: Optional[pd.DataFrame],
    subset: str = "valid",
) -> str:
    """The wide table as Markdown, a block per inference. In brackets are published numbers of the same cell.

    paper: the paper's cells (see `results.read_cells`). Cells are the same if their corpus, its split `subset` and all
    columns are. Beside them are those of Press et al. (see `results.read_press`), with a dagger. Of characters, the
    brackets hold bits per character.
    """
    cells = _over_seeds(rows, l_train, lengths)
    keys = [*rows[0].labels, *CELL]
    seeds = sorted({row.seed for row in rows})
    shown = [mean if pd.isna(std) else f"{mean} ± {std}" for mean, std in zip(cells["mean"], cells["std"])]
    if "bits_per_character" in cells:
        bits = cells.bits_per_character
        shown = [text if math.isnan(number) else f"{text} ({number:.3f})" for text, number in zip(shown, bits)]
    shown = [
        text if count in (0, len(seeds)) else f"{text} ({count} of {len(seeds)} seeds)"
        for text, count in zip(shown, cells["count"])
    ]
    lines = [f"# {title}", "", f"{corpus}, {_SPLITS.get(subset, subset)} set, L_train = {l_train}."]
    if corpus.endswith("-characters"):
        lines[-1] += " Perplexity per word, and in brackets bits per character."
    if len(seeds) > 1:
        lines[-1] += f" Mean ± standard deviation over the seeds {', '.join(map(str, seeds))}."
    if corpus == PAPER_CORPUS:
        stride = next((int(cell["stride"]) for cell in _cells(rows) if cell.get("stride")), 0)
        beside, explained = _published(cells, paper if subset == "valid" else None, subset, keys, stride)
        shown = [f"{text} ({numbers})" if numbers else text for text, numbers in zip(shown, beside)]
        lines[-1] += explained
    table = _side_by_side(cells, pd.Series(shown), rows)
    for inference in cells.inference.unique():
        block = table[table.inference == inference].drop(columns="inference")
        caption = _BLOCKS[inference] + _scored(rows, inference)
        lines += ["", f"## {caption}", "", block.to_markdown(index=False, disable_numparse=True)]
    return "\n".join(lines) + "\n"


def _published(
    cells: pd.DataFrame, paper: Optional[pd.DataFrame], subset: str, keys: List[str], stride: int
) -> Tuple[List[str], str]:
    """The published numbers of each cell, as text, and what explains them, for those of which there are any."""
    papers, press = {} if paper is None else paper.set_index(keys).perplexity, read_press(subset)
    of_paper = [papers.get(key) for key in cells[keys].itertuples(index=False, name=None)]
    beside = cells.reindex(columns=["method", *CELL]).assign(stride=cells.inference.eq("sliding") * stride)
    of_press = [press.get(key) for key in beside.itertuples(index=False, name=None)]
    texts = [
        ", ".join(form.format(number) for form, number in (("{:.2f}", one), ("{:.2f}†", other)) if number is not None)
        for one, other in zip(of_paper, of_press)
    ]
    explained = ""
    if any(number is not None for number in of_paper):
        explained += " The paper's number stands in brackets."
    if any(number is not None for number in of_press):
        explained += " †: of Press et al. (2022) or, KERPLE, of Chi et al. (2022), of the same model and settings."
    return texts, explained


def _cells(rows: List[RowResult]) -> List[Dict[str, Any]]:
    return [cell for row in rows if not isinstance(row.cells, str) for cell in row.cells]


def _scored(rows: List[RowResult], inference: str) -> str:
    """What the caption says of the text that is scored, which may be a part of it."""
    cells = _cells(rows)
    windows = [cell for cell in cells if cell["inference"] == inference]
    if inference != "sliding":
        several = len({cell.get("tokens") for cell in windows}) > 1
        each = windows[0]["tokens"] // windows[0]["sequence_length"] if several else 0
        return f", on the first {each:,} sequences of each length" if several else ""
    tokens = max(cell["tokens"] for cell in cells)
    text = f" that score {windows[0]['stride']} tokens each" if windows[0].get("stride") else ""
    return text + (f", on the first {windows[0]['tokens']:,} tokens" if windows[0]["tokens"] < tokens else "")
