"""Rows that read the same text with the same seeds are compared stretch by stretch."""

import math

import numpy as np
import pandas as pd
import pytest
import torch

from wavepos_fairseq.evaluation.perplexity import evaluate
from wavepos_fairseq.evaluation.statistics import STRETCH, paired_difference
from wavepos_fairseq.lab import claims, comparisons, results, tables
from wavepos_fairseq.lab.comparisons import Cell, Losses, compare
from wavepos_fairseq.lab.configs import load_table
from wavepos_fairseq.lab.figures import command as figures
from wavepos_fairseq.lab.figures import trained

L_TRAIN, LENGTHS = 100, [100, 500]


def cell_of(nll, tokens, units=None):
    units = units or int(tokens.sum())
    return Cell(math.exp(nll.sum() / units), math.nan, math.nan, Losses(nll, tokens, units))


def draws(rng, seeds=1, stretches=60, of_text=0.3, of_seed=0.0, gain=0.0):
    """Losses of two models by seed: hard stretches are hard for both, a seed moves each; the second gains by `gain`."""
    tokens = np.full(stretches, 100)
    hard = rng.normal(size=stretches)
    models = []
    for shift in (0.0, gain):
        noise = of_text * rng.normal(size=(seeds, stretches)) + of_seed * rng.normal(size=(seeds, 1))
        models.append((5 + hard + noise - shift) * tokens)
    return models, tokens


def test_a_row_compared_with_itself_has_the_interval_one_to_one():
    (losses, _), tokens = draws(np.random.default_rng(0), seeds=3, of_seed=0.1)
    for seeds in (1, 3):
        row = {seed: cell_of(losses[seed], tokens) for seed in range(seeds)}
        assert compare(row, row)[:3] == (1, 1, 1)


@pytest.mark.parametrize("seeds, of_seed", [(1, 0.0), (3, 0.0), (3, 0.05), (5, 0.2)])
def test_the_paired_interval_holds_a_known_difference_as_often_as_it_says(seeds, of_seed):
    """95 of 100 times, of other texts and other seeds; a few more where two chances are added by squares."""
    rng, known, trials = np.random.default_rng(7), 0.02, 800
    tokens, inside = np.full(60, 100), 0
    for _ in range(trials):
        of_text, of_seeds = 0.3 * rng.normal(size=60), of_seed * rng.normal(size=(seeds, 1))
        difference = known + of_text + of_seeds + 0.1 * rng.normal(size=(seeds, 60))
        told = paired_difference(difference * tokens, tokens)
        inside += told.low <= known <= told.high
    assert 0.93 < inside / trials < 0.985


def test_what_makes_a_stretch_hard_for_both_is_no_uncertainty_of_their_difference():
    (one, other), tokens = draws(np.random.default_rng(1), of_text=0.01, gain=0.02)
    told = paired_difference(one - other, tokens)
    alone = paired_difference(one, tokens)
    assert 0 < told.low < told.mean < told.high and told.high - told.low < 0.05 * (alone.high - alone.low)


def test_the_interval_of_one_seed_is_the_mean_plus_minus_two_standard_errors():
    (one, other), tokens = draws(np.random.default_rng(2), stretches=400)
    told, of_stretch = paired_difference(one - other, tokens), (one - other)[0] / tokens
    error = 1.96 * of_stretch.std() / 20
    assert told.mean == pytest.approx(of_stretch.mean())
    assert (told.low, told.high) == pytest.approx((told.mean - error, told.mean + error), abs=0.15 * error)


def test_seeds_that_differ_widen_the_interval_by_students_factor():
    tokens = np.full(50, 10)
    difference = np.array([[0.9], [1.0], [1.1]]) * tokens  # the text adds nothing
    told = paired_difference(difference, tokens)
    half = 4.302653 * 0.1 / math.sqrt(3)  # two degrees of freedom
    assert told == pytest.approx((1.0, 1 - half, 1 + half), abs=1e-6)


def test_the_order_of_the_stretches_does_not_matter():
    (one, other), tokens = draws(np.random.default_rng(3), seeds=2)
    tokens = tokens + np.arange(60)
    order = np.random.default_rng(4).permutation(60)
    there, here = (paired_difference((one - other)[:, by], tokens[by]) for by in (np.arange(60), order))
    assert here == pytest.approx(there, rel=1e-12)


def test_a_stretch_counts_by_its_tokens():
    told = paired_difference(np.array([[1000.0, 0.0]]), np.array([1000, 1]))
    assert told.mean == 1000 / 1001 and (told.low, told.high) == (0, 1)


def test_of_one_stretch_there_is_no_interval():
    one, other = ({1: cell_of(np.array([nll]), np.array([100]))} for nll in (500.0, 510.0))
    told = compare(one, other)
    assert told.ratio == pytest.approx(math.exp(-0.1)) and told.low == told.ratio == told.high
    assert told.known_by == "unknown"


def test_seeds_of_different_texts_are_not_pooled():
    rows = [{seed: cell_of(np.full(n, gain), np.ones(n)) for seed, n in ((1, 9), (2, 8))} for gain in (1.0, 1.1)]
    told = compare(*rows)
    assert told.known_by == "seeds" and told.ratio == pytest.approx(math.exp(-0.1))


def test_cells_of_different_texts_are_not_paired():
    rng = np.random.default_rng(5)
    (one, other), tokens = draws(rng)
    fewer = cell_of(other[0][:30], tokens[:30])
    assert compare({1: cell_of(one[0], tokens)}, {1: fewer}).known_by == "unknown"


def test_the_ratio_is_per_word_where_perplexity_is():
    (one, other), tokens = draws(np.random.default_rng(6), gain=0.02)
    of, over = cell_of(one[0], tokens, 1000), cell_of(other[0], tokens, 1000)  # six tokens a word
    told = compare({1: of}, {1: over})
    assert told.ratio == pytest.approx(of.value / over.value)
    per_token = paired_difference(one - other, tokens)
    assert told[:3] == pytest.approx([math.exp(6 * bound) for bound in per_token])


# in a results folder


def a_cell(inference, length, nll, **more):
    """A cell of evaluation.json, from its losses (tokens,)."""
    mean = nll.mean()
    sums = [float(nll[start : start + STRETCH].sum()) for start in range(0, len(nll), STRETCH)]
    known = {"inference": inference, "sequence_length": length, "tokens": len(nll), "stretch_nll": sums}
    return {**known, "nll": mean, "perplexity": math.exp(mean), "perplexity_low": None, "perplexity_high": None, **more}


def write(folder, gains, tokens=5000, sliding=False):
    """Table 1 of some rows, two seeds; gains[row][i] is how far below 3 nats its loss is at LENGTHS[i]."""
    rng = np.random.default_rng(8)
    text = rng.gamma(2.0, 0.5, size=tokens)
    rows = []
    for seed in (1, 2):
        for row in load_table("table1")[1]:
            if row.name in gains:
                cells = []
                for length, gain in zip(LENGTHS, gains[row.name]):
                    nll = 2 + text - gain + 0.01 * rng.normal(size=tokens)
                    cells.append(a_cell("full", length, nll))
                    if sliding:
                        cells.append(a_cell("sliding", length, nll[:3000], stride=25))
                rows.append(tables.RowResult(row.labels, seed, cells))
    of = (rows, L_TRAIN, LENGTHS)
    text = tables.markdown(*of, "Table 1", "made-up", None)
    kept = tables.stretches(rows, LENGTHS)
    results.write_table(folder, "table1", tables.wide(*of), tables.tidy(*of), text, {}, kept)
    return text


def test_pairs_say_who_is_ahead_and_only_where_that_is_told_apart(tmp_path):
    write(tmp_path, {"ricker": [0.1, 0.2], "alibi": [0.1, 0.1]})
    at_l_train, longest = comparisons.pairs(tmp_path).to_dict("records")
    assert (at_l_train["sequence_length"], longest["sequence_length"]) == (100, 500)
    assert {at_l_train["row"], at_l_train["other"]} == {"ricker", "alibi"}
    assert at_l_train["ahead"] == "" and at_l_train["low"] < 1 < at_l_train["high"]
    assert longest["ahead"] == "ricker" and longest["seeds"] == 2 and longest["known_by"] == "text and seeds"
    ratio = math.exp(0.1 if longest["row"] == "alibi" else -0.1)
    assert longest["ratio"] == pytest.approx(ratio, rel=1e-3) and longest["low"] < ratio < longest["high"]


@pytest.mark.parametrize("inference, listed", [("full", 1), ("sliding", 1), ("non-overlapping", 0)])
def test_a_pair_is_listed_once_where_no_length_is_beyond_l_train(tmp_path, monkeypatch, inference, listed):
    """In pieces of L_train nothing is longer, and at L_train it is full."""
    cells = {(100, inference, row, 100): {1: cell_of(np.ones(9), np.ones(9))} for row in ("ricker", "alibi")}
    monkeypatch.setattr(comparisons, "_tables", lambda folder: [("table1", cells)])
    assert comparisons.pairs(tmp_path)[["inference", "sequence_length"]].values.tolist() == listed * [[inference, 100]]


def test_pairs_are_of_sliding_windows_too_and_the_figure_is_of_whole_sequences(tmp_path):
    write(tmp_path, {"ricker": [0.1, 0.2], "alibi": [0.1, 0.1]}, sliding=True)
    made = comparisons.pairs(tmp_path)
    where = [(inference, length) for inference in ("full", "sliding") for length in LENGTHS]
    assert list(zip(made.inference, made.sequence_length)) == where
    assert made.ahead.tolist() == ["", "ricker", "", "ricker"]
    results.write_sheet(tmp_path, "pairs", made)
    pd.testing.assert_frame_equal(results.read_sheet(tmp_path, "pairs"), made, check_dtype=False)
    older = made[made.inference == "full"].drop(columns="inference")
    older.to_csv(tmp_path / "pairs.csv", index=False)  # as up to 0.4
    squares = [
        figure.axes[1].get_images()[0].get_array()
        for figure in map(trained.draw_pairs, (made, results.read_sheet(tmp_path, "pairs")))
    ]
    assert (squares[0] == squares[1]).any() and np.array_equal(*squares, equal_nan=True)


def test_the_gain_of_longer_windows_is_positive_where_they_lower_the_loss(tmp_path):
    text = write(tmp_path, {"ricker": [0.1, 0.2], "alibi": [0.1, 0.1]}, sliding=True)
    assert "## Perplexity with sliding windows that score 25 tokens each, on the first 3,000 tokens" in text
    lines = comparisons.context(tmp_path)
    assert list(lines.window.unique()) == [500] and len(lines) == 2 * 3  # two seeds and their mean
    ricker, alibi = (lines[lines.row == row].to_dict("records") for row in ("ricker", "alibi"))
    assert all(line["gain"] == pytest.approx(0.1, abs=2e-3) for line in ricker)
    assert all(line["low"] < 0.1 < line["high"] and line["low"] > 0.09 for line in ricker[:2])
    assert all(abs(line["gain"]) < 2e-3 for line in alibi)
    assert [pd.isna(line["seed"]) for line in ricker] == [False, False, True]


def test_claims_are_judged_by_the_paired_interval_and_both_sheets_are_written(tmp_path, capsys):
    folder = tmp_path / "made-up"
    write(folder, {"ricker": [0.1, 0.11], "alibi": [0.1, 0.1], "nope": [0.1, 0.1]}, sliding=True)
    assert claims.main(["--preset", "made-up", "--results", str(tmp_path)]) == 0
    assert "(text and seeds, 2 seeds)" in capsys.readouterr().out
    for sheet in ("pairs", "context"):
        assert list(results.read_sheet(folder, sheet).columns) == results.SHEETS[sheet]


def test_a_folder_without_stretches_is_read_and_says_so(tmp_path, capsys):
    folder = tmp_path / "made-up"
    write(folder, {"ricker": [0.1, 0.2], "alibi": [0.1, 0.1]})
    (folder / "table1.stretches.npz").unlink()
    assert claims.main(["--preset", "made-up", "--results", str(tmp_path)]) == 0
    assert "table1 has no stretches.npz" in capsys.readouterr().out
    assert not (folder / "pairs.csv").exists()


def test_more_stretches_than_are_kept_are_joined_to_the_same_sums(tmp_path):
    tokens = 300 * STRETCH + 17
    write(tmp_path, {"ricker": [0.1, 0.2]}, tokens=tokens)
    cells = results.read_cells(tmp_path, "table1")
    stretches = results.read_stretches(tmp_path, "table1", cells)
    assert (stretches.tokens.sum(axis=1) == tokens).all() and (stretches.tokens[0] > 0).sum() == 101
    assert stretches.tokens[0][:101].tolist() == [3 * STRETCH] * 100 + [17]
    assert np.exp(stretches.nll.sum(axis=1) / tokens) == pytest.approx(cells.perplexity.to_numpy(), rel=1e-6)


def test_of_characters_the_table_and_its_stretches_count_words(tmp_path):
    nll = np.full(5150, 1.25)
    of_words = {"words": 1000, "word_perplexity": math.exp(1.25 * 5.15), "word_perplexity_low": None}
    cell = a_cell("full", 100, nll, bits_per_character=1.25 / math.log(2), word_perplexity_high=None, **of_words)
    rows = [tables.RowResult(load_table("table1")[1][0].labels, 1, [cell])]
    kept = tables.stretches(rows, [100])
    results.write_table(
        tmp_path, "table1", *(made(rows, 100, [100]) for made in (tables.wide, tables.tidy)), "", {}, kept
    )
    (at,) = comparisons.load_cells(tmp_path, "table1").values()
    assert at[1].value == pytest.approx(624.99, rel=1e-3) and at[1].losses.units == 1000
    assert math.exp(at[1].losses.nll.sum() / 1000) == pytest.approx(at[1].value)


def test_of_characters_a_claim_has_bits_beside_the_perplexity_per_word():
    cells = {}
    for row, nats in (("alibi", 1.25), ("nope", 1.5)):
        cells[128, "full", row, 128] = {1: cell_of(np.array([nats * 5150]), np.array([5150]), units=1000)}
    of = {"table": "table1", "rows": ["alibi"], "at": "l_train", "over": {"rows": ["nope"]}, "at_most": 1}
    claim = claims.Claim("name", "One is ahead", "Table 1", **of)
    judged = claims.judge(claim, cells, 128)
    (number,) = judged["numbers"]
    assert number["bits_per_character"] == pytest.approx(1.25 / math.log(2))
    assert number["over_bits_per_character"] == pytest.approx(1.5 / math.log(2))
    about = {"statement": claim.statement, "source": claim.source, "l_train": 128, "bounds": claim.bounds}
    text = claims.markdown([{**about, **judged}], "Of characters", [])
    assert "alibi 624.84 (1.803 bits) at 128, nope 2264.25 (2.164 bits) at 128: 0.2760" in text


def test_stretches_of_other_cells_are_refused(tmp_path):
    write(tmp_path, {"ricker": [0.1, 0.2]})
    path = tmp_path / "table1.tidy.csv"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([lines[0], *reversed(lines[1:])]))
    with pytest.raises(ValueError, match=r"table1.stretches.npz is not of table1.tidy.csv: make the table again"):
        comparisons.load_cells(tmp_path, "table1")
    (tmp_path / "table1.stretches.npz").write_bytes(b"nonsense")
    with pytest.raises(ValueError, match=r"table1.stretches.npz cannot be read: "):
        comparisons.load_cells(tmp_path, "table1")


def test_the_figure_of_pairs_marks_those_that_are_not_told_apart(tmp_path):
    write(tmp_path, {"ricker": [0.1, 0.2], "alibi": [0.1, 0.15]})
    figure = trained.draw_pairs(comparisons.pairs(tmp_path))
    at_l_train, longest = figure.axes[:2]
    assert at_l_train.get_title().startswith("100 tokens = ") and longest.get_title() == "500 tokens"
    dots = [len(axes.get_lines()) for axes in (at_l_train, longest)]
    assert dots == [1, 0]  # a line of two dots, on both sides of the diagonal
    names = [text.get_text() for text in longest.get_yticklabels()]
    ricker, alibi = names.index("Wavelet Ricker"), names.index("ALiBi")
    squares = longest.get_images()[0].get_array()
    assert squares[ricker, alibi] == pytest.approx(100 * (math.exp(-0.05) - 1), abs=0.3)
    assert squares[alibi, ricker] == pytest.approx(100 * (math.exp(0.05) - 1), abs=0.3)


def test_the_figure_of_context_rises_where_longer_windows_help(tmp_path):
    write(tmp_path, {"ricker": [0.1, 0.2], "alibi": [0.1, 0.1]}, sliding=True)
    (axes,) = trained.draw_context(comparisons.context(tmp_path)).axes
    curves = {line.get_label(): line.get_xydata() for line in axes.get_lines()}
    assert curves["Wavelet Ricker"].tolist()[0] == [100, 0]
    assert curves["Wavelet Ricker"][1] == pytest.approx([500, 0.1], abs=2e-3)
    assert curves["ALiBi"][1] == pytest.approx([500, 0], abs=2e-3)


def test_figures_of_sheets_that_are_not_there_are_missed_by_name(tmp_path, capsys):
    (tmp_path / "demo").mkdir()
    older = "table1.stretches.npz, which versions before 0.4 did not write; run scripts/reproduce.sh table1"
    for made, said in ((False, older), (True, "{}.csv of Table 1; run scripts/claims.sh")):
        if made:
            (tmp_path / "demo" / "table1.stretches.npz").touch()
        for name in ("pairs", "context"):
            assert figures.main(["--preset", "demo", "--results", str(tmp_path), name]) == 2
            assert capsys.readouterr().err == f"error: {tmp_path / 'demo'} has no {said.format(name)} first\n"


# as the evaluation keeps them


class Shifted:
    """A scorer whose loss of a token is its number, plus one where a window begins."""

    l_train, bos, device = 4, 0, torch.device("cpu")

    def score(self, source, target):
        losses = target.float()
        losses[:, 0] += 1
        return losses


def test_an_evaluation_keeps_the_sums_of_each_stretch_and_slides_over_the_first_tokens_only():
    stream = torch.arange(2500) % 7
    full, pieces, sliding = evaluate(
        Shifted(), stream, [8], ["full", "non-overlapping", "sliding"], stride=2, sliding_tokens=1500
    )
    for cell, tokens, starts in ((full, 2500, 8), (pieces, 2500, 4), (sliding, 1500, None)):
        expected = stream[:tokens].double()
        if starts:
            expected[::starts] += 1
        else:
            expected[0] += 1  # the windows of the second to fourth pair begin there, too
        sums = [part.sum().item() for part in expected.split(1024)]
        assert cell["stretch_nll"] == sums and cell["tokens"] == tokens
        assert cell["nll"] == pytest.approx(sum(sums) / tokens)
    assert (full["stride"], sliding["stride"]) == (None, 2)


def test_of_so_many_sequences_each_length_has_its_own_text():
    stream, of = torch.arange(2500) % 7, (["full", "non-overlapping", "sliding"], 4096, 2)
    cells = evaluate(Shifted(), stream, [8, 20], *of, sequences=100)
    assert [cell["tokens"] for cell in cells] == [800, 800, 2500, 2000, 2000, 2500]
    alone = [cell for length in (8, 20) for cell in evaluate(Shifted(), stream[: 100 * length], [length], *of)]
    assert [cell["nll"] for cell in cells if cell["inference"] != "sliding"] == [
        cell["nll"] for cell in alone if cell["inference"] != "sliding"
    ]
    text = tables.markdown([tables.RowResult({"method": "Shifted"}, 1, cells)], 4, [8, 20], "Made up", "made-up", None)
    assert text.count("on the first 100 sequences of each length") == 2
    with pytest.raises(ValueError, match="--sequences 126: the text has 2500 tokens, fewer than 126 x 20"):
        evaluate(Shifted(), stream, [8, 20], *of, sequences=126)
    assert len(evaluate(Shifted(), stream, [8, 20], ["sliding"], 4096, 2, sequences=126)) == 2
