"""Runs to tables: wide as the paper prints them, tidy with the columns of the paper's CSV, and Markdown beside it.

A run's result is the JSON that `evaluation` writes; a row of a table says by its labels (method, or wavelet and scales)
what it is the result of.
"""

from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Optional, Union

import pandas as pd

PAPER_CORPUS = "wikitext-103"
_BLOCKS = {
    "non-overlapping": "Perplexity in non-overlapping inference with L_train",
    "full": "Perplexity without non-overlapping inference",
}
_CELL = ["inference", "l_train", "sequence_length", "perplexity"]


class RowResult(NamedTuple):
    """A table's row, by its labels, and what came of it: cells, or the word that stands in their place ("failed")."""

    labels: Dict[str, str]
    cells: Union[List[Dict[str, Any]], str]


def tidy(rows: List[RowResult], l_train: int, lengths: List[int]) -> pd.DataFrame:
    """A line per cell, with the columns of the paper's CSV; the perplexity of a row without cells is NaN."""
    lines = []
    for inference in _BLOCKS:
        for row in rows:
            cells = [] if isinstance(row.cells, str) else row.cells
            found = {cell["sequence_length"]: cell["perplexity"] for cell in cells if cell["inference"] == inference}
            lines += [
                (*row.labels.values(), inference, l_train, length, found.get(length, float("nan")))
                for length in lengths
            ]
    return pd.DataFrame(lines, columns=[*rows[0].labels, *_CELL])


def wide(rows: List[RowResult], l_train: int, lengths: List[int]) -> pd.DataFrame:
    """A row per inference and row, a column per length, two decimals, as the paper prints its tables."""
    return _pivot(tidy(rows, l_train, lengths), rows, beside={})


def _pivot(cells: pd.DataFrame, rows: List[RowResult], beside: Dict[tuple, float]) -> pd.DataFrame:
    """The printed cells, lengths side by side; what is found in `beside`, by all columns but the last, in brackets."""
    labels = list(rows[0].labels)
    instead = {tuple(row.labels.values()): row.cells for row in rows if isinstance(row.cells, str)}

    def printed(cell) -> str:
        paper = beside.get(tuple(cell[:-1]))
        shown = instead.get(tuple(cell[: len(labels)])) or f"{cell.perplexity:.2f}"
        return shown if paper is None else f"{shown} ({paper:.2f})"

    index = ["inference", *labels]
    order = cells[index].drop_duplicates()
    table = cells.assign(perplexity=[printed(cell) for cell in cells.itertuples(index=False)]).pivot(
        index=index, columns="sequence_length", values="perplexity"
    )
    table.columns = [str(length) for length in table.columns]
    return order.merge(table.reset_index(), on=index)


def markdown(
    rows: List[RowResult], l_train: int, lengths: List[int], title: str, corpus: str, paper: Optional[Path]
) -> str:
    """The wide table as Markdown, a block per inference; where the paper has the same cell it stands in brackets.

    paper: CSV with the paper's cells, its columns those of `tidy`. A cell is the same if the corpus is and all columns.
    """
    cells = tidy(rows, l_train, lengths)
    beside: Dict[tuple, float] = {}
    if paper is not None and corpus == PAPER_CORPUS:
        published = pd.read_csv(paper, dtype=dict.fromkeys(rows[0].labels, str))[list(cells.columns)]
        beside = {tuple(cell[:-1]): cell[-1] for cell in published.itertuples(index=False, name=None)}
    lines = [f"# {title}", "", f"{corpus}, validation set, L_train = {l_train}."]
    if beside.keys() & {tuple(cell[:-1]) for cell in cells.itertuples(index=False, name=None)}:
        lines[-1] += " The paper's number stands in brackets."
    table = _pivot(cells, rows, beside)
    for inference, caption in _BLOCKS.items():
        block = table[table.inference == inference].drop(columns="inference")
        lines += ["", f"## {caption}", "", block.to_markdown(index=False, disable_numparse=True)]
    return "\n".join(lines) + "\n"


def write_tables(
    folder: Path,
    name: str,
    title: str,
    corpus: str,
    rows: List[RowResult],
    l_train: int,
    lengths: List[int],
    paper: Optional[Path],
) -> str:
    """Writes name.csv (wide), name.tidy.csv and name.md into `folder`; returns the Markdown (see there)."""
    text = markdown(rows, l_train, lengths, title, corpus, paper)
    folder.mkdir(parents=True, exist_ok=True)
    wide(rows, l_train, lengths).to_csv(folder / f"{name}.csv", index=False)
    tidy(rows, l_train, lengths).to_csv(folder / f"{name}.tidy.csv", index=False)
    (folder / f"{name}.md").write_text(text, encoding="utf-8")
    return text
