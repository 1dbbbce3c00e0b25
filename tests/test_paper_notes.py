"""docs/paper-notes.md: each statement is true of results/paper, and the page prints the numbers that are there."""

import re
from math import exp, log
from pathlib import Path

import pandas as pd
import pytest
import pywt

ROOT = Path(__file__).resolve().parents[1]
PAGE = " ".join((ROOT / "docs" / "paper-notes.md").read_text(encoding="utf-8").split())
TABLE1, TABLE2, TABLE3, TABLE4, PRESS = (
    pd.read_csv(ROOT / "results" / "paper" / f"{name}.csv")
    for name in ("table1", "table2", "table3", "table4", "press2022")
)
BESIDE = [(512, 512), (512, 1012), (512, 1512), (512, 2512), (1024, 1024), (1024, 1524), (1024, 3024), (1024, 5024)]
ROPE, RICKER = "RoPE theta=10000", "Wavelet Ricker"
PRESS_WHOLE = PRESS[PRESS.source.isin(["Table 2", "Table 3"])]
SLIDING = PRESS[(PRESS.inference == "sliding") & (PRESS.stride == 1)]
DISCRETE = TABLE4[(TABLE4.family == "discrete") & (TABLE4.wavelet != "Haar")]


def number(table, **columns):
    """The one perplexity with these values; whole sequences, if the inference is not among them."""
    for column, value in {"inference": "full", **columns}.items():
        table = table[table[column] == value]
    (found,) = set(table.perplexity)
    return found


def of_paper(method, l_train, length, inference="full"):
    return number(TABLE1, method=method, l_train=l_train, sequence_length=length, inference=inference)


def of_press(method, l_train, length):
    return number(PRESS_WHOLE, method=method, l_train=l_train, sequence_length=length)


def of_sliding(method, l_train, length):
    return number(SLIDING, method=method, l_train=l_train, sequence_length=length, inference="sliding")


def rows_of(table, *labels):
    """The rows of whole sequences, L_train 512: perplexity by length, by the values of the labels."""
    whole = table[(table.inference == "full") & (table.l_train == 512)]
    return {key: row.set_index("sequence_length").perplexity for key, row in whole.groupby(list(labels), sort=False)}


def rest(length, perplexity, before, perplexity_before):
    """The perplexity of the other tokens of a sequence: losses in nats add up."""
    return exp((length * log(perplexity) - before * log(perplexity_before)) / (length - before))


def span(values, form=".2f"):
    low, high = (format(value, form) for value in (min(values), max(values)))
    return low if low == high else f"{low} to {high}"


def in_pieces():
    return TABLE1[TABLE1.inference == "non-overlapping"].method.unique()


# Beside Press et al.


def cells_beside_press():
    lines = []
    for l_train, length in BESIDE:
        cells = [
            *(of_paper("ALiBi", l_train, length), of_press("ALiBi", l_train, length)),
            *(of_paper(ROPE, l_train, length), of_press("Rotary", l_train, length)),
        ]
        lines.append(f"| {l_train} | {length} | {' | '.join(f'{cell:.2f}' for cell in cells)} |")
    return [" ".join(lines)]


def alibi_is_the_same_experiment():
    apart = [abs(of_paper("ALiBi", *cell) - of_press("ALiBi", *cell)) for cell in BESIDE]
    equal = {1: "one is", 2: "two are", 3: "three are"}[sum(difference == 0 for difference in apart)]
    assert len(apart) == 8
    return [f"The eight cells differ by at most {max(apart):.2f}, and {equal} equal."]


def rope_is_another_experiment():
    ahead = [of_paper("ALiBi", n, n) - of_paper(ROPE, n, n) for n in (512, 1024)]
    behind = [of_press("Rotary", n, n) - of_press("ALiBi", n, n) for n in (512, 1024)]
    longest = [(of_paper(ROPE, *cell), of_press("Rotary", *cell)) for cell in ((512, 2512), (1024, 5024))]
    paper, press = ([of(name, 1024, n) for n in (1024, 1524)] for of, name in ((of_paper, ROPE), (of_press, "Rotary")))
    assert min(*ahead, *behind) > 0 and paper[1] < paper[0] and press[1] > press[0]
    assert all(theirs > 2.5 * others for theirs, others in longest)
    return [
        "At L_train it is ahead of ALiBi in the paper, by "
        f"{ahead[0]:.2f} and {ahead[1]:.2f}, and behind it in Press et al., by {behind[0]:.2f} and {behind[1]:.2f}.",
        f"At the longest length it has {longest[0][0]:.2f} beside {longest[0][1]:.2f}, and {longest[1][0]:.2f} beside "
        f"{longest[1][1]:.2f}.",
        f"From 1024 to 1524 it falls in the paper ({paper[0]:.2f} to {paper[1]:.2f}) and rises in Press et al. "
        f"({press[0]:.2f} to {press[1]:.2f}).",
    ]


def t5_extrapolates():
    texts = []
    for l_train, length in (512, 1512), (1024, 3024):
        far, own = of_press("T5 bias", l_train, length), of_press("T5 bias", l_train, l_train)
        beyond = PRESS_WHOLE[(PRESS_WHOLE.method == "T5 bias") & (PRESS_WHOLE.l_train == l_train)]
        below = beyond[(beyond.perplexity < own) & (beyond.sequence_length > l_train)]
        assert below.sequence_length.max() == length
        texts.append(f"up to {length} ({far:.2f} beside {own:.2f})")
    return [f"In their tables T5 stays below its value at L_train {texts[0]} and {texts[1]}."]


def nearly_the_same_length():
    alibi = PRESS[(PRESS.method == "ALiBi") & (PRESS.inference == "full")]
    pairs = alibi[alibi.source == "Table 5"].merge(alibi[alibi.source != "Table 5"], on="l_train")
    pairs = pairs[(pairs.sequence_length_x / pairs.sequence_length_y - 1).abs() < 0.02]
    apart = (pairs.perplexity_x - pairs.perplexity_y).abs()
    most = pairs.loc[apart.idxmax()]
    assert len(pairs) == 7
    return [
        f"Their Table 5 and their Tables 2 and 3 differ by up to {apart.max():.2f}: {most.perplexity_x:.2f} at "
        f"{most.sequence_length_x}, {most.perplexity_y:.2f} at {most.sequence_length_y}."
    ]


# Table 1


def pieces_of_1024():
    apart = []
    for method in in_pieces():
        own, in_512 = of_paper(method, 1024, 1024), of_paper(method, 512, 512)
        for length in (1524, 3024, 5024):
            printed = of_paper(method, 1024, length, "non-overlapping")
            apart.append(abs(printed - in_512))
            whole = length // 1024 * 1024
            last = rest(length, printed, whole, own)
            assert last > 1.1 * own  # with 500 tokens or more, hardly fewer than 1024
            if (method, length) == (RICKER, 3024):
                assert length - whole == 976
                ricker = f"Ricker has {printed:.2f} at 3024 and {own:.2f} at 1024, "
                ricker += f"so its last 976 tokens would have {last:.2f}."
    assert len(apart) == 18 and max(apart) < 0.3
    return [ricker, f"All 18 cells are within {max(apart):.2f} of the same row's 512 at L_train 512"]


def ricker_at_1524():
    between = {}
    for method in in_pieces():
        lengths = (1024, 1524, 3024, 5024)
        cells = [(length, of_paper(method, 1024, length)) for length in lengths]
        between[method] = [rest(*after, *before) for before, after in zip(cells, cells[1:])]
    first, second, third = between.pop(RICKER)
    others = [values[0] for values in between.values()]
    assert first < min(*others, second, third) - 2
    return [
        f"Ricker has {of_paper(RICKER, 1024, 1024):.2f} at 1024 and {of_paper(RICKER, 1024, 1524):.2f} at 1524",
        f"have a perplexity of {first:.2f}. Those up to 3024 have {second:.2f}, those up to 5024 {third:.2f}. "
        f"In the other rows tokens 1025 to 1524 have {span(others)}.",
    ]


def division_changes_nothing():
    texts = []
    for method in ("ALiBi", "Trans-XL"):
        behind = [
            of_paper(method, 512, length, "non-overlapping") - of_paper(ROPE, 512, length, "non-overlapping")
            for length in (512, 1012, 1512, 2512)
        ]
        assert max(behind[1:]) <= behind[0] + 0.011  # of two rounded numbers
        texts.append((f"{behind[0]:.2f}", span(behind[1:])))
    (alibi, divided), (trans_xl, divided_trans_xl) = texts
    return [
        f"ALiBi is behind by {alibi} and Trans-XL by {trans_xl} at 512, where nothing is divided, and by {divided} and "
        f"{divided_trans_xl} in pieces."
    ]


def trans_xl_rises():
    own, far = of_paper("Trans-XL", 1024, 1024), of_paper("Trans-XL", 1024, 5024)
    assert far > own
    return [f"At L_train 1024 Trans-XL has {own:.2f} at 1024 and {far:.2f} at 5024."]


def theta_does_not_soften_at_first():
    small, large = of_paper(ROPE, 512, 1012), of_paper("RoPE theta=500000", 512, 1012)
    assert large > small
    return [f"At twice L_train RoPE has {large:.2f} with 500,000 and {small:.2f} with 10,000."]


# Tables 2 to 4


def lengths_of_table_2():
    rope = TABLE2[TABLE2.method == "RoPE theta=500000"].sort_values("sequence_length")
    assert (rope.sequence_length % 4096 == 0).all() and (rope.l_train == 4096).all()
    assert (TABLE2.inference == "non-overlapping").all() and rope.perplexity.is_monotonic_decreasing
    return [f"RoPE has {', '.join(f'{cell:.2f}' for cell in rope.perplexity)}."]


def two_misprints():
    rows = {**rows_of(TABLE1, "method"), **rows_of(TABLE3, *TABLE3.columns[:3]), **rows_of(TABLE4, "wavelet")}
    wrong = rows.pop(("Gaussian", "0..3", 32))
    rises = {key: row for key, row in rows.items() if row[512] > row[256]}
    (bior,) = rises.values()
    assert list(rises) == [("bior1.3",)] and all(row[256] < row[128] for row in rows.values())
    falls = [row[256] / row[128] for row in rows.values()]
    assert min(falls) < 20.96 / wrong[128] < max(falls)
    return [
        f"{wrong[256]:.2f} at 256 stands between {wrong[128]:.2f} and {wrong[512]:.2f}. "
        f"At 256 every other row of Tables 1, 3 and 4 has {span(falls)} of its value at 128; this one has "
        f"{wrong[256] / wrong[128]:.2f}, and with 20.96 it would have {20.96 / wrong[128]:.2f}.",
        f"bior1.3 has {bior[256]:.2f} at 256, {bior[512]:.2f} at 512 and {bior[1012]:.2f} at 1012. No other row rises "
        "from 256 to 512.",
    ]


def negative_values():
    rows = rows_of(TABLE3[TABLE3.wavelet.isin(["Ricker", "Gaussian"])], *TABLE3.columns[:3])
    pairs = [(row[2512], rows[("Ricker", *key)][2512]) for (name, *key), row in rows.items() if name == "Gaussian"]
    ahead = sum(gaussian < ricker for gaussian, ricker in pairs)
    assert len(pairs) == 10 and ahead == 6
    assert all(of_paper("Gaussian", 512, length) > of_paper(RICKER, 512, length) for length in (128, 256, 512))
    lowest = TABLE3.perplexity.min()
    assert lowest == rows["Gaussian", "0..15", 8][2512]
    return [
        "Up to L_train the Gaussian, which has none, is behind Ricker in Table 1. At 2512 it is ahead, there "
        f"({of_paper('Gaussian', 512, 2512):.2f} and {of_paper(RICKER, 512, 2512):.2f}) and in six of Table 3's ten "
        f"pairs. Table 3's lowest number is a Gaussian's, {lowest:.2f}."
    ]


def the_same_wavelet_twice():
    db2, sym2 = (pywt.Wavelet(name).dec_hi for name in ("db2", "sym2"))
    assert db2 == pytest.approx(sym2, abs=1e-9)
    a, b = (rows_of(TABLE4, "wavelet")[(name,)] for name in ("db2", "sym2"))
    within = [abs(a[length] - b[length]) for length in (128, 256, 512)]
    ahead = [of_paper(name, 512, 512) - of_paper(RICKER, 512, 512) for name in ("Gaussian", "Haar")]
    return [
        f"Their numbers are {span(within)} apart up to L_train, {a[1012]:.2f} and {b[1012]:.2f} at 1012, "
        f"{a[2512]:.2f} and {b[2512]:.2f} at 2512.",
        f"At L_train Ricker is ahead of Gaussian by {ahead[0]:.2f} and of Haar by {ahead[1]:.2f}.",
    ]


def haar_in_table_4():
    haar = [rows_of(TABLE1, "method")[("Haar",)], rows_of(TABLE4, "wavelet")[("Haar",)]]
    assert list(haar[0]) == list(haar[1]) and len(haar[0]) == 6
    return ["Table 4 lists Haar among them with the six numbers of Table 1"]


def discrete_wavelets_beside_nope():
    nope, at = of_paper("NoPE", 512, 512), DISCRETE[DISCRETE.sequence_length == 512].set_index("wavelet").perplexity
    poor = [name for name in at.index if name.startswith("coif") or name == "dmey"]
    others = at.drop(poor)
    assert [name for name in poor if at[name] < nope] == ["coif2", "coif8"] and len(others) == 21
    return [
        f"At L_train {(others >= nope).sum()} of these 21 are not below NoPE's {nope:.2f}, and two of the poor ones "
        f"are (coif2 {at['coif2']:.2f}, coif8 {at['coif8']:.2f})."
    ]


def vanishing_moments():
    rows = {name: row for (name,), row in rows_of(DISCRETE, "wavelet").items()}
    best = rows.pop("rbio1.1")
    db = [rows[name] for name in ("db2", "db4", "db8", "db16", "db32")]
    assert all((best < row).all() for row in rows.values()) and db[0][512] == min(row[512] for row in db)
    return [
        "rbio1.1, with the fewest, is the lowest of all 27 at each length. At L_train db2, with the fewest, is the "
        f"lowest db ({db[0][512]:.2f}; the others {span([row[512] for row in db[1:]])})."
    ]


# Early tokens


def alibi_gains_by_early_tokens():
    texts = []
    for l_train in (512, 1024):
        whole = [
            number(PRESS, method="ALiBi", source="Table 5", l_train=l_train, sequence_length=length)
            for length in (l_train, 3072)
        ]
        sliding = [of_sliding("ALiBi", l_train, length) for length in (l_train, 3072)]
        assert whole[1] < whole[0] - 0.6 and sliding[1] > sliding[0]
        texts.append(f"from {whole[0]:.2f} at {l_train} to {whole[1]:.2f} at 3072")
        texts.append(f"from {sliding[0]:.2f} to {sliding[1]:.2f}")
    return [f"{texts[0]} (L_train 512) and {texts[2]} (L_train 1024)", f"{texts[1]} and {texts[3]}"]


def no_row_tells():
    methods = ("Sinusoidal", "T5 bias", "ALiBi")
    factors = [of_sliding(name, 512, 512) / of_press(name, 512, 512) for name in methods]
    blind = [factor ** ((2512 - 512) / 2512) for factor in factors]
    rows = {key: row[2512] / row[512] for key, row in rows_of(TABLE3, *TABLE3.columns[:3]).items()}
    table1 = {key: row[2512] / row[512] for (key,), row in rows_of(TABLE1, "method").items()}
    lowest = min(
        *rows.values(), *table1.values(), *(row[2512] / row[512] for row in rows_of(TABLE4, "wavelet").values())
    )
    assert lowest == rows["Gaussian", "2..9", 16] and lowest > 0.99 * min(blind)
    return [
        f"have {span(factors, '.3f')} of the perplexity at 512",
        f"{span(blind, '.3f')} at 2512.",
        f"In the paper ALiBi has {table1['ALiBi']:.3f} there, Ricker {table1[RICKER]:.3f}, "
        f"Gaussian {table1['Gaussian']:.3f} and the lowest row, the Gaussian with 2^2..2^9, {lowest:.3f}.",
    ]


NOTES = [
    *(cells_beside_press, alibi_is_the_same_experiment, rope_is_another_experiment, t5_extrapolates),
    *(nearly_the_same_length, pieces_of_1024, ricker_at_1524, division_changes_nothing, trans_xl_rises),
    *(theta_does_not_soften_at_first, lengths_of_table_2, two_misprints, negative_values, the_same_wavelet_twice),
    *(haar_in_table_4, discrete_wavelets_beside_nope, vanishing_moments, alibi_gains_by_early_tokens, no_row_tells),
]


@pytest.mark.parametrize("note", NOTES, ids=lambda note: note.__name__)
def test_the_page_says_what_the_papers_tables_say(note):
    for text in note():
        assert text in PAGE


def test_the_page_has_no_perplexity_that_is_not_recomputed():
    left = PAGE
    for note in NOTES:
        for text in note():
            left = left.replace(text, "")
    left = re.sub(r"[Ss]ection \d\.[\d.]+|\b(bior|rbio)\d\.\d", "", left)
    assert re.findall(r"\d+\.\d+", left) == []
