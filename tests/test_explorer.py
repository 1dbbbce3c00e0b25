"""docs/explorer.html: its numbers and refusals beside the library's, and what a browser makes of it."""

import html
import json
import random
import re
import shutil
import subprocess

import numpy as np
import pytest
import torch
from conftest import ROOT

from wavepos_fairseq.lab.palette import COLOURS
from wavepos_fairseq.positions import build_position
from wavepos_fairseq.positions.low_rank import low_rank
from wavepos_fairseq.wavelets import (
    MOTHER_WAVELETS,
    SHIFT_DIRECTIONS,
    discrete_wavelet,
    parse_numbers,
    wavelet_basis,
)

SOURCE = (ROOT / "docs" / "explorer.html").read_text(encoding="utf-8")
EPS = {"bf16": torch.finfo(torch.bfloat16).eps, "fp32": torch.finfo(torch.float32).eps}
HEADS = [  # wavelet, scales, shifts, lags; each in every reading of the shift
    ("ricker", "2^0..2^7", "0..15", 1024),
    ("gaussian", "1,2.5,7,30,111", "0..2,0.5,40", 512),
    ("morlet", "2^0..2^7", "0..7", 512),
    ("haar", "2^0..2^7", "0..15", 256),
    ("haar", "2^0*8", "0..15", 128),
    ("haar", "0.1", "5", 128),  # zero at whole lags
    ("ricker", "2^7", "0..63", 1024),  # nearly the same curves
    ("ricker", "2^0..2^63", "0", 512),  # constants
    ("db2", "1..8", "0..7", 512),
    ("db4", "1..8", "0..7", 2048),
    ("sym8", "1..5,9", "0..7", 512),
    ("coif2", "1..4", "0..15", 256),
    ("rbio1.1", "1..8", "0..15", 512),
    ("bior3.1", "1..8", "0..7", 512),
]
CASES = [(*head, reading) for head in HEADS for reading in SHIFT_DIRECTIONS]
by_case = pytest.mark.parametrize("case", range(len(CASES)), ids=[" ".join(map(str, case)) for case in CASES])
PIECES = ["0", "1", "2", "7", "15", "1.5", "^", "..", "*", ",", " ", "-", "x", "'", "2^0..2^7", "2^0*8", "0..3"]
DRAW = random.Random(1)
TEXTS = [
    *"1,2,4 0..15 2^0..2^7 2^0*8 10^2..10^4 99999999999999999999..100000000000000000001 0..65536 1*65537".split(),
    *"3..1 2..1 1*0 2^3..3^4 1.5..2.5 2^1024 10^999 , a'b a\"b a'b\"c a\\b".split(),
    *("", "1.5^3, 0.25", "1\t2"),
    *("".join(DRAW.choices(PIECES, k=DRAW.randint(1, 4))) for _ in range(400)),
]
REFUSED = [  # what a head of as many dimensions as scales x shifts is not made of: wavelet, scales, shifts, reading
    ("ricker", "0,1", "0..3", "past"),
    ("ricker", "1e-300", "0", "past"),
    ("ricker", "0." + 149 * "0" + "1", "0", "past"),
    ("db4", "2^0..2^7", "0..15", "past"),
    ("db4", "1.5", "0", "past"),
    ("db4", "0..3", "0", "past"),
    ("db4", "1..4", "0,1.5", "future"),
    ("morlet", "1" + 200 * "0", "1" + 120 * "0", "scaled"),  # and not in the past
    ("haar", "2^0..2^3", "0,,1", "past"),
    ("haar", "1,123456789", "0", "sideways"),
]
COMPUTE = """
const outcome = make => { try { return make(); } catch (refused) { return `${refused.message}`; } };
const given = %s;
const found = {
  heads: given.cases.map(([wavelet, scales, shifts, lags, reading]) => {
    const head = headOf({wavelet, scales, shifts, reading}), table = waveletBasis(head, lags);
    const ranks = Object.entries(EPS).map(([name, eps]) => [name, lowRank(table, head.width, eps)]);
    return {table: [...table], values: svd(table, head.width).values, ranks: Object.fromEntries(ranks)};
  }),
  numbers: given.texts.map(text => outcome(() => parseNumbers(text, "scales"))),
  refused: given.refused.map(([wavelet, scales, shifts, reading]) =>
    outcome(() => headOf({wavelet, scales, shifts, reading}))),
  psi: Object.keys(FILTERS).map(name => [name, [1, 2, 3, 8].map(level => [level, [...discreteWavelet(name, level)]])]),
  closed: Object.keys(MOTHER_WAVELETS),
  readings: Object.keys(READINGS),
};
"""


def chromium(folder, page, *options):
    """The page as the browser leaves it, and what it says on its console."""
    command = ["chromium", "--headless", "--no-sandbox", "--hide-scrollbars", f"--user-data-dir={folder / 'profile'}"]
    command += ["--allow-file-access-from-files", "--enable-logging=stderr", "--virtual-time-budget=20000", *options]
    done = subprocess.run([*command, "--dump-dom", f"file://{page}"], capture_output=True, text=True, timeout=120)
    assert ":CONSOLE" not in done.stderr, done.stderr
    return html.unescape(done.stdout.split('data-found="')[1].split('"')[0])


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """What the functions of the page's first script make of CASES, TEXTS and REFUSED."""
    script = SOURCE.split("<script>")[1].split("</script>")[0]
    script += COMPUTE % json.dumps({"cases": CASES, "texts": TEXTS, "refused": REFUSED})
    if shutil.which("node"):
        command = ["node", "-"]
        done = subprocess.run(
            command, input=script + "console.log(JSON.stringify(found))", capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)
    if shutil.which("chromium"):
        folder = tmp_path_factory.mktemp("explorer")
        script += "document.body.dataset.found = JSON.stringify(found)"
        (folder / "page.html").write_text(f"<!doctype html><body><script>{script}</script>", encoding="utf-8")
        return json.loads(chromium(folder, folder / "page.html"))
    pytest.skip("neither node nor chromium is installed")


def table_of(wavelet, scales, shifts, lags, reading):
    return wavelet_basis(wavelet, parse_numbers(scales, ""), parse_numbers(shifts, ""), reading, lags)


# The numbers


@by_case
def test_the_curves_are_those_of_the_library(page, case):
    expected = table_of(*CASES[case])
    found = np.reshape(page["heads"][case]["table"], expected.shape)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)


@by_case
def test_the_singular_values_are_those_of_the_library_s_table(page, case):
    expected = torch.linalg.svdvals(table_of(*CASES[case])).numpy()
    np.testing.assert_allclose(page["heads"][case]["values"], expected, rtol=0, atol=1e-9 * expected[0])


@by_case
@pytest.mark.parametrize("dtype", EPS)
def test_rank_and_reach_are_those_of_the_library_and_the_least_that_will_do(page, case, dtype):
    table, found = table_of(*CASES[case]), page["heads"][case]["ranks"][dtype]
    _, rows = low_rank(table, EPS[dtype])
    assert (found["reach"], found["rank"]) == tuple(rows.shape)
    bound = EPS[dtype] * table.norm(dim=1).max()
    too_long = (table.norm(dim=1) > bound).nonzero().flatten().tolist()
    assert found["leastReach"] == (too_long[-1] + 1 if too_long else 0)
    rank = found["leastRank"]
    if not too_long:
        assert rank == 0
        return
    assert error_of(table, found["reach"], rank) <= bound < error_of(table, found["reach"], rank - 1)
    values = torch.linalg.svdvals(table[: found["reach"]])  # between equal ones there is no telling which comes first
    cut = max(columns for columns in range(rank) if columns == 0 or values[columns] < 0.99 * values[columns - 1])
    assert found["worst"][cut] == pytest.approx(float(error_of(table, found["reach"], cut) / table.norm(dim=1).max()))


def error_of(table, reach, rank):
    """The largest error at any lag of the table's first rows where `rank` singular vectors are kept."""
    left, values, right = torch.linalg.svd(table[:reach], full_matrices=False)
    return (table[:reach] - (left[:, :rank] * values[:rank]) @ right[:rank]).norm(dim=1).max()


def test_the_discrete_wavelets_are_pywavelets_to_their_ends(page):
    assert len(page["psi"]) > 5
    for name, levels in page["psi"]:
        for level, found in levels:
            expected = discrete_wavelet(name, level).numpy()
            padded = np.zeros(max(len(found), len(expected)))
            padded[: len(found)] = found
            np.testing.assert_allclose(padded[: len(expected)], expected, rtol=0, atol=1e-12, err_msg=f"{name} {level}")
            assert not padded[len(expected) :].any()


def test_the_page_has_the_library_s_closed_forms_and_readings(page):
    assert page["closed"] == list(MOTHER_WAVELETS) and page["readings"] == list(SHIFT_DIRECTIONS)


# The words


def outcome(make):
    try:
        return make()
    except ValueError as error:
        return str(error)


def test_numbers_and_refusals_of_the_grammar_are_the_library_s(page):
    expected = [outcome(lambda text=text: parse_numbers(text, "wavelet_scales")) for text in TEXTS]
    kinds = [isinstance(one, str) for one in expected]
    assert 50 < sum(kinds) < len(kinds) - 50
    for text, found, one in zip(TEXTS, page["numbers"], expected):
        assert found == (one if isinstance(one, str) else pytest.approx(one, rel=1e-14)), text


@pytest.mark.parametrize("case", range(len(REFUSED)), ids=[" ".join(case)[:40] for case in REFUSED])
def test_refusals_of_a_head_are_the_library_s(page, case):
    wavelet, scales, shifts, reading = REFUSED[case]
    counts = [len(numbers) for numbers in map(lambda text: outcome(lambda: parse_numbers(text, "")), (scales, shifts))]
    options = {"wavelet_scales": scales, "wavelet_shifts": shifts, "wavelet_shift_direction": reading}
    with pytest.raises(ValueError) as refused:
        build_position("wavelet", head_dim=counts[0] * counts[1], num_heads=1, wavelet=wavelet, **options)
    assert page["refused"][case] == str(refused.value)


# The page


def test_the_page_is_small_and_loads_nothing():
    assert len(SOURCE.encode()) < 60_000
    references = re.findall(r"(?:src|href|srcset|action)=\"([^\"$]*)", SOURCE)
    assert references and all(reference.startswith(("#", "data:")) for reference in references if reference)
    assert "default-src 'none'; img-src data:;" in SOURCE
    assert not re.search(r"https?://|url\(|@import|fetch\(|import\(", SOURCE)


def test_the_curves_have_the_colours_of_the_figures_and_ink_for_grey():
    colours = re.findall(r'"([^"]+)"', re.search(r"const COLOURS = \[(.*)\]", SOURCE).group(1))
    assert set(COLOURS) - {"#8C8C8C"} < set(colours) and "var(--ink)" in colours
    assert len(set(colours)) == len(colours)


FRAGMENT = "wavelet=haar&scales=2^0..2^7&shifts=0..15&reading=future&lags=512&drawn=scale3"
PROBE = """<iframe src="explorer.html#%s" style="border: 0; width: %dpx; height: 800px"></iframe><script>
const frame = document.querySelector("iframe"), found = {};
const after = (milliseconds, step) => new Promise(done => setTimeout(() => done(step()), milliseconds));
onload = async () => {
  const page = frame.contentDocument, view = frame.contentWindow, $ = id => page.getElementById(id);
  const root = page.scrollingElement, count = what => page.querySelectorAll(what).length;
  await after(1500, () => {
    found.page = [root.clientWidth, root.scrollWidth];
    found.ink = [getComputedStyle(page.body).color, getComputedStyle(page.querySelector("#heat text:not(.name)")).fill];
    found.controls = ["wavelet", "scales", "shifts", "reading", "lags", "drawn"].map(id => $(id).value).join(" ");
    found.unnamed = [...page.querySelectorAll("input, select")].filter(control => !control.labels.length).length;
    found.numbers = [...$("numbers").tBodies[0].rows].map(row => [...row.cells].map(cell => cell.textContent));
    found.width = $("width").textContent;
    found.drawn = ["#curves svg > .curve", "#legend li", "#heat image", "#spectrum svg > .curve"].map(count);
    found.outside = [...page.querySelectorAll("svg text")].filter(text => {
      const box = text.getBoundingClientRect();
      return box.left < 0 || box.right > root.clientWidth;
    }).map(text => text.textContent);
    found.says = $("heat-says").textContent;
    for (const key of ["ArrowRight", "ArrowDown"]) $("heat").dispatchEvent(new view.KeyboardEvent("keydown", {key}));
    found.read = $("read").textContent;
    $("scales").value = "2^0..3^7";
    $("scales").dispatchEvent(new view.Event("input"));
    found.error = $("scales-error").textContent;
    found.errors = count(".error:not(:empty)");
    found.invalid = ["scales", "shifts"].map(id => $(id).getAttribute("aria-invalid"));
    found.addressOfError = view.location.hash;
    $("scales").value = "2^0*3";
    $("scales").dispatchEvent(new view.Event("input"));
    $("wavelet").value = "db4";
    $("wavelet").dispatchEvent(new view.Event("change"));
  });
  await after(1500, () => {
    found.mended = [count(".error:not(:empty)"), $("width").textContent, view.location.hash];
    view.location.hash = "#wavelet=db2&scales=1..8";
  });
  await after(1500, () => {
    found.linked = ["wavelet", "scales", "shifts"].map(id => $(id).value).join(" ");
    $("wavelet").value = "ricker";
    $("wavelet").dispatchEvent(new view.Event("change"));
    found.swapped = $("scales").value;
  });
  found.others = [];
  for (const other of ["scales=0.1&shifts=5", "scales=3&shifts=0..1", "wavelet=none", "scales=2^0*256&shifts=0"]) {
    view.location.hash = `#lags=128&${other}&wavelet=haar`;
    await after(1500, () => {
      found.others.push([count(".error:not(:empty)"), $("spectrum-says").textContent.split(".")[0]]);
    });
  }
  await after(0, () => {
    document.body.dataset.found = JSON.stringify(found);
  });
};
</script>"""


@pytest.mark.skipif(not shutil.which("chromium"), reason="chromium is not installed")
@pytest.mark.parametrize(
    "width, scheme, ink",
    [(390, 0, "rgb(236, 236, 238)"), (1280, 1, "rgb(29, 29, 31)")],
    ids=["phone in the dark", "desktop"],
)
def test_browser_shows_the_library_s_numbers_errors_in_place_and_keeps_the_view_in_the_address(
    width, scheme, ink, tmp_path
):
    (tmp_path / "explorer.html").write_text(SOURCE, encoding="utf-8")
    (tmp_path / "probe.html").write_text(PROBE % (FRAGMENT, width), encoding="utf-8")
    scheme = f"--blink-settings=preferredColorScheme={scheme}"
    found = json.loads(chromium(tmp_path, tmp_path / "probe.html", scheme, "--window-size=1400,900"))
    assert found["page"] == [width, width] and found["outside"] == []
    assert found["ink"] == [ink, ink]
    assert found["controls"] == "haar 2^0..2^7 0..15 future 512 scale3" and found["unnamed"] == 0
    assert found["width"] == "8 scales × 16 shifts = a head of 128 dimensions"
    table = table_of("haar", "2^0..2^7", "0..15", 512, "future")
    shown = {name: numbers for name, *numbers in found["numbers"]}
    shapes = [low_rank(table, eps)[1].shape for eps in EPS.values()]
    assert shown["rank r, of the library"] == [str(rank) for _, rank in shapes]
    assert shown["reach T, of the library"] == [str(reach) for reach, _ in shapes]
    assert found["drawn"] == [8, 8, 1, 2]
    zeros = int((table == 0).all(dim=0).sum())
    assert f"{zeros} of the 128 dimensions are zero at every lag" in found["says"]
    # the rows are sorted by scale, so the second one is of scale 1 and shift 1: dimension 8
    assert found["read"] == f"lag t = 1, dimension 8 (a = 1, b = 1): p = {table[1, 8]:.4f}"
    assert found["error"] == outcome(lambda: parse_numbers("2^0..3^7", "wavelet_scales"))
    assert found["errors"] == 1 and found["invalid"] == ["true", "false"]
    assert "scales=2^0..3^7&" in found["addressOfError"]
    address = "#wavelet=db4&scales=2^0*3&shifts=0..15&reading=future&lags=512&drawn=scale3"
    assert found["mended"] == [0, "3 levels × 16 shifts = a head of 48 dimensions", address]
    dimension, dimensions = (f"Singular values of the 128 × {count} table of p" for count in (2, 256))
    zero = "p is zero at every whole lag: the head knows no position"
    assert found["others"] == [[0, zero], [0, dimension], [1, dimension], [0, dimensions]]
    assert found["linked"] == "db2 1..8 0..15" and found["swapped"] == "2^0..2^7"
