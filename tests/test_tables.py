"""Tables from runs, checked with the paper's own cells as if they were ours."""

from pathlib import Path

import pandas as pd
import pytest

from wavepos_fairseq import tables

PAPER = Path(__file__).resolve().parents[1] / "results" / "paper" / "table1.csv"
LENGTHS = [128, 256, 512, 1012, 1512, 2512]
METHODS = ["NoPE", "ALiBi", "Wavelet Ricker"]


@pytest.fixture
def paper():
    cells = pd.read_csv(PAPER)
    return cells[(cells.l_train == 512) & cells.method.isin(METHODS)]


@pytest.fixture
def rows(paper):
    return [
        tables.RowResult(method, block.position.iloc[0], block.drop(columns=["method", "position"]).to_dict("records"))
        for method, block in paper.groupby("method", sort=False)
    ]


def test_tidy_table_of_the_papers_cells_is_the_papers_csv(paper, rows):
    pd.testing.assert_frame_equal(tables.tidy(rows, 512, LENGTHS), paper.reset_index(drop=True))


def test_wide_table_has_the_papers_rows_and_columns(rows):
    table = tables.wide(tables.tidy(rows, 512, LENGTHS))
    assert list(table.columns) == ["inference", "method", "position", *map(str, LENGTHS)]
    assert list(table.method) == 2 * METHODS
    ricker = table[(table.method == "Wavelet Ricker") & (table.inference == "full")].iloc[0]
    assert list(ricker[3:]) == ["23.64", "20.82", "19.19", "18.23", "18.00", "17.99"]  # Table 1, as printed


def test_markdown_shows_the_papers_number_only_beside_the_same_cell(paper, rows):
    cells = tables.tidy(rows, 512, LENGTHS).assign(perplexity=lambda c: c.perplexity + 1)
    same_corpus = tables.markdown(cells, "Table 1", "wikitext-103", pd.read_csv(PAPER))
    assert "| 49.48 (48.48) |" in same_corpus
    other_corpus = tables.markdown(cells, "Table 1", "wikitext-2", pd.read_csv(PAPER))
    assert "| 49.48 " in other_corpus and "(48.48)" not in other_corpus
    other_l_train = tables.markdown(cells.assign(l_train=256), "Table 1", "wikitext-103", pd.read_csv(PAPER))
    assert "(48.48)" not in other_l_train


def test_failed_row_is_marked_and_the_others_keep_their_numbers(tmp_path, rows):
    rows[1] = rows[1]._replace(cells=None)
    text = tables.write_tables(tmp_path, "table1", "Table 1", "wikitext-103", rows, 512, LENGTHS, PAPER)
    wide = pd.read_csv(tmp_path / "table1.csv", dtype=str).set_index(["inference", "method"])
    assert set(wide.loc[("full", "ALiBi")][1:]) == {"failed"}
    assert wide.loc[("full", "NoPE")]["2512"] == "48.48"
    tidy = pd.read_csv(tmp_path / "table1.tidy.csv")
    assert list(tidy.columns) == list(pd.read_csv(PAPER).columns)
    assert tidy[tidy.method == "ALiBi"].perplexity.isna().all()
    assert "failed (19.69)" in text and text == (tmp_path / "table1.md").read_text(encoding="utf-8")
