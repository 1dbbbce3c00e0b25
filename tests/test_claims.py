"""The paper's statements hold of the paper's own tables, and made-up tables hold, break and blur them."""

import json
import math
from pathlib import Path

import pandas as pd
import pytest

from wavepos_fairseq.common.files import CONFIGS, PAPER
from wavepos_fairseq.lab import claims, configs
from wavepos_fairseq.lab.claims import Claim
from wavepos_fairseq.lab.comparisons import Cell, load_cells
from wavepos_fairseq.lab.configs import Row, load_table

CLAIMS = {claim.id: claim for claim in claims.load_claims(CONFIGS / "claims.yaml")}
EXPECTED = "llama-wavelet-falls-in-one-piece"  # which the paper has not measured
SLIDING = [name for name, claim in CLAIMS.items() if claim.inference == "sliding"]
ON_TABLES = [
    name
    for name, claim in CLAIMS.items()
    if claim.table in ("table1", "table2", "table3", "table4") and name not in (EXPECTED, *SLIDING)
]
L_TRAIN = 100
LENGTHS = [50, 100, 200, 500]


def on_paper(name, l_train=None):
    l_train = l_train or (4096 if CLAIMS[name].table == "table2" else 512)
    return claims.judge(claims.with_labels(CLAIMS[name], PAPER), load_cells(PAPER, CLAIMS[name].table), l_train)


@pytest.mark.parametrize("name", ON_TABLES)
def test_claim_holds_of_the_papers_own_table(name):
    assert on_paper(name)["verdict"] == "holds"


@pytest.mark.parametrize("name", [name for name in ON_TABLES if not math.isfinite(CLAIMS[name].at_least)])
def test_upper_bound_does_not_hold_of_the_inverse_of_the_papers_table(name):
    assert on_inverse(name) == "does not hold"


@pytest.mark.parametrize("name", [name for name in ON_TABLES if not math.isfinite(CLAIMS[name].at_most)])
def test_lower_bound_does_not_hold_of_the_inverse_of_the_papers_table(name):
    assert on_inverse(name) == "does not hold"


def on_inverse(name):
    """The verdict where every perplexity is one over itself: what was higher is lower."""
    cells = load_cells(PAPER, CLAIMS[name].table)
    l_train = min(where[0] for where in cells)
    inverse = {
        where: {seed: Cell(1 / cell.value, cell.low, cell.high) for seed, cell in seeds.items()}
        for where, seeds in cells.items()
    }
    return claims.judge(claims.with_labels(CLAIMS[name], PAPER), inverse, l_train)["verdict"]


def test_at_l_train_1024_two_statements_of_the_paper_are_not_true_of_its_numbers():
    table1 = [name for name in ON_TABLES if CLAIMS[name].table == "table1"]
    judged = {name: on_paper(name, 1024) for name in table1}
    assert {name for name in table1 if judged[name]["verdict"] == "does not hold"} == {
        "non-overlapping-flat",  # RoPE 18.42 at 1024, 19.52 at 3024
        "trans-xl-does-not-rise",  # 18.67 at 1024, 18.76 at 5024
    }
    wavelets = {"gaussian", "haar", "haar-fixed", "morlet"}  # which the paper has at 512 only
    assert {name for name in table1 if judged[name]["verdict"] == "not judged"} == {
        name for name in table1 if wavelets & set(CLAIMS[name].rows)
    }


def test_rope_with_the_larger_theta_is_not_yet_below_at_twice_l_train_in_the_papers_table():
    paper = pd.read_csv(PAPER / "table1.csv").query("inference == 'full' and sequence_length == 1012")
    by_method = paper.set_index("method").perplexity
    assert by_method["RoPE theta=500000"] > by_method["RoPE theta=10000"]


@pytest.mark.parametrize(
    "name, inferences", [*((name, "sliding") for name in SLIDING), (EXPECTED, "full and non-overlapping")]
)
def test_an_inference_that_the_papers_table_lacks_is_not_judged(name, inferences):
    judged = on_paper(name)
    assert judged["verdict"] == "not judged" and f"({inferences}, " in judged["reason"]


@pytest.mark.parametrize("l_train", [512, 1024])
def test_the_claim_on_alibis_sliding_windows_holds_of_the_table_that_it_cites(l_train):
    press = pd.read_csv(PAPER / "press2022.csv").query("source == 'Table 15' and split == 'valid'")
    cells = {
        (line.l_train, line.inference, "alibi", line.sequence_length): {1: Cell(line.perplexity, math.nan, math.nan)}
        for line in press.itertuples()
    }
    judged = claims.judge(CLAIMS["alibi-gain-is-early-tokens"], cells, l_train)
    assert judged["verdict"] == "holds" and len(judged["numbers"]) == sum(press.l_train == l_train) - 1 > 2


def test_the_claim_on_kerple_holds_of_the_table_that_it_cites():
    """Its Table 10 has KERPLE log beside what Press et al.'s Table 5 has of ALiBi."""
    press = pd.read_csv(PAPER / "press2022.csv").query("inference == 'full' and l_train == 512")
    cells = {
        (512, "full", row, line.sequence_length): {1: Cell(line.perplexity, math.nan, math.nan)}
        for row, method, source in (("kerple-log", "KERPLE log", "Table 10"), ("alibi", "ALiBi", "Table 5"))
        for line in press[(press.method == method) & press.source.str.endswith(source)].itertuples()
    }
    judged = claims.judge(CLAIMS["kerple-log-below-alibi"], cells, 512)
    assert judged["verdict"] == "holds"
    assert sorted(number["sequence_length"] for number in judged["numbers"]) == [1024, 1536, 2048, 3072]


@pytest.mark.parametrize("shifts, judged_on", [((8, 4, 2, 1), "e0-15 e0-31"), ((4, 2, 1), "e0-15"), ((2, 1), "")])
def test_a_claim_on_a_number_of_shifts_takes_the_rows_that_have_it_in_heads_of_any_width(tmp_path, shifts, judged_on):
    scales = (15, 31, 63, 127)
    lines = [("0..7", 2 * shifts[0], 100.0), *((f"0..{last}", n, 100.0 + n) for last, n in zip(scales, shifts))]
    cells = pd.DataFrame(lines, columns=["scale_exponents", "num_shifts", "perplexity"])
    cells = cells.assign(wavelet="Ricker", inference="full", l_train=L_TRAIN, sequence_length=500)
    cells.to_csv(tmp_path / "table3.tidy.csv", index=False)
    names = ("ricker-more-scales-ahead", "ricker-two-shifts-behind", "ricker-no-shift-behind")
    judged = [claims.judge_all([CLAIMS[name]], tmp_path)[0] for name in names]
    rows = [" ".join(number["row"][len("ricker-") :] for number in of.get("numbers", [])) for of in judged]
    last_two = [f"e0-{scales[shifts.index(n)]}" for n in (2, 1)]
    assert [set(row.split()) for row in rows] == [set(judged_on.split()), *({row} for row in last_two)]
    assert "reason" not in judged[0] or judged[0]["reason"].endswith("of any row with num_shifts 8 or 4")


def test_numbers_of_a_judgement_are_the_papers_cells():
    labels = {row.name: row.labels for row in load_table("table1")[1]}
    paper = pd.read_csv(PAPER / "table1.csv").query("inference == 'full' and l_train == 512")
    cell = paper.set_index(["method", "sequence_length"]).perplexity
    numbers = on_paper("morlet-last", 512)["numbers"]
    assert len(numbers) == 3 * 6
    for number in numbers:
        assert number["value"] == cell[labels[number["row"]]["method"], number["sequence_length"]]
        assert number["over_value"] == cell[labels[number["over_row"]]["method"], number["over_length"]]
        assert number["ratio"] == number["value"] / number["over_value"]
        assert (number["low"], number["high"], number["known_by"]) == (number["ratio"], number["ratio"], "unknown")


@pytest.mark.parametrize("sheet", configs.JUDGED_SHEETS)
def test_claims_on_sheets_are_not_judged_where_the_paper_has_none(sheet):
    judged = claims.judge_all([claim for claim in CLAIMS.values() if claim.table == sheet], PAPER)
    assert judged and all(judgement["verdict"] == "not judged" for judgement in judged)
    assert all(f"{sheet}.csv" in judgement["reason"] for judgement in judged)


@pytest.mark.parametrize("at, lengths", [("within", {1, 99}), ("beyond", {149, 499}), ("longest", {499})])
def test_recall_is_the_share_in_the_longer_text_and_its_length_a_ranges_largest_distance(tmp_path, at, lengths):
    starts, stops = (1, 2, 100, 150), (2, 100, 150, 500)
    short, long = zip(starts, stops, (0.1, 0.2)), zip(starts, stops, (0.95, 0.9, 0.8, 0.7))
    lines = [(L_TRAIN, *line) for line in short] + [(5 * L_TRAIN, *line) for line in long]
    sheet = pd.DataFrame(lines, columns=["sequence_length", "start", "stop", "accuracy"])
    sheet = sheet.assign(row="ricker", seed=1, l_train=L_TRAIN, count=100)
    sheet.assign(low=sheet.accuracy - 0.05, high=sheet.accuracy + 0.05).to_csv(tmp_path / "recall.csv", index=False)
    claim = Claim("made-up", "…", "…", "recall", rows=["ricker"], at=at, at_least=0.7)
    judged = claims.judge(claim, load_cells(tmp_path, "recall"), L_TRAIN)
    assert {number["sequence_length"] for number in judged["numbers"]} == lengths
    assert judged["verdict"] == ("holds" if at == "within" else "within the spread")


def write_table1(folder, cells, **columns):
    """table1.tidy.csv of (row, inference, length, seed, perplexity, low, high)."""
    labels = {row.name: row.labels for row in load_table("table1")[1]}
    lines = [
        {
            **labels[row],
            "inference": inference,
            "l_train": L_TRAIN,
            "sequence_length": length,
            **dict(zip(("seed", "perplexity", "low", "high"), rest)),
        }
        for row, inference, length, *rest in cells
    ]
    pd.DataFrame(lines).assign(**columns).to_csv(folder / "table1.tidy.csv", index=False)


def verdict(folder, cells, **changes):
    """The judgement of "Ricker over ALiBi at 500" on cells of one length and both rows."""
    write_table1(folder, cells)
    given = {"rows": ["ricker"], "at": "longest", "over": {"rows": ["alibi"]}, **changes}
    claim = Claim("made-up", "…", "…", "table1", **given)
    return claims.judge(claim, load_cells(folder, "table1"), L_TRAIN)


def two_rows(*ricker_and_alibi):
    """Their cells at 500, a seed after the other; a perplexity or (perplexity, low, high)."""
    return [
        (row, "full", 500, seed, *(cell if isinstance(cell, tuple) else (cell, None, None)))
        for seed, pair in enumerate(ricker_and_alibi, 1)
        for row, cell in zip(("ricker", "alibi"), pair)
    ]


@pytest.mark.parametrize(
    "ricker, bounds, expected",
    [
        (90, {"at_most": 1}, "holds"),
        (110, {"at_most": 1}, "does not hold"),
        (110, {"at_least": 1}, "holds"),
        (90, {"at_least": 1}, "does not hold"),
        (100, {"at_most": 1}, "holds"),
        (100, {"at_least": 1}, "holds"),
        (199, {"at_least": 2}, "does not hold"),
        (201, {"at_least": 2}, "holds"),
        (100.5, {"at_least": 0.99, "at_most": 1.01}, "holds"),
        (98.5, {"at_least": 0.99, "at_most": 1.01}, "does not hold"),
        (101.5, {"at_least": 0.99, "at_most": 1.01}, "does not hold"),
    ],
)
def test_without_a_spread_the_ratio_decides_and_its_bound_belongs_to_it(tmp_path, ricker, bounds, expected):
    assert verdict(tmp_path, two_rows((ricker, 100)), **bounds)["verdict"] == expected


@pytest.mark.parametrize("bound", ["at_most", "at_least"])
def test_an_interval_that_holds_the_bound_is_within_the_spread(tmp_path, bound):
    judged = verdict(tmp_path, two_rows((98, 100), (100, 100)), **{bound: 1})
    (number,) = judged["numbers"]
    assert judged["verdict"] == "within the spread" and number["low"] < 1 < number["high"]
    assert number["ratio"] == pytest.approx(math.sqrt(0.98)) and number["seeds"] == [1, 2]
    assert number["known_by"] == "seeds"


def test_an_interval_on_one_side_of_the_bound_decides(tmp_path):
    cells = two_rows((94, 100), (95, 100), (96, 100))
    assert verdict(tmp_path, cells, at_most=1)["verdict"] == "holds"
    assert verdict(tmp_path, cells, at_least=1)["verdict"] == "does not hold"


def test_between_two_bounds_the_whole_interval_must_lie(tmp_path):
    cells, bounds = two_rows((99.8, 100), (100, 100), (100.2, 100)), {"at_least": 0.99, "at_most": 1.01}
    assert verdict(tmp_path, cells, **bounds)["verdict"] == "holds"
    cells = two_rows((98, 100), (100, 100), (102, 100))
    assert verdict(tmp_path, cells, **bounds)["verdict"] == "within the spread"


def test_what_a_seed_does_to_both_rows_is_no_spread(tmp_path):
    (number,) = verdict(tmp_path, two_rows((99, 100), (198, 200), (49.5, 50)), at_most=1)["numbers"]
    assert number["verdict"] == "holds" and (number["low"], number["high"]) == pytest.approx((0.99, 0.99))


def test_a_row_of_the_table_of_seeds_counts_with_its_seeds_there(tmp_path):
    methods = {"RoPE theta=500000": 100, "Wavelet Ricker scales 2^2..2^9": 99}
    table2 = [{"method": method, "seed": 1, "perplexity": value} for method, value in methods.items()]
    seeds = [{**line, "seed": seed, "perplexity": line["perplexity"] + 2} for line in table2 for seed in (1, 2)]
    for name, lines in (("table2", table2), ("table2-seeds", seeds)):
        cells = pd.DataFrame(lines).assign(inference="non-overlapping", l_train=512, sequence_length=512)
        cells.to_csv(tmp_path / f"{name}.tidy.csv", index=False)
    ((number,),) = [line["numbers"] for line in claims.judge_all([CLAIMS["llama-wavelet-below-rope"]], tmp_path)]
    assert number["seeds"] == [1, 2] and (number["value"], number["over_value"]) == pytest.approx((101, 102))


def test_with_one_seed_the_bootstrap_intervals_blur_the_bound(tmp_path):
    wide = verdict(tmp_path, two_rows(((99, 97, 101), (100, 98, 102))), at_most=1)
    assert wide["verdict"] == "within the spread" and wide["numbers"][0]["known_by"] == "unpaired"
    narrow = two_rows(((99, 98.9, 99.1), (100, 99.9, 100.1)))
    assert verdict(tmp_path, narrow, at_most=1)["verdict"] == "holds"
    assert verdict(tmp_path, narrow, at_least=1)["verdict"] == "does not hold"


def test_seeds_go_before_the_bootstrap_and_an_interval_on_one_side_only_is_none(tmp_path):
    seeds = two_rows(((99, 90, 110), (100, 90, 110)), ((99, 90, 110), (100, 90, 110)))
    assert verdict(tmp_path, seeds, at_most=1)["numbers"][0]["known_by"] == "seeds"
    half = verdict(tmp_path, two_rows(((99, 90, 110), 100)), at_most=1)
    assert (half["verdict"], half["numbers"][0]["known_by"]) == ("holds", "unknown")


def test_an_interval_without_width_is_that_of_one_sequence_and_unknown(tmp_path):
    for ricker in (99, 99, 99), (99, 97, 101):
        judged = verdict(tmp_path, two_rows((ricker, (100, 100, 100))), at_most=1)
        assert (judged["verdict"], judged["numbers"][0]["known_by"]) == ("holds", "unknown")


def table_of(ricker, alibi=100.0):
    """Ricker's perplexities by length, ALiBi's all the same, in full; in pieces all are 10."""
    full = [("ricker", "full", length, 1, value) for length, value in zip(LENGTHS, ricker)]
    full += [("alibi", "full", length, 1, alibi) for length in LENGTHS]
    return full + [(row, "non-overlapping", length, 1, 10.0) for row in ("ricker", "alibi") for length in LENGTHS]


@pytest.mark.parametrize(
    "at, lengths",
    [("within", [50, 100]), ("l_train", [100]), ("beyond", [200, 500]), ("longest", [500]), ("every", LENGTHS)],
)
def test_lengths_are_meant_relative_to_l_train(tmp_path, at, lengths):
    judged = verdict(tmp_path, table_of([90, 90, 90, 90]), at=at, at_most=1)
    assert sorted(number["sequence_length"] for number in judged["numbers"]) == lengths


def test_one_comparison_on_the_wrong_side_is_enough_and_comes_first(tmp_path):
    judged = verdict(tmp_path, table_of([90, 90, 101, 90]), at="every", at_most=1)
    assert judged["verdict"] == "does not hold"
    assert judged["numbers"][0]["sequence_length"] == 200
    assert [number["verdict"] for number in judged["numbers"]] == ["does not hold", "holds", "holds", "holds"]


def test_of_comparisons_that_hold_the_nearest_to_the_bound_comes_first(tmp_path):
    judged = verdict(tmp_path, table_of([90, 80, 97, 70]), at="every", at_most=1)
    assert [number["value"] for number in judged["numbers"]] == [97, 90, 80, 70]


def test_row_over_itself_at_l_train_says_how_much_it_rises(tmp_path):
    judged = verdict(tmp_path, table_of([90, 80, 120, 160]), over={"at": "l_train"}, at_least=2)
    assert judged["numbers"][0]["over_row"] == "ricker" and judged["numbers"][0]["ratio"] == 2
    assert judged["verdict"] == "holds"


def test_one_piece_may_be_compared_with_pieces_at_the_same_length(tmp_path):
    over = {"inference": "non-overlapping"}
    judged = verdict(tmp_path, table_of([90, 80, 20, 10]), at="beyond", over=over, at_least=1)
    assert [(number["value"], number["over_value"]) for number in judged["numbers"]] == [(10, 10), (20, 10)]
    assert {number["over_row"] for number in judged["numbers"]} == {"ricker"} and judged["verdict"] == "holds"


def test_the_two_numbers_of_several_seeds_have_the_ratio_beside_them(tmp_path):
    (number,) = verdict(tmp_path, two_rows((1, 100), (100, 1)), at_most=1)["numbers"]
    assert (number["value"], number["over_value"], number["ratio"]) == pytest.approx((10, 10, 1))


def test_inference_in_pieces_is_compared_with_itself(tmp_path):
    judged = verdict(tmp_path, table_of([90, 80, 120, 160]), inference="non-overlapping", at_most=1)
    assert (judged["numbers"][0]["value"], judged["numbers"][0]["over_value"]) == (10, 10)


@pytest.mark.parametrize(
    "cells, reason",
    [
        ([("ricker", "full", 500, 1, 90)], "alibi"),
        ([("ricker", "full", 500, 1, 90), ("alibi", "full", 500, 1, None)], "alibi"),
        ([("ricker", "full", 500, 1, 90), ("alibi", "full", 500, 2, 90)], "ricker and alibi with one seed"),
        ([("ricker", "full", 100, 1, 90), ("alibi", "full", 100, 1, 90)], "any length that is longest"),
    ],
    ids=["no row", "no number", "no seed in common", "no length"],
)
def test_what_is_missing_is_not_judged_and_named(tmp_path, cells, reason):
    judged = verdict(tmp_path, cells, at_most=1)
    assert judged["verdict"] == "not judged"
    assert judged["reason"].endswith(f"of {reason}") and "full, L_train 100" in judged["reason"]


def test_table_made_before_there_were_seeds_and_intervals_is_of_one_seed(tmp_path):
    write_table1(tmp_path, [("ricker", "full", 500)], perplexity=90)
    ((seed, cell),) = load_cells(tmp_path, "table1")[L_TRAIN, "full", "ricker", 500].items()
    assert (seed, cell.value) == (1, 90) and math.isnan(cell.low) and math.isnan(cell.high)


@pytest.mark.parametrize("table, columns", [("table1", "l_train, perplexity"), ("attention", "l_train, beyond")])
def test_a_table_without_its_columns_is_named_with_them(tmp_path, table, columns):
    lines = [{"row": "ricker", "method": "Wavelet", "position": "rel", "inference": "full", "sequence_length": 1}]
    pd.DataFrame(lines).to_csv(tmp_path / f"{table}.csv", index=False)
    with pytest.raises(ValueError, match=f"{table}.csv has no column {columns}$"):
        load_cells(tmp_path, table)


@pytest.mark.parametrize("num_shifts", [8, 16])
def test_row_is_found_whatever_the_width_of_the_heads(tmp_path, num_shifts):
    cell = {"wavelet": "Ricker", "scale_exponents": "0..7", "num_shifts": num_shifts, "inference": "full"}
    pd.DataFrame([{**cell, "l_train": 100, "sequence_length": 500, "perplexity": 90.0}]).to_csv(
        tmp_path / "table3.tidy.csv", index=False
    )
    assert list(load_cells(tmp_path, "table3")) == [(100, "full", "ricker", 500)]


def test_attention_is_the_mean_over_layers_and_heads_and_has_a_bound_of_its_own(tmp_path):
    heads = [("alibi", 0, 0, 0.0), ("alibi", 0, 1, 0.08), ("ricker", 0, 0, 0.1), ("ricker", 1, 0, 0.3)]
    attention = pd.DataFrame(heads, columns=["row", "layer", "head", "beyond"])
    attention.assign(l_train=100, sequence_length=500, mean_lag=9, lag95=9).to_csv(tmp_path / "attention.csv")
    judged = {judgement["id"]: judgement for judgement in claims.judge_all(list(CLAIMS.values()), tmp_path)}
    for name, share, ratio in (("alibi-attention-ends", 0.04, 0.2), ("wavelet-attention-reaches", 0.2, 0.2)):
        (number,) = judged[name]["numbers"]
        assert judged[name]["verdict"] == "holds" and (number["value"], number["ratio"]) == pytest.approx(
            (share, ratio)
        )
    turned = attention.assign(l_train=100, sequence_length=500, beyond=[0.21, 0.21, 0.2, 0.2])
    turned.to_csv(tmp_path / "attention.csv")
    judged = {judgement["id"]: judgement["verdict"] for judgement in claims.judge_all(list(CLAIMS.values()), tmp_path)}
    assert judged["alibi-attention-ends"] == "does not hold" and judged["ricker-lowest-beyond"] == "not judged"
    seeds = pd.concat([turned.assign(seed=seed, beyond=turned.beyond * (1 + seed / 9)) for seed in (1, 2, 3)])
    seeds.to_csv(tmp_path / "attention.csv")
    (number,) = next(
        judgement["numbers"]
        for judgement in claims.judge_all(list(CLAIMS.values()), tmp_path)
        if judgement["id"] == "wavelet-attention-reaches"
    )
    mean, half = 0.2 * 11 / 9, 4.302653 * 0.2 / 9 / math.sqrt(3)  # Student's t of two degrees of freedom
    assert (number["ratio"], number["low"], number["high"]) == pytest.approx((mean, mean - half, mean + half))
    assert (number["seeds"], number["known_by"]) == ([1, 2, 3], "seeds")


GOOD = "{statement: s, source: s, table: table1, rows: [ricker], at: longest, over: {at: l_train}, at_most: 1}"


@pytest.mark.parametrize(
    "content, words",
    [
        (GOOD.replace("[ricker]", "[mexican-hat]"), ["claim c", "row 'mexican-hat'", "ricker, haar-fixed, haar"]),
        (GOOD.replace("{at: l_train}", "{rows: [none]}"), ["claim c", "row 'none'", "nope, sinusoidal"]),
        (
            GOOD.replace("table1", "table9"),
            ["claim c", "table 'table9'", "table1, table1-six, table2, table2-seeds, table3, table4"],
        ),
        (GOOD.replace("at_most", "lower_than"), ["claim c", "key 'lower_than'", "at_least, at_most"]),
        (GOOD.replace(", at_most: 1", ""), ["claim c", "at_least, at_most"]),
        (GOOD.replace("at_most: 1", "at_most: one"), ["claim c", "as numbers"]),
        (GOOD.replace("statement: s", "colour: red"), ["claim c", "key 'colour'", "statement, source"]),
        (GOOD.replace("statement: s, ", ""), ["claim c", "missing: statement"]),
        (GOOD.replace("{at: l_train}", "{to: l_train}"), ["claim c", "key of over 'to'", "rows, at"]),
        (GOOD.replace("at: longest", "at: 5x"), ["claim c", "length '5x'", "within, l_train, beyond, longest, every"]),
        (GOOD.replace("at: l_train", "at: L"), ["claim c", "length 'L'"]),
        (GOOD.replace("at: longest", "at: longest, inference: half"), ["claim c", "inference 'half'", "full, non-"]),
        (GOOD.replace("[ricker]", "ricker"), ["claim c", "rows: expected a list, not 'ricker'"]),
        ("lowest", ["claim c", "expected a mapping, not 'lowest'"]),
    ],
)
def test_faulty_claim_is_refused_by_its_name_with_what_is_accepted(tmp_path, content, words):
    path = tmp_path / "claims.yaml"
    path.write_text(f"c: {content}\n")
    with pytest.raises(ValueError) as error:
        claims.load_claims(path)
    assert all(word in str(error.value) for word in [str(path), *words]), error.value


@pytest.mark.parametrize("content, words", [("- ricker\n", "expected a mapping"), ("c: {\n", "cannot be read: line 2")])
def test_file_that_is_no_mapping_is_refused(tmp_path, content, words):
    (tmp_path / "claims.yaml").write_text(content)
    with pytest.raises(ValueError, match=words):
        claims.load_claims(tmp_path / "claims.yaml")


def test_results_folder_that_does_not_exist_is_an_error_that_says_what_makes_it(tmp_path, capsys):
    assert claims.main(["--preset", "nowhere", "--results", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert str(Path(tmp_path, "nowhere")) in error and "reproduce.sh" in error


def test_files_and_printed_table_have_every_claim_and_the_numbers_behind_it(tmp_path, capsys):
    folder = tmp_path / "made-up"
    folder.mkdir()
    write_table1(folder, table_of([90, 90, 90, 100.5]))
    assert claims.main(["--preset", "made-up", "--results", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert (folder / "claims.md").read_text(encoding="utf-8").strip() == printed.strip()
    judged = {judgement["id"]: judgement for judgement in json.loads((folder / "claims.json").read_text())}
    assert judged.keys() == CLAIMS.keys()
    assert all(judgement["statement"] in printed for judgement in judged.values())
    rises = judged["ricker-does-not-rise"]
    assert rises["verdict"] == "does not hold" and len(rises["numbers"]) == 2
    line = "ricker 100.50 at 500, ricker 90.00 at 100: 1.1167 (no interval), claimed at most 1; 1 of 2"
    assert line in printed
    assert "table1 has no numbers (full, L_train 100) of haar" in judged["haar-does-not-rise"]["reason"]
    assert "there is no table4.csv" in judged["rbio1.1-does-not-rise"]["reason"]


def test_two_numbers_of_one_cell_are_refused_and_not_the_last_one_taken(tmp_path):
    write_table1(tmp_path, 2 * [("ricker", "full", 500, 1, 90.0, None, None)])
    with pytest.raises(ValueError, match="table1.tidy.csv has two numbers of Wavelet Ricker, rel, seed 1, at 500"):
        load_cells(tmp_path, "table1")


def test_rows_that_differ_in_a_part_of_the_heads_width_only_are_not_told_apart(tmp_path, monkeypatch):
    rows = [Row(name, {"wavelet": "W", "num_shifts": f"d/{name}"}, {"name": "nope"}) for name in ("4", "8")]
    monkeypatch.setattr(configs, "load_table", lambda name: (name, rows))
    (tmp_path / "t.csv").write_text("wavelet,num_shifts\n")
    with pytest.raises(ValueError, match="table t: two rows differ only in a label d/N"):
        load_cells(tmp_path, "t")


def test_seeds_alone_are_not_said_to_lack_stretches_and_older_pairs_go(tmp_path, capsys):
    folder = tmp_path / "llama-cpu"
    folder.mkdir()
    for path in (PAPER.resolve().parent / "llama-cpu").glob("table2-seeds.*"):
        (folder / path.name).write_bytes(path.read_bytes())
    words = ["--preset", "llama-cpu", "--results", str(tmp_path)]
    assert claims.main(words) == 0 and "has no stretches.npz" not in capsys.readouterr().out
    assert (folder / "pairs.csv").is_file()
    (folder / "table2-seeds.stretches.npz").unlink()
    assert claims.main(words) == 0 and "has no stretches.npz" in capsys.readouterr().out
    assert not (folder / "pairs.csv").is_file()
