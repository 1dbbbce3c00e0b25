"""Tables from runs, checked with the paper's own cells as if they were ours."""

import re
from pathlib import Path

import pandas as pd
import pytest

from wavepos_fairseq.lab import tables
from wavepos_fairseq.lab.configs import load_table
from wavepos_fairseq.lab.results import read_cells, write_table

PAPER = Path(__file__).resolve().parents[1] / "results" / "paper"
LENGTHS = [128, 256, 512, 1012, 1512, 2512]
METHODS = ["NoPE", "ALiBi", "Wavelet Ricker"]
TABLE3_LABELS = ["wavelet", "scale_exponents", "num_shifts"]


def rows_of(paper, labels):
    """The paper's cells as if runs had given them."""
    rows = []
    for values, block in paper.groupby(labels, sort=False):
        texts = dict(zip(labels, map(str, values)))
        rows.append(tables.RowResult(texts, 1, block.drop(columns=labels).to_dict("records")))
    return rows


@pytest.fixture
def paper():
    cells = pd.read_csv(PAPER / "table1.csv")
    return cells[(cells.l_train == 512) & cells.method.isin(METHODS)]


@pytest.fixture
def rows(paper):
    return rows_of(paper, ["method", "position"])


def test_tidy_table_of_the_papers_cells_is_the_papers_csv(paper, rows):
    ours = tables.tidy(rows, 512, LENGTHS)
    assert list(ours.columns) == ["method", "position", "seed", *paper.columns[2:], "low", "high"]
    pd.testing.assert_frame_equal(ours[paper.columns], paper.reset_index(drop=True))


def test_tidy_table_3_has_the_columns_of_its_own_csv_and_its_cells():
    paper = pd.read_csv(PAPER / "table3.csv")
    ours = tables.tidy(rows_of(paper, TABLE3_LABELS), 512, LENGTHS)
    ours["num_shifts"] = ours.num_shifts.astype(int)
    full = ours[ours.inference == "full"].reset_index(drop=True)
    pd.testing.assert_frame_equal(full[paper.columns], paper)


def test_wide_table_has_the_papers_rows_and_columns(rows):
    table = tables.wide(rows, 512, LENGTHS)
    assert list(table.columns) == ["inference", "method", "position", *map(str, LENGTHS)]
    assert list(table.method) == 2 * METHODS
    ricker = table[(table.method == "Wavelet Ricker") & (table.inference == "full")].iloc[0]
    assert list(ricker[3:]) == ["23.64", "20.82", "19.19", "18.23", "18.00", "17.99"]  # Table 1, as printed


def one_higher(rows, **changes):
    """The rows with every perplexity raised by 1."""
    cells = [[{**cell, "perplexity": cell["perplexity"] + 1, **changes} for cell in row.cells] for row in rows]
    return [row._replace(cells=raised) for row, raised in zip(rows, cells)]


def test_markdown_shows_the_papers_number_only_beside_the_same_cell(rows):
    raised, paper = one_higher(rows), read_cells(PAPER, "table1")
    same_corpus = tables.markdown(raised, 512, LENGTHS, "Table 1", "wikitext-103", paper)
    assert "| 49.48 (48.48) " in same_corpus and "stands in brackets" in same_corpus
    other_corpus = tables.markdown(raised, 512, LENGTHS, "Table 1", "wikitext-2", paper)
    assert "| 49.48 " in other_corpus and "(48.48)" not in other_corpus and "brackets" not in other_corpus
    other_split = tables.markdown(raised, 512, LENGTHS, "Table 1", "wikitext-103", paper, "test")
    assert "(" not in other_split.split("##")[1] and ", test set, " in other_split
    other_l_train = tables.markdown(one_higher(rows, l_train=256), 256, LENGTHS, "Table 1", "wikitext-103", paper)
    assert "| 49.48 " in other_l_train and "(48.48)" not in other_l_train
    without_paper = tables.markdown(raised, 512, LENGTHS, "Sweep", "wikitext-103", None)
    assert "| 49.48 " in without_paper and "(48.48)" not in without_paper


def test_markdown_of_table_3_finds_the_papers_number_by_wavelet_scales_and_shifts():
    rows = rows_of(pd.read_csv(PAPER / "table3.csv"), TABLE3_LABELS)
    text = tables.markdown(one_higher(rows), 512, LENGTHS, "Table 3", "wikitext-103", read_cells(PAPER, "table3"))
    assert "| Ricker | 0..1 | 64 | 25.49 (24.49) | 22.60 (21.60) |" in " ".join(text.split())


PRESS_BY_POSITION = {  # Press et al.'s name of the representation, by ours
    ("sinusoidal", None): "Sinusoidal",
    ("rope", 10000): "Rotary",
    ("alibi", None): "ALiBi",
    ("t5", None): "T5 bias",
}


@pytest.mark.parametrize("l_train, lengths", [(512, LENGTHS), (512, [1024, 3512]), (1024, [1024, 1524, 3024, 5024])])
def test_press_et_als_number_is_beside_the_same_representation_length_and_stride(l_train, lengths):
    press = pd.read_csv(PAPER / "press2022.csv").query(f"l_train == {l_train} and split == 'valid'")
    expected, rows, paper = {}, [], read_cells(PAPER, "table1")
    for row in [*load_table("table1")[1], *(row for row in load_table("beyond")[1] if row.name == "t5")]:
        of = {"l_train": l_train, "perplexity": 1.0, "tokens": 9}
        cells = [
            {**of, "inference": inference, "stride": stride, "sequence_length": length}
            for inference, stride in (("non-overlapping", None), ("full", None), ("sliding", 1))
            for length in lengths
        ]
        rows.append(
            tables.RowResult({"method": row.labels["method"], "position": row.labels.get("position", "rel")}, 1, cells)
        )
        name = PRESS_BY_POSITION.get((row.position["name"], row.position.get("rope_theta")), "")
        for line in press[(press.method == name) & press.sequence_length.isin(lengths)].itertuples():
            if line.inference == "full" or line.stride == 1:
                expected[line.inference, row.labels["method"], line.sequence_length] = f"{line.perplexity:.2f}†"
            if line.inference == "full" and line.sequence_length == l_train:  # in one piece
                expected["non-overlapping", row.labels["method"], l_train] = f"{line.perplexity:.2f}†"
    text = tables.markdown(rows, l_train, lengths, "Table 1", "wikitext-103", paper)
    found = {}
    for inference, block in zip(("non-overlapping", "full", "sliding"), text.split("## ")[1:]):
        for line in filter(lambda line: line.startswith("| "), block.splitlines()):
            method, _, *shown = (cell.strip() for cell in line.strip("|").split("|"))
            numbers = {length: re.search(r"[\d.]+†", cell) for length, cell in zip(lengths, shown)}
            found.update({(inference, method, length): number[0] for length, number in numbers.items() if number})
    assert found == expected
    assert {method for _, method, _ in found} == {"Sinusoidal", "RoPE theta=10000", "ALiBi", "T5 bias"}
    assert ("sliding", "ALiBi", 1024) in found or 1024 not in lengths  # Table 15
    assert "†: of Press et al." in text
    other_stride = [
        row._replace(cells=[{**cell, "stride": cell["stride"] and 2} for cell in row.cells]) for row in rows
    ]
    others = tables.markdown(other_stride, l_train, lengths, "Table 1", "wikitext-103", paper).split("## ")
    assert "†" in others[2] and "†" not in others[3]
    for other in "wikitext-2", "wikitext-103-characters":
        assert "†" not in tables.markdown(rows, l_train, lengths, "Table 1", other, paper)


def test_where_press_et_al_have_a_cell_twice_both_numbers_are_the_same():
    """ALiBi at L_train is in two of their tables."""
    press = pd.read_csv(PAPER / "press2022.csv", dtype=str, keep_default_na=False)
    cells = press.drop(columns=["source", "perplexity"])
    assert cells.duplicated().sum() == 2
    assert (press.groupby(list(cells)).perplexity.nunique() == 1).all()


def write(folder, rows, paper):
    """Writes Table 1 with these rows; gives its Markdown."""
    text = tables.markdown(rows, 512, LENGTHS, "Table 1", "wikitext-103", paper)
    write_table(folder, "table1", tables.wide(rows, 512, LENGTHS), tables.tidy(rows, 512, LENGTHS), text, {}, None)
    return text


def test_failed_row_is_marked_and_the_others_keep_their_numbers(tmp_path, rows):
    rows[1] = rows[1]._replace(cells="failed")
    text = write(tmp_path, rows, read_cells(PAPER, "table1"))
    wide = pd.read_csv(tmp_path / "table1.csv", dtype=str).set_index(["inference", "method"])
    assert set(wide.loc[("full", "ALiBi")][1:]) == {"failed"}
    assert wide.loc[("full", "NoPE")]["2512"] == "48.48"
    tidy = pd.read_csv(tmp_path / "table1.tidy.csv")
    assert tidy[tidy.method == "ALiBi"].perplexity.isna().all()
    assert "failed (19.69)" in text and text == (tmp_path / "table1.md").read_text(encoding="utf-8")


def test_several_seeds_give_mean_and_standard_deviation_and_each_its_own_tidy_line(tmp_path, rows):
    several = [row._replace(seed=seed) for seed in (1, 2) for row in (rows if seed == 1 else one_higher(rows))]
    text = write(tmp_path, several, None)
    wide = pd.read_csv(tmp_path / "table1.csv", dtype=str)
    assert list(wide.columns[3:]) == [*map(str, LENGTHS), *(f"{length} std" for length in LENGTHS)]
    assert list(wide.method) == 2 * METHODS
    ricker = wide[(wide.method == "Wavelet Ricker") & (wide.inference == "full")].iloc[0]
    assert ricker["2512"] == "18.49" and ricker["2512 std"] == "0.71"  # 17.99 and 18.99: 1 / sqrt(2)
    assert "| 18.49 ± 0.71 |" in " ".join(text.split()) and "over the seeds 1, 2" in text
    tidy = pd.read_csv(tmp_path / "table1.tidy.csv")
    ends = tidy[(tidy.method == "Wavelet Ricker") & (tidy.inference == "full") & (tidy.sequence_length == 2512)]
    assert list(zip(ends.seed, ends.perplexity)) == [(1, 17.99), (2, 18.99)]


def test_a_seed_that_failed_is_left_out_of_the_mean_and_missed_in_words(rows):
    several = [*rows, *(row._replace(seed=2) for row in one_higher(rows))]
    several += [row._replace(seed=3, cells="failed") for row in rows]
    text = tables.markdown(several, 512, LENGTHS, "Table 1", "wikitext-103", None)
    assert "| 18.49 ± 0.71 (2 of 3 seeds) |" in " ".join(text.split())
    assert tables.wide(several, 512, LENGTHS)["2512"].tolist()[-1] == "18.49"
    one = [*rows, *(row._replace(seed=2, cells="failed" if row == rows[-1] else row.cells) for row in rows)]
    text = tables.markdown(one, 512, LENGTHS, "Table 1", "wikitext-103", None)
    assert "| 17.99 (1 of 2 seeds) |" in " ".join(text.split())
    none = [row._replace(seed=seed, cells="failed") for seed in (1, 2) for row in rows]
    assert (tables.wide(none, 512, LENGTHS)["2512"] == "failed").all()


def test_of_characters_bits_stand_in_brackets_and_sliding_windows_have_their_stride(rows):
    of = {"l_train": 128, "sequence_length": 128, "perplexity": 4.0, "tokens": 9, "stride": None}
    bits = {"word_perplexity": 680.0, "bits_per_character": 1.8276}
    cells = [{**of, **bits, "inference": "full"}, {**of, **bits, "inference": "sliding", "stride": 32}]
    made = [rows[0]._replace(cells=cells), rows[0]._replace(seed=2, cells=[{**cells[0], "bits_per_character": 1.8376}])]
    text = tables.markdown(made, 128, [128], "Table 1", "wikitext-2-characters", None)
    assert "| 680.00 ± 0.00 (1.833) |" in text and "| 680.00 (1.828) (1 of 2 seeds) |" in text
    assert "Perplexity per word, and in brackets bits per character." in text
    tidy = tables.tidy(made, 128, [128])
    assert list(zip(tidy.inference, tidy.stride.fillna(0))) == [
        ("full", 0),
        ("full", 0),
        ("sliding", 32),
        ("sliding", 0),
    ]
    assert "stride" not in tables.tidy([made[1]], 128, [128])


def test_the_interval_of_a_cell_goes_into_the_tidy_table(rows):
    cells = [[{**cell, "perplexity_low": 1.0, "perplexity_high": 2.0} for cell in row.cells] for row in rows]
    ours = tables.tidy([row._replace(cells=more) for row, more in zip(rows, cells)], 512, LENGTHS)
    assert (ours.low == 1.0).all() and (ours.high == 2.0).all()
