"""The claims of lab/figures/trained.py: what its figures show, read off the figures, and what is written."""

import argparse
import functools
import json
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import L_TRAIN, sound_result
from matplotlib.text import Text

from wavepos_fairseq.lab import configs, runs, tables
from wavepos_fairseq.lab.figures import command as figures
from wavepos_fairseq.lab.figures import trained as curves
from wavepos_fairseq.lab.palette import COLOURS, looks_of_methods
from wavepos_fairseq.lab.results import PAIRS, read_sheet, write_sheet, write_table
from wavepos_fairseq.plugin.checkpoint import load_checkpoint, open_checkpoint

ROOT = Path(__file__).resolve().parents[1]
PAPER = ROOT / "results" / "paper"
TEXT = "w3 w16, W3 well-known w26"
ROWS = {"alibi": "alibi", "ricker": "wavelet"}


def lines_of(axes):
    return {line.get_label(): line for line in axes.get_lines() if not line.get_label().startswith("_")}


def titled(figure):
    return {axes.get_title(): axes for axes in figure.axes}


paper_perplexity = functools.lru_cache(maxsize=None)(
    lambda: curves.draw_perplexity(pd.read_csv(PAPER / "table1.csv"), "inference", "method")
)


@pytest.fixture(scope="module")
def folders(trained, data_bin, tmp_path_factory):
    """--runs, with two finished runs of the preset demo and two without a sound result; --results; --data."""
    folder = tmp_path_factory.mktemp("curves")
    for row, encoding in {**ROWS, "haar": "wavelet", "morlet": "wavelet"}.items():
        run = folder / "runs" / "demo" / row
        run.mkdir(parents=True)
        shutil.copy(trained(encoding), run / "checkpoint_last.pt")
        if row == "morlet":
            (run / "result.json").write_text("{}")
        elif row != "haar":
            of = runs.Run(configs.load_preset("demo"), configs.find_row(row), data_bin, run, 0, 1)
            (run / "result.json").write_text(json.dumps(sound_result(of)))
    (folder / "results" / "demo").mkdir(parents=True)
    shutil.copy(ROOT / "results" / "wikitext2-cpu" / "table1.tidy.csv", folder / "results" / "demo")
    return {"--runs": folder / "runs", "--results": folder / "results", "--data": data_bin}


def draw(folders, *words):
    """main() on the preset demo."""
    return figures.main(["--preset", "demo", *(str(word) for pair in folders.items() for word in pair), *words])


@pytest.fixture(scope="module")
def drawn(folders):
    """What is written when no figure is asked for by name."""
    assert draw(folders) == 0
    return folders["--results"] / "demo"


# Perplexities


def test_of_the_papers_table_1_there_is_a_panel_for_each_inference_and_l_train_with_its_cells():
    cells = pd.read_csv(PAPER / "table1.csv")
    panels = titled(paper_perplexity())
    assert len(panels) == 4
    for (inference, l_train), block in cells.groupby(["inference", "l_train"]):
        lines = lines_of(panels[f"{inference}, $L_{{train}}$ = {l_train}"])
        block = block.dropna()
        assert set(lines) == set(block.method)
        for method, line in lines.items():
            expected = block[block.method == method]
            assert list(line.get_xdata()) == list(expected.sequence_length)
            assert list(line.get_ydata()) == list(expected.perplexity)


def test_the_axis_holds_the_best_method_everywhere_and_those_that_break_leave_it_at_the_top():
    axes = titled(paper_perplexity())["full, $L_{train}$ = 512"]
    bottom, top = axes.get_ylim()
    inside = {
        name for name, line in lines_of(axes).items() if bottom < min(line.get_ydata()) <= max(line.get_ydata()) < top
    }
    assert {"Wavelet Ricker", "ALiBi", "Haar", "Gaussian", "Trans-XL", "Morlet"} == inside
    assert all(bottom < line.get_ydata()[0] < top for line in lines_of(axes).values())


def test_seeds_are_drawn_as_their_mean_and_a_band_of_their_standard_deviation():
    base = {"method": "ALiBi", "inference": "full", "l_train": 64}
    cells = [
        {**base, "seed": s, "sequence_length": n, "perplexity": p}
        for s, n, p in [(1, 32, 10.0), (2, 32, 14.0), (1, 64, 8.0), (2, 64, 8.0)]
    ]
    cells += [
        {**base, "method": "NoPE", "seed": s, "sequence_length": n, "perplexity": p}
        for s, n, p in [(1, 32, 20.0), (2, 32, 20.0), (1, 64, float("nan")), (2, 64, float("nan"))]
    ]
    cells += [  # its band would fill the panel, from below 0
        {**base, "method": "RoPE", "seed": s, "sequence_length": n, "perplexity": p}
        for s, n, p in [(1, 32, 12.0), (2, 32, 12.0), (1, 64, 9.0), (2, 64, 9e9)]
    ]
    (axes,) = curves.draw_perplexity(pd.DataFrame(cells), "inference", "method").axes
    assert list(lines_of(axes)["ALiBi"].get_ydata()) == [12, 8]
    assert list(lines_of(axes)["NoPE"].get_ydata()) == [20]  # no cell, no point
    band, of_nope, of_rope = axes.collections
    assert min((y for path in of_rope.get_paths() for _, y in path.vertices), default=12) == 12
    at_32 = {y for x, y in band.get_paths()[0].vertices if x == 32}
    assert min(at_32) == pytest.approx(12 - 8**0.5) and max(at_32) == pytest.approx(12 + 8**0.5)


def test_curves_are_of_the_seeds_that_all_rows_have():
    cells = [
        {"inference": "full", "method": method, "seed": seed, "l_train": 64, "sequence_length": 64, "perplexity": value}
        for method, seed, value in [
            ("ALiBi", 1, 8.0),
            ("ALiBi", 2, 9.0),
            ("ALiBi", 3, 4.0),
            ("RoPE", 1, 7.0),
            ("RoPE", 2, 9.5),
        ]
    ]
    (axes,) = curves.draw_perplexity(pd.DataFrame(cells), "inference", "method").axes
    assert {name: list(line.get_ydata()) for name, line in lines_of(axes).items()} == {"ALiBi": [8.5], "RoPE": [8.25]}


def test_a_method_that_table_1_has_no_longer_is_drawn_too():
    line = {"inference": "full", "method": "Mine", "l_train": 64, "sequence_length": 64, "perplexity": 8.0}
    cells = pd.DataFrame([line])
    (axes,) = curves.draw_perplexity(cells, "inference", "method").axes
    assert list(lines_of(axes)["Mine"].get_ydata()) == [8]


def test_a_curve_that_would_be_of_two_rows_is_refused():
    line = {"inference": "full", "method": "ALiBi", "l_train": 64, "sequence_length": 64, "perplexity": 8.0}
    cells = pd.DataFrame([{**line, "position": position, "seed": 1} for position in ("abs", "rel")])
    for columns in (cells, cells.drop(columns="seed")):
        with pytest.raises(ValueError, match="two rows have the inference full and the method ALiBi"):
            curves.draw_perplexity(columns, "inference", "method")


def test_table_3_has_a_panel_for_each_wavelet_with_the_full_inference_only():
    results = ROOT / "results"
    asked = argparse.Namespace(path=None, preset="paper", folder=results / "paper", names=["perplexity-table3"])
    ((_, figure),) = curves.draw_figures(asked)
    panels = titled(figure)
    cells = pd.read_csv(results / "paper" / "table3.csv").query("inference == 'full'")
    assert list(panels) == [f"{wavelet}, $L_{{train}}$ = 512" for wavelet in cells.wavelet.unique()]
    two_scales = cells[(cells.wavelet == "Ricker") & (cells.scale_exponents == "0..1")]
    line = lines_of(panels["Ricker, $L_{train}$ = 512"])["0..1"]
    assert list(line.get_ydata()) == list(two_scales.groupby("sequence_length").perplexity.mean())


def test_twelve_curves_are_told_apart_by_colour_and_marker_and_by_dash_and_marker():
    shown = looks_of_methods().values()
    assert len(shown) == 12 and {look.colour for look in shown} == set(COLOURS)
    for name in ("colour", "dash"):
        assert len({(getattr(look, name), look.marker) for look in shown}) == 12


# Loss and receptive field


def test_positions_are_drawn_at_the_middle_of_their_bins_and_l_train_is_marked():
    table = pd.DataFrame(
        [("nope", 8, 40, start, start + 1, 3.0 + start / 40) for start in range(40)],
        columns=["row", "l_train", "sequence_length", "start", "stop", "nll"],
    )
    (axes,) = curves.draw_positions(table).axes
    line = lines_of(axes)["NoPE"]
    assert list(line.get_xdata()) == [start + 0.5 for start in range(40)] and list(line.get_ydata()) == list(table.nll)
    (mark,) = [line for line in axes.get_lines() if line.get_label().startswith("_")]
    assert set(mark.get_xdata()) == {8}
    assert "8\n= $L_{train}$" in [label.get_text() for label in axes.get_xticklabels()]


def test_each_head_stands_at_its_lag_and_share_in_the_band_of_its_row():
    heads = pd.DataFrame(
        [
            ("alibi", 1, 16, 80, 1, 1, 3.0, 7, 0.0),
            ("alibi", 1, 16, 80, 1, 2, 9.0, 30, 0.25),
            ("nope", 2, 16, 80, 1, 1, 20.0, 60, 0.5),
        ],
        columns="row seed l_train sequence_length layer head mean_lag lag95 beyond".split(),
    )
    another_seed = heads[:2].assign(seed=2, lag95=50, beyond=0.9)  # of which head 1 is another head
    figure = curves.draw_receptive_field(pd.concat([heads, another_seed]))
    for axes, expected in zip(figure.axes, (heads.lag95, heads.beyond)):
        points = np.concatenate([scatter.get_offsets() for scatter in axes.collections])
        assert list(points[:, 0]) == list(expected)
        assert list(points[:, 1].round()) == [0, 0, 1]  # the rows, from above
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["ALiBi", "NoPE"]
    figure = curves.draw_receptive_field(heads.replace("nope", "haar+alibi"))  # no row of Table 1: as in its own table
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["NoPE + ALiBi", "Haar + ALiBi"]


# Learned wavelets


@pytest.fixture(scope="module")
def learning(trained, data_bin, tmp_path_factory):
    """--runs with a row whose scales are learned, of two seeds, and one that learns none."""
    folder = tmp_path_factory.mktemp("learned") / "runs"
    changes = {"--wavelet-learn": "scales"}
    for name, row, path in (
        ("demo", "ricker-learn-scales", trained("wavelet", changes)),
        ("demo-seed2", "ricker-learn-scales", trained("wavelet", {**changes, "--seed": "2"})),
        ("demo", "ricker", trained("wavelet")),
    ):
        run = folder / name / row
        run.mkdir(parents=True)
        shutil.copy(path, run / "checkpoint_last.pt")
        of = runs.Run(configs.load_preset("demo"), configs.find_row(row), data_bin, run, 0, 1)
        (run / "result.json").write_text(json.dumps(sound_result(of)))
    return folder


def test_scales_by_layer_are_those_of_the_checkpoints_that_learned_them(learning, data_bin, tmp_path):
    where = {"--runs": learning, "--results": tmp_path, "--data": data_bin}
    assert draw(where, "wavelets") == 0
    lines = read_sheet(tmp_path / "demo", "wavelets")
    assert list(lines.columns) == "row seed layer kind number before after".split()
    assert set(lines.row) == {"ricker-learn-scales"} and set(lines.kind) == {"scale"} and len(lines) == 2 * 2 * 8
    assert list(lines.before) == 4 * [2**e for e in range(8)]
    path = learning / "demo-seed2" / "ricker-learn-scales" / "checkpoint_last.pt"
    state = torch.load(path, map_location="cpu", weights_only=False)["model"]
    for layer in (1, 2):
        octaves = state[f"decoder.layers.{layer - 1}.self_attn.position.scale_octaves"].double()
        expected = [2 ** (e + 8 * np.tanh(u / 8)) for e, u in enumerate(octaves.tolist())]
        found = lines[(lines.seed == 2) & (lines.layer == layer)].after
        np.testing.assert_allclose(found, expected, rtol=1e-12)
    text = (tmp_path / "demo" / "wavelets.csv").read_text()
    assert draw({**where, "--runs": tmp_path / "gone"}, "wavelets") == 0  # from the sheet alone
    assert (tmp_path / "demo" / "wavelets.csv").read_text() == text
    assert {path.name for path in (tmp_path / "demo" / "figures").iterdir()} == {"wavelets.svg", "wavelets.png"}


def test_without_a_run_that_learned_wavelets_one_line_says_what_makes_one(folders, tmp_path, capsys):
    assert draw({**folders, "--results": tmp_path}, "wavelets") == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.endswith("demo has no finished run with --wavelet-learn; run scripts/reproduce.sh learned first")


def test_each_scale_and_shift_is_a_curve_over_the_layers_beside_what_it_was_before():
    lines = pd.DataFrame(
        [
            (row, 1, layer, kind, number, before, before + number * layer)
            for row, kinds in (("one", ("scale", "shift")), ("two", ("shift",)))
            for layer in (1, 2, 3)
            for kind in kinds
            for number, before in ((1, 4.0), (2, 8.0))
        ],
        columns="row seed layer kind number before after".split(),
    )
    panels = [axes for axes in curves.draw_wavelets(lines).axes if axes.axison]
    assert [(axes.get_title(), axes.get_ylabel()) for axes in panels] == [
        ("one", "scale"),
        ("one", "shift"),
        ("two", "shift"),
    ]
    for axes in panels:
        drawn = [(list(line.get_xdata()), list(line.get_ydata())) for line in axes.get_lines()]
        assert drawn == [
            ([0, 1], [4, 4]),
            ([1, 2, 3], [5, 6, 7]),
            ([0, 1], [8, 8]),
            ([1, 2, 3], [10, 12, 14]),
        ]


# Attention maps


def test_a_map_is_black_at_the_threshold_or_more_yellow_below_and_empty_in_the_future():
    weights = np.array([[[1.0, 0, 0], [0.01, 0.99, 0], [0.009, 0.001, 0.99]]])
    figure = curves.draw_attention_map({3: weights}, 0.01, 2, "Haar")
    (axes,) = figure.axes
    (image,) = axes.get_images()
    assert axes.get_title() == "layer 3, head 1" and "0.01 or more" in figure.texts[0].get_text()
    shown = image.get_array()
    assert shown.tolist() == [[True, None, None], [True, True, None], [False, False, True]]  # None is masked
    assert image.cmap(image.norm(1))[:3] == (0, 0, 0) and image.cmap(image.norm(0))[:3] > (0.9, 0.8, 0)
    marked = {tuple(line.get_xdata()) + tuple(line.get_ydata()) for line in axes.get_lines()}
    assert marked == {(1.5, 1.5, 0, 1), (0, 1, 1.5, 1.5)}  # between the positions 1 and 2 = L_train, both ways


@pytest.mark.parametrize("heads, grid", [(1, (1, 1)), (3, (1, 3)), (6, (2, 4))])
def test_every_head_of_every_layer_has_a_panel_four_in_a_row_at_most(heads, grid):
    weights = {layer: np.zeros((heads, 2, 2)) for layer in (1, 16)}
    axes = curves.draw_attention_map(weights, 0.5, 1, "").axes
    assert [panel.get_title() for panel in axes] == [
        f"layer {layer}, head {head + 1}" for layer in (1, 16) for head in range(heads)
    ]
    assert axes[0].get_gridspec().get_geometry() == (2 * grid[0], grid[1])


def test_a_text_is_divided_as_its_corpus_was_and_unknown_words_are_unk(trained, data_bin):
    dictionary = load_checkpoint(trained("alibi"), str(data_bin)).task.dictionary
    found = [dictionary[token] for token in curves.encode(TEXT, dictionary, data_bin)]
    assert found == ["</s>", "w3", "w16", *["<unk>"] * 5, "w26"]  # , W3 well @-@ known


def test_a_text_for_subwords_is_divided_by_the_codes_of_the_data_bin(tmp_path):
    from fairseq.data import Dictionary

    (tmp_path / "bpe.codes").write_text("#version: 0.2\nl o\nlo w</w>\n")
    dictionary = Dictionary()
    for symbol in ("low", "s@@", "low@@", "lo@@", "t", "e@@", "r"):
        dictionary.add_symbol(symbol)
    found = [dictionary[token] for token in curves.encode("slow lot", dictionary, tmp_path)]
    assert found == ["</s>", "s@@", "low", "lo@@", "t"]


@pytest.mark.parametrize("words, numbered", [(63, False), (64, True)])
def test_the_tokens_of_a_text_are_numbered_where_no_axis_can_hold_them(trained, data_bin, words, numbered):
    figure = curves.draw_map_of_row(
        "alibi", *open_checkpoint(trained("alibi"), data_bin), data_bin, "w3 " * words, None
    )
    ticks = [tick.get_text() for tick in figure.axes[-1].get_xticklabels()]
    assert ticks == (["0", str(L_TRAIN), "65"] if numbered else ["</s>", *["w3"] * 63])


# What is written


def test_all_that_there_is_something_for_is_drawn_and_the_numbers_are_kept(drawn, folders):
    names = ["perplexity", "positions", "receptive-field", "attention-alibi", "attention-ricker"]
    written = {path.name for path in (drawn / "figures").iterdir() if "text" not in path.name}
    assert written == {f"{name}.{kind}" for name in names for kind in ("svg", "png")}
    heads = pd.read_csv(drawn / "attention.csv")
    assert list(heads.columns) == "row seed l_train sequence_length layer head mean_lag lag95 beyond".split()
    assert len(heads) == 2 * 2 * 2 and set(heads.row) == set(ROWS)
    losses = pd.read_csv(drawn / "positions.csv")
    assert list(losses.columns) == "row l_train sequence_length start stop nll".split()
    assert len(losses) == 2 * 40 and losses.stop.max() == losses.sequence_length[0] == 5 * L_TRAIN


def test_lines_of_runs_that_are_gone_stay_in_the_order_of_table_1(folders, tmp_path, monkeypatch):
    (tmp_path / "demo").mkdir()
    sheet = tmp_path / "demo" / "positions.csv"

    def lines(rows, nll):
        of = {"seed": 1, "l_train": L_TRAIN, "sequence_length": 8}
        return pd.DataFrame(
            [{"row": row, **of, "start": at, "stop": at + 4, "nll": nll} for row in rows for at in (0, 4)]
        )

    lines(("nope", "alibi", "haar"), 1.5).to_csv(sheet, index=False)
    monkeypatch.setattr(curves.probes, "table", lambda *given: lines(ROWS, 2.5))
    assert draw({**folders, "--results": tmp_path}, "positions") == 0
    found = pd.read_csv(sheet)
    assert list(zip(found.row, found.nll))[::2] == [("nope", 1.5), ("alibi", 2.5), ("ricker", 2.5), ("haar", 1.5)]
    assert list(found.start) == 4 * [0, 4]


def test_attention_is_measured_of_every_seed_and_the_loss_over_positions_of_the_first(folders, tmp_path, monkeypatch):
    demo = tmp_path / "runs" / "demo"
    shutil.copytree(folders["--runs"] / "demo" / "alibi", demo / "alibi")
    for row in ROWS:
        shutil.copytree(folders["--runs"] / "demo" / row, tmp_path / "runs" / "demo-seed2" / row)
    measured, table = [], curves.probes.table
    monkeypatch.setattr(
        curves.probes, "table", lambda of, found, opened: measured.append([*found]) or table(of, found, opened)
    )
    where = {**folders, "--runs": tmp_path / "runs", "--results": tmp_path}
    assert draw(where, "receptive-field", "positions") == 0
    every = [("alibi", 1), ("alibi", 2), ("ricker", 2)]
    assert measured == [[every[0], every[2]], every]
    written = (tmp_path / "demo" / "attention.csv").read_text()
    shutil.rmtree(demo / "alibi")
    assert draw(where, "receptive-field") == 0 and measured[-1] == every[1:]
    assert (tmp_path / "demo" / "attention.csv").read_text() == written  # the run that is gone keeps its lines


def test_rows_without_a_finished_run_are_named(folders, capsys):
    assert draw(folders, "attention-haar", "attention-morlet", "attention-alibi") == 0
    message = capsys.readouterr().err
    assert "has no finished run of haar, morlet; they are left out" in message
    broken = folders["--runs"] / "demo/morlet/result.json"
    assert f"morlet is broken, {broken} is not a JSON object with seed" in message


def test_without_any_finished_run_the_tables_are_drawn_and_an_error_names_the_rows(folders, tmp_path, capsys):
    shutil.copytree(
        folders["--results"] / "demo", tmp_path / "demo", ignore=shutil.ignore_patterns("figures", "[ap]*.csv")
    )
    assert draw({**folders, "--results": tmp_path, "--runs": tmp_path / "none"}) == 2
    assert {path.stem for path in (tmp_path / "demo" / "figures").iterdir()} == {"perplexity"}
    message = capsys.readouterr().err
    assert "error: " in message and "has no finished run of nope, sinusoidal, rope-10k" in message


def test_a_table_that_is_not_there_is_an_error_only_where_it_is_asked_for(drawn, folders, capsys):
    assert draw(folders, "perplexity-table3") == 2
    assert "has no table3.tidy.csv; run scripts/reproduce.sh table3 first" in capsys.readouterr().err


def test_of_one_checkpoint_only_its_own_figures_are_accepted(capsys):
    for name in ("perplexity", "attention-ricker"):
        with pytest.raises(SystemExit) as stop:
            figures.main(["--path", "runs/own/checkpoint_last.pt", "--data", "data", name])
        assert stop.value.code == 2
        said = " ".join(capsys.readouterr().err.split())
        assert (
            f"{name!r} is unknown; accepted are positions, receptive-field, receptive-field-combinations, att" in said
        )


@pytest.mark.parametrize("threshold", ["0", "-1", "nan"])
def test_a_threshold_is_a_weight(threshold, capsys):
    with pytest.raises(SystemExit):
        figures.main(["--preset", "demo", f"--threshold={threshold}"])
    assert f"--threshold {float(threshold)}: accepted are weights > 0" in capsys.readouterr().err


def test_positions_that_cannot_be_combined_are_refused_before_anything_is_drawn(capsys):
    with pytest.raises(SystemExit) as stop:
        figures.main(["--preset", "demo", "--position-encoding", "rope+rope-wavelet"])
    assert stop.value.code == 2
    assert "error: --position-encoding 'rope+rope-wavelet': rope and rope-wavelet each" in capsys.readouterr().err


def test_fairseqs_own_model_shows_its_attention_as_a_model_of_this_package(trained, data_bin, tmp_path, capsys):
    path = trained(None, {"--arch": "transformer_lm"})
    words = ["--path", str(path), "--data", str(data_bin), "--results", str(tmp_path), "receptive-field"]
    assert figures.main(words) == 2
    assert "error: fairseq's own transformer_lm does not show its attention; " in capsys.readouterr().err
    assert figures.main([*words, "--position-encoding", "sinusoidal"]) == 0


def test_an_unknown_name_is_refused_with_those_that_are_accepted(folders, capsys):
    with pytest.raises(SystemExit) as stop:
        draw(folders, "figure4")
    assert stop.value.code == 2
    accepted = "perplexity, perplexity-table2, perplexity-table3, perplexity-combinations, perplexity-beyond, pairs, "
    accepted += (
        "context, longbench, positions, receptive-field, receptive-field-combinations, growth, recall, wavelets, "
    )
    assert f"'figure4' is unknown; accepted are {accepted}" in " ".join(capsys.readouterr().err.split())


def test_drawn_twice_the_bytes_are_the_same(drawn, folders, tmp_path):
    shutil.copytree(drawn, tmp_path / "demo", ignore=shutil.ignore_patterns("figures"))
    names = ("receptive-field", "attention-ricker")
    assert draw({**folders, "--results": tmp_path}, *names) == 0
    for name in (f"{name}.{kind}" for name in names for kind in ("svg", "png")):
        assert (tmp_path / "demo" / "figures" / name).read_bytes() == (drawn / "figures" / name).read_bytes()
        assert len((drawn / "figures" / name).read_bytes()) < 2**20
    assert (tmp_path / "demo" / "attention.csv").read_bytes() == (drawn / "attention.csv").read_bytes()


@pytest.mark.parametrize(
    "figure", [paper_perplexity, lambda: curves.draw_attention_map({1: np.eye(9)[None]}, 0.1, 4, "", list("abcdefghi"))]
)
def test_no_text_is_smaller_than_11_points(figure):
    assert min(text.get_fontsize() for text in figure().findobj(Text) if text.get_text()) >= 11


@pytest.mark.parametrize("names", [9 * ["short"], 9 * ["a method with a long name"], 3 * [80 * "long"]])
def test_a_legend_has_as_many_columns_as_the_figure_has_room_for(names):
    lines = [
        {"inference": "full", "method": f"{name} {row}", "l_train": 4, "sequence_length": length, "perplexity": 9 + row}
        for row, name in enumerate(names)
        for length in (4, 8)
    ]
    (legend,) = curves.draw_perplexity(pd.DataFrame(lines), "inference", "method").legends
    assert legend._ncols == {"s": 3, "a": 2, "l": 1}[names[0][0]]


def test_the_script_draws_the_papers_tables(tmp_path):
    shutil.copytree(PAPER, tmp_path / "paper", ignore=shutil.ignore_patterns("figures"))
    command = [str(ROOT / "scripts" / "figures.sh"), "--preset", "paper", "--results", str(tmp_path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    printed = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True).stdout
    names = ("perplexity", "perplexity-table2", "perplexity-table3")
    folder = tmp_path / "paper" / "figures"
    assert printed.split() == [str(folder / f"{name}.{kind}") for name in names for kind in ("svg", "png")]


def test_a_text_is_a_figure_of_its_own_with_the_tokens_on_both_axes(folders, capsys):
    args = {**folders, "--text": TEXT}
    assert draw(args, "attention-ricker") == 0
    assert "attention-ricker-text.svg" in capsys.readouterr().out
    svg = (folders["--results"] / "demo" / "figures" / "attention-ricker-text.svg").read_text()
    assert svg.count("<!-- w26 -->") == 2 * 2 and svg.count("<!-- layer 2, head 2 -->") == 1


def test_any_checkpoint_is_a_row_named_after_its_folder(folders, data_bin, tmp_path, capsys):
    path = folders["--runs"] / "demo" / "haar" / "checkpoint_last.pt"  # of a run that has no result
    words = ["--path", path, "--data", data_bin, "--results", tmp_path]
    assert figures.main([str(word) for word in words]) == 0
    names = ("positions", "receptive-field", "attention-haar")
    assert {figure.stem for figure in (tmp_path / "haar" / "figures").iterdir()} == set(names)
    assert set(pd.read_csv(tmp_path / "haar" / "attention.csv").row) == {"haar"}
    with pytest.raises(SystemExit):
        figures.main(["--path", str(path)])
    assert "--path needs --data" in capsys.readouterr().err


def test_a_text_for_characters_is_spelled_out(tmp_path):
    from fairseq.data import Dictionary

    (tmp_path / "provenance.json").write_text('{"unit": "character"}')
    dictionary = Dictionary()
    for symbol in "aelw▁":
        dictionary.add_symbol(symbol)
    found = [dictionary[token] for token in curves.encode("a well", dictionary, tmp_path)]
    assert found == ["</s>", "a", "▁", "w", "e", "l", "l"]


def written(folder, table, labels, cells):
    """The table with one row."""
    rows = [tables.RowResult(labels, 1, cells)]
    of = (rows, 128, [128])
    write_table(folder, table, tables.wide(*of), tables.tidy(*of), "", {}, None)


def test_a_table_without_what_its_figure_shows_hinders_no_other_figure(tmp_path, capsys):
    cells = [{"inference": "full", "l_train": 128, "sequence_length": 128, "tokens": 9, "perplexity": 10.0}]
    written(tmp_path / "demo", "combinations", {"first": "A", "second": "-"}, cells)
    written(tmp_path / "demo", "table1", {"method": "A", "position": "-"}, "failed")
    written(tmp_path / "demo", "beyond", {"method": "A"}, cells)
    words = ["--preset", "demo", "--results", str(tmp_path), "--runs", str(tmp_path)]
    figures.main(words)
    assert (tmp_path / "demo" / "figures" / "perplexity-beyond.svg").is_file()
    for name, said in (("perplexity", "has no perplexity"), ("perplexity-combinations", "in sliding inference")):
        capsys.readouterr()
        assert figures.main([*words, name]) == 2 and said in capsys.readouterr().err


def test_pairs_of_sliding_windows_alone_are_no_figure(tmp_path, capsys):
    line = dict(zip(PAIRS, ["table1", "sliding", 128, 128, "nope", "alibi", 1.0, 0.9, 1.1, 1, "text", ""]))
    write_sheet(tmp_path / "demo", "pairs", pd.DataFrame([line]))
    assert figures.main(["--preset", "demo", "--results", str(tmp_path), "pairs"]) == 2
    assert "run scripts/" in capsys.readouterr().err


def test_what_is_drawn_of_fairseqs_checkpoints_is_refused_of_llamas(tmp_path, capsys):
    words = ["--preset", "llama-cpu", "--results", str(tmp_path), "--runs", str(tmp_path)]
    assert figures.main([*words, "positions"]) == 2
    assert "preset llama-cpu trains a Llama" in capsys.readouterr().err
    assert figures.main(words) == 0


def test_a_map_of_a_text_shorter_than_l_train_fills_its_panel():
    figure = curves.draw_attention_map({1: np.tril(np.ones((1, 100, 100))) / 100}, 0.005, 512, "a row")
    assert figure.axes[0].get_xlim() == (-0.5, 100)


def test_a_curve_runs_from_short_to_long():
    of = {"inference": "full", "method": "ALiBi", "seed": 1, "l_train": 128}
    cells = [{**of, "sequence_length": length, "perplexity": length / 9} for length in (128, 512, 256)]
    figure = curves.draw_perplexity(pd.DataFrame(cells), "inference", "method")
    assert list(figure.axes[0].lines[0].get_xdata()) == [128, 256, 512]
