"""The claims of lab/figures/formulas.py: what each curve and cell shows, spelled again with numpy and PyWavelets."""

import functools
import os
import subprocess
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import pywt
import yaml
from matplotlib.image import imread
from matplotlib.text import Text

from wavepos_fairseq.lab.figures.command import main
from wavepos_fairseq.lab.figures.formulas import BASES, FIGURES
from wavepos_fairseq.lab.palette import COLOURS

ROOT = Path(__file__).resolve().parents[1]
AGAIN = ("figure4", "figure6", "basis-morlet", "singular-values")
KINDS = ("svg", "png")

# psi((t - b) / a), Eq. 11 to 15, of the lag t = m - n.
CLOSED_FORMS = {
    "ricker": lambda t, a, b: (1 - ((t - b) / a) ** 2) * np.exp(-0.5 * ((t - b) / a) ** 2),
    "gaussian": lambda t, a, b: np.exp(-(((t - b) / a) ** 2)),
    "morlet": lambda t, a, b: np.exp(-(((t - b) / a) ** 2)) * np.cos(t - b),
    "haar": lambda t, a, b: np.select([(0 < t - b) & (t - b <= a / 2), (a / 2 < t - b) & (t - b <= a)], [1.0, -1.0]),
}


def db4(t, level, b):
    """db4 of a level, a sample to a token, zero outside."""
    psi = pywt.Wavelet("db4").wavefun(level=level)[1]
    return np.interp(t - b, np.arange(len(psi)), psi, left=0, right=0)


def wavelets(name, lags):
    """(dimensions, lags) of a head of 128: for each scale (or level) the shifts 0 to 15."""
    psi, scales = (db4, range(1, 9)) if name == "db4" else (CLOSED_FORMS[name], 2.0 ** np.arange(8))
    return np.stack([psi(lags, a, b) for a in scales for b in range(16)])


def sine_waves(lags):
    angle = lags / 10000.0 ** (np.arange(0, 128, 2)[:, None] / 128)
    return np.concatenate([np.sin(angle), np.cos(angle)])


drawn = functools.lru_cache(maxsize=None)(lambda name: FIGURES[name]())


def curves(figure):
    """The labelled curves, or those of titled panels, by their names: (x, y)."""
    named = {}
    for axes in figure.axes:
        for line in axes.get_lines():
            name = axes.get_title() or line.get_label()
            if not name.startswith("_"):
                named[name] = (np.asarray(line.get_xdata()), np.asarray(line.get_ydata()))
    return named


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What main() writes when it is asked for no figure by name."""
    output = tmp_path_factory.mktemp("figures") / "new" / "folder"
    main(["--output", str(output)])
    return output


def contents(folder, names):
    return {f"{name}.{kind}": (folder / f"{name}.{kind}").read_bytes() for name in names for kind in KINDS}


# What is drawn


@pytest.mark.parametrize("name, exponents", [("figure4", range(5)), ("figure5", range(5, 10))])
def test_figures_4_and_5_are_rickers_of_the_scales_in_the_captions_on_both_sides_of_0(name, exponents):
    found = curves(drawn(name))
    assert list(found) == [f"$a = 2^{{{exponent}}}$" for exponent in exponents]
    for (t, y), exponent in zip(found.values(), exponents):
        assert t[0] == -t[-1] == -4 * 2.0 ** exponents[-1] and np.allclose(np.diff(t), t[1] - t[0])
        np.testing.assert_allclose(y, CLOSED_FORMS["ricker"](t, 2.0**exponent, 0), rtol=0, atol=1e-14)
        assert (y > 0.5).sum() > 10  # enough samples to show the narrowest


def test_figure_6_is_the_four_closed_forms_at_scale_16_and_shift_0():
    found = {title.split()[0]: curve for title, curve in curves(drawn("figure6")).items()}
    assert list(found) == list(CLOSED_FORMS)
    for name, (t, y) in found.items():
        np.testing.assert_allclose(y, CLOSED_FORMS[name](t, 16.0, 0), rtol=0, atol=1e-13)


@pytest.mark.parametrize("name", ["figure9", "figure10"])
def test_figures_9_and_10_are_pywavelets_decomposition_wavelets_at_level_10(name):
    for wavelet, (time, y) in curves(drawn(name)).items():
        *functions, expected_time = pywt.Wavelet(wavelet).wavefun(level=10)
        np.testing.assert_allclose(time, expected_time, rtol=0, atol=1e-12)
        np.testing.assert_array_equal(y, functions[1])


def test_figures_9_and_10_together_are_the_27_wavelets_of_table_4_that_have_no_closed_form():
    rows = yaml.safe_load((ROOT / "configs" / "tables" / "table4.yaml").read_text())["rows"]
    wavelets = [row["labels"]["wavelet"] for row in rows.values()]
    expected = [wavelet for wavelet in wavelets if wavelet.lower() not in CLOSED_FORMS]
    assert len(expected) == 27
    assert [*curves(drawn("figure9")), *curves(drawn("figure10"))] == expected


@pytest.mark.parametrize("wavelet", BASES)
def test_a_heat_map_is_equation_14_at_every_lag_with_the_dimensions_sorted_by_scale_and_then_by_shift(wavelet):
    mesh = drawn(f"basis-{wavelet}").axes[0].collections[0]
    expected = wavelets(wavelet, np.arange(2048.0))
    np.testing.assert_allclose(np.reshape(mesh.get_array(), (128, 2048)), expected, rtol=0, atol=1e-13)
    assert mesh.norm.vmax == -mesh.norm.vmin == pytest.approx(abs(expected).max())


@pytest.mark.parametrize(
    "wavelet, a, b, t, value",
    [
        ("ricker", 1, 0, 0, 1),
        ("ricker", 8, 5, 21, -3 * np.exp(-2)),
        ("gaussian", 128, 15, 143, np.exp(-1)),
        ("morlet", 64, 2, 34, np.exp(-1 / 4) * np.cos(32)),
        ("haar", 4, 1, 3, 1),
        ("haar", 4, 1, 4, -1),
    ],
)
def test_the_cell_where_the_axes_say_scale_shift_and_lag_is_that_wavelet_there(wavelet, a, b, t, value):
    axes = drawn(f"basis-{wavelet}").axes[0]
    middle = {label.get_text(): label.get_position()[1] for label in axes.get_yticklabels()}[str(a)]
    row = middle - 7.5 + b  # 16 shifts to a scale, downwards
    corners = axes.collections[0].get_coordinates()
    assert corners[int(row), t].tolist() == [t - 0.5, row - 0.5]
    assert corners[int(row) + 1, t + 1].tolist() == [t + 0.5, row + 0.5]
    assert axes.collections[0].get_array().reshape(128, 2048)[int(row), t] == pytest.approx(value, abs=1e-13)


def test_on_a_heat_map_small_scales_are_above_and_small_lags_on_the_left():
    axes = drawn("basis-ricker").axes[0]
    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    assert (left, right, bottom, top) == (-0.5, 2047.5, 127.5, -0.5)
    assert [label.get_text() for label in axes.get_yticklabels()] == [str(2**exponent) for exponent in range(8)]


def test_the_singular_values_are_numpys_of_the_same_bases_spelled_here():
    lags = np.arange(2512.0)
    expected = {**{name: wavelets(name, lags) for name in BASES}, "trans-xl": sine_waves(lags)}
    found = curves(drawn("singular-values"))
    assert list(found) == list(expected)
    for name, (index, relative) in found.items():
        values = np.linalg.svd(expected[name], compute_uv=False)
        assert index.tolist() == list(range(1, 129))
        np.testing.assert_allclose(relative, values / values[0], rtol=0, atol=1e-13)


def test_guides_stand_at_1e_3_1e_5_and_1e_7():
    lines = drawn("singular-values").axes[0].get_lines()
    assert {y[0] for y in (line.get_ydata() for line in lines) if len(y) == 2} == {1e-3, 1e-5, 1e-7}


# How it is drawn


@pytest.mark.parametrize("name", FIGURES)
def test_both_axes_say_what_they_measure_and_lags_are_in_tokens(name):
    figure = drawn(name)
    shared = [text.get_text() for text in figure.texts]
    for axes in figure.axes:
        x, y = axes.get_xlabel(), axes.get_ylabel()
        colour_bar = axes is not figure.axes[0] and name.startswith("basis")
        assert (x and y) or len(shared) == 2 or (colour_bar and y)
        assert all("tokens" in label for label in (x, *shared) if label.startswith("lag"))


@pytest.mark.parametrize("name", FIGURES)
def test_no_text_is_smaller_than_11_points_on_a_width_of_7_inches(name):
    figure = drawn(name)
    assert figure.get_figwidth() == 7
    assert min(text.get_fontsize() for text in figure.findobj(Text) if text.get_text()) >= 11


@pytest.mark.parametrize("name", ["figure4", "figure5", "singular-values"])
def test_curves_in_one_panel_differ_in_colour_and_in_line_style(name):
    lines = [line for line in drawn(name).axes[0].get_lines() if not line.get_label().startswith("_")]
    colours = [line.get_color() for line in lines]
    dashes = [str(line._dash_pattern) for line in lines]  # get_linestyle() says "--" of every pattern
    assert len(set(colours)) == len(set(dashes)) == len(lines)
    assert set(colours) <= set(COLOURS)


# What is written


@pytest.mark.parametrize("name", FIGURES)
def test_each_figure_is_an_svg_and_a_png_neither_blank_nor_above_a_mebibyte(folder, name):
    svg, png = contents(folder, [name]).values()
    assert max(len(svg), len(png)) < 2**20
    assert len(list(ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}path"))) > 10
    pixels = imread(folder / f"{name}.png")[..., :3]
    assert pixels.shape[1] == 7 * 150
    height, width = pixels.shape[:2]
    centre = pixels[height // 4 : 3 * height // 4, width // 4 : 3 * width // 4]
    assert centre.std() > 0.05
    assert len(np.unique((pixels * 255).round() @ [65536, 256, 1])) > 50  # colours


@pytest.mark.parametrize("place", ["written", "committed"])
def test_there_are_the_figures_and_nothing_else(folder, place):
    found = folder if place == "written" else ROOT / "results" / "figures"
    assert sorted(path.name for path in found.iterdir()) == sorted(
        f"{name}.{kind}" for name in FIGURES for kind in KINDS
    )


def test_drawn_twice_the_bytes_are_the_same_whatever_the_users_matplotlibrc_says(folder, tmp_path):
    with matplotlib.rc_context({"axes.linewidth": 9, "font.size": 30, "svg.hashsalt": None, "savefig.dpi": 50}):
        main(["--output", str(tmp_path), *AGAIN])
        assert matplotlib.rcParams["font.size"] == 30  # and it is left alone
    assert contents(tmp_path, AGAIN) == contents(folder, AGAIN)


def test_the_script_draws_the_same_bytes_in_another_process_and_says_where(folder, tmp_path):
    names = ("figure5", "basis-haar")
    command = [str(ROOT / "scripts" / "figures.sh"), "--output", str(tmp_path), *names]
    environment = {**os.environ, "PYTHONHASHSEED": "1", "SOURCE_DATE_EPOCH": "0"}
    printed = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True).stdout
    assert printed.split() == [str(tmp_path / f"{name}.{kind}") for name in names for kind in KINDS]
    assert contents(tmp_path, names) == contents(folder, names)


def test_an_unknown_name_is_refused_with_those_that_are_accepted(tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--output", str(tmp_path / "none"), "figure4", "figure7"])
    assert stop.value.code == 2 and not (tmp_path / "none").exists()
    message = " ".join(capsys.readouterr().err.split())
    assert f"'figure7' is unknown; accepted are {', '.join(FIGURES)}" in message
