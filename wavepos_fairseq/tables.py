"""Runs to tables: wide as the paper prints them, tidy with the columns of the paper's CSV, and Markdown beside it.

A run's result is the JSON that `evaluation` writes; a row of a table names the method that it is the result of.
"""

from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Optional

import pandas as pd

TIDY_COLUMNS = ["method", "position", "inference", "l_train", "sequence_length", "perplexity"]
PAPER_CORPUS = "wikitext-103"
_BLOCKS = {
    "non-overlapping": "Perplexity in non-overlapping inference with L_train",
    "full": "Perplexity without non-overlapping inference",
}
_FAILED = "failed"


class RowResult(NamedTuple):
    """A table's row and what came of it; `cells` is None where the row failed."""

    method: str
    position: str
    cells: Optional[List[Dict[str, Any]]]


def tidy(rows: List[RowResult], l_train: int, lengths: List[int]) -> pd.DataFrame:
    """A line per cell, with the columns of the paper's CSV; the perplexity of a failed row is NaN."""
    lines = []
    for inference in _BLOCKS:
        for row in rows:
            cells = [cell for cell in row.cells or [] if cell["inference"] == inference]
            found = {cell["sequence_length"]: cell["perplexity"] for cell in cells}
            lines += [
                (row.method, row.position, inference, l_train, length, found.get(length, float("nan")))
                for length in lengths
            ]
    return pd.DataFrame(lines, columns=TIDY_COLUMNS)


def wide(cells: pd.DataFrame) -> pd.DataFrame:
    """A row per inference and method, a column per length, two decimals, as the paper prints its tables."""
    index = ["inference", "method", "position"]
    order = cells[index].drop_duplicates()
    table = cells.assign(perplexity=cells.perplexity.map(_printed)).pivot(
        index=index, columns="sequence_length", values="perplexity"
    )
    table.columns = [str(length) for length in table.columns]
    return order.merge(table.reset_index(), on=index)


def markdown(cells: pd.DataFrame, title: str, corpus: str, paper: pd.DataFrame) -> str:
    """The wide table as Markdown, a block per inference; where the paper has the same cell it stands in brackets.

    A cell is the same if corpus, method, inference, L_train and length are.
    """
    key = TIDY_COLUMNS[2:5] + ["method"]
    known = paper.set_index(key).perplexity.to_dict() if corpus == PAPER_CORPUS else {}
    beside = [known.get(cell) for cell in cells[key].itertuples(index=False, name=None)]
    shown = cells.assign(
        perplexity=[
            _printed(perplexity) + (f" ({number:.2f})" if number is not None else "")
            for perplexity, number in zip(cells.perplexity, beside)
        ]
    )
    (l_train,) = cells.l_train.unique()
    lines = [f"# {title}", "", f"{corpus}, validation set, L_train = {l_train}."]
    if any(number is not None for number in beside):
        lines[-1] += " The paper's number stands in brackets."
    for inference, caption in _BLOCKS.items():
        block = shown[shown.inference == inference]
        table = block.pivot(index="method", columns="sequence_length", values="perplexity")
        table = table.loc[block.method.drop_duplicates()].reset_index()
        positions = dict(zip(block.method, block.position))
        table.insert(1, "position", table.method.map(positions))
        lines += ["", f"## {caption}", "", table.to_markdown(index=False, disable_numparse=True)]
    return "\n".join(lines) + "\n"


def _printed(perplexity: float) -> str:
    return _FAILED if pd.isna(perplexity) else f"{perplexity:.2f}"


def write_tables(
    folder: Path,
    name: str,
    title: str,
    corpus: str,
    rows: List[RowResult],
    l_train: int,
    lengths: List[int],
    paper: Path,
) -> str:
    """Writes name.csv (wide), name.tidy.csv and name.md into `folder`; returns the Markdown.

    paper: CSV with the paper's cells, its columns those of name.tidy.csv.
    """
    cells = tidy(rows, l_train, lengths)
    text = markdown(cells, title, corpus, pd.read_csv(paper))
    folder.mkdir(parents=True, exist_ok=True)
    wide(cells).to_csv(folder / f"{name}.csv", index=False)
    cells.to_csv(folder / f"{name}.tidy.csv", index=False)
    (folder / f"{name}.md").write_text(text, encoding="utf-8")
    return text
