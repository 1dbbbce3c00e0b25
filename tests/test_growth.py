"""growth.csv: the checkpoints that runs kept, evaluated once each, and the figure of it."""

import json
import math
import shutil

import numpy as np
import pandas as pd
import pytest
from conftest import PLAIN, PLUGIN, preprocess, synthetic_text

from wavepos_fairseq.lab import evaluate, growth, results
from wavepos_fairseq.lab.configs import load_preset, load_table
from wavepos_fairseq.lab.figures import command as figures
from wavepos_fairseq.lab.figures import trained as drawn
from wavepos_fairseq.lab.runs import Run, fairseq_options
from wavepos_fairseq.plugin import evaluate as evaluation

DEMO = load_preset("demo")
L_TRAIN, LONGEST = DEMO.l_train, max(DEMO.lengths)
UPDATES = [2, 4, 6]


@pytest.fixture(scope="module")
def characters(tmp_path_factory):
    """A data-bin of characters, whose validation set is several stretches long."""
    folder = tmp_path_factory.mktemp("characters")
    for split, lines in (("train", 60), ("valid", 100)):
        text = synthetic_text(lines, seed=len(split)).replace(" ", "▁")
        (folder / split).write_text("\n".join(map(" ".join, text.splitlines())) + "\n", encoding="utf-8")
    data = preprocess(folder / "data-bin", train=folder / "train", valid=folder / "valid")
    (data / "provenance.json").write_text('{"unit": "character"}')
    return data


@pytest.fixture(scope="module")
def kept(train, characters, tmp_path_factory):
    """--runs with two rows of the preset demo, which kept three checkpoints each, and one that kept one."""
    runs = tmp_path_factory.mktemp("growth") / "runs"
    shape = {**PLAIN, "--tokens-per-sample": L_TRAIN, "--lr-scheduler": "fixed", "--warmup-updates": "0"}
    shape.update({"--save-interval-updates": 2, "--max-update": UPDATES[-1]})
    for row, encoding in (("nope", "nope"), ("alibi", "alibi")):
        train(runs / "demo" / row, {**shape, "--position-encoding": encoding}, characters)
    (runs / "demo" / "morlet").mkdir()
    shutil.copy(runs / "demo" / "alibi" / "checkpoint_1_2.pt", runs / "demo" / "morlet")
    return runs


def draw(kept, characters, where, *names):
    """main() on the preset demo, with results in `where`."""
    words = ["--preset", "demo", "--runs", kept, "--data", characters, "--results", where, *names]
    return figures.main([str(word) for word in words])


@pytest.fixture(scope="module")
def measured(kept, characters, tmp_path_factory):
    """--results in which the figure was drawn."""
    where = tmp_path_factory.mktemp("results")
    assert draw(kept, characters, where, "growth") == 0
    return where


@pytest.fixture
def again(measured, tmp_path):
    """A copy of `measured`."""
    return shutil.copytree(measured, tmp_path / "again")


@pytest.fixture
def evaluated(monkeypatch):
    """The checkpoints that are evaluated, by run and file."""
    paths, before = [], evaluation.evaluate_checkpoint

    def noting(args):
        paths.append("/".join(args.path.split("/")[-2:]))
        return before(args)

    monkeypatch.setattr(evaluation, "evaluate_checkpoint", noting)
    return paths


def read(where):
    return results.read_sheet(where / "demo", "growth")


def test_the_numbers_are_those_of_the_evaluation_command_per_word_where_tokens_are_characters(
    kept, characters, measured, tmp_path
):
    lines = read(measured).set_index(["row", "updates", "sequence_length"])
    for row, updates in (("nope", 2), ("alibi", 6)):
        output = tmp_path / f"{row}.json"
        path = kept / "demo" / row / f"checkpoint_1_{updates}.pt"
        words = [characters, "--path", path, "--lengths", f"{L_TRAIN},{LONGEST}", "--output", output, "--cpu"]
        assert evaluate.main([*map(str, words), "--max-tokens", str(DEMO.evaluate["max-tokens"])]) == 0
        cells = json.loads(output.read_text(encoding="utf-8"))["cells"]
        near, far = (cell for cell in cells if cell["inference"] == "full")
        for cell in (near, far):
            line = lines.loc[row, updates, cell["sequence_length"]]
            assert line.perplexity == cell["word_perplexity"] and line.l_train == cell["l_train"]
            ratio = math.exp((sum(cell["stretch_nll"]) - sum(near["stretch_nll"])) / cell["words"])
            assert line.ratio == pytest.approx(ratio, rel=1e-5)
        assert line.low < line.ratio < line.high and line.known_by == "text"  # paired: of the same stretches


def test_there_are_two_lines_for_each_checkpoint_of_a_run_that_kept_several(measured):
    lines = read(measured)
    where = ["row", "updates", "sequence_length"]
    expected = [(row, updates, length) for row in ("nope", "alibi") for updates in UPDATES for length in (64, 314)]
    assert list(lines[where].itertuples(index=False, name=None)) == expected
    assert set(lines.seed) == {1}
    assert list(lines.trained_tokens) == [1024 * updates for updates in lines.updates]  # the preset's, an update
    at_l_train = lines[lines.sequence_length == L_TRAIN]
    assert (at_l_train[["ratio", "low", "high"]] == 1).all().all()


def test_a_checkpoint_that_the_sheet_has_is_not_evaluated_again(kept, characters, again, evaluated):
    path = again / "demo" / "growth.csv"
    whole = path.read_text()
    without = whole.splitlines(keepends=True)
    path.write_text("".join(line for line in without if not line.startswith("nope,1,4,")))
    assert draw(kept, characters, again, "growth") == 0
    assert evaluated == ["nope/checkpoint_1_4.pt"] and path.read_text() == whole
    assert draw(kept, characters, again, "growth") == 0
    assert len(evaluated) == 1


def test_what_was_evaluated_before_an_error_is_kept_and_the_checkpoint_is_named(kept, characters, tmp_path, capsys):
    runs = shutil.copytree(kept, tmp_path / "runs")
    (runs / "demo" / "alibi" / "checkpoint_1_4.pt").write_bytes(b"no checkpoint")
    assert draw(runs, characters, tmp_path, "growth") == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith(f"error: {runs}/demo/alibi/checkpoint_1_4.pt: ")
    assert list(read(tmp_path).updates) == [2, 2, 4, 4, 6, 6, 2, 2]


def test_a_run_that_kept_one_checkpoint_is_left_out_by_name(kept, capsys):
    found = growth.kept_checkpoints(kept, "demo")
    assert [(of.row, of.seed, of.updates) for of in found] == [
        (row, 1, updates) for row in ("nope", "alibi") for updates in UPDATES
    ]
    assert capsys.readouterr().err == f"{kept}/demo/morlet kept fewer than two checkpoints: left out\n"


def test_other_seeds_are_found_beside_the_first_and_no_other_presets(tmp_path):
    for folder in ("demo", "demo-seed2", "demo-seed12", "demo-2", "demo-seeds"):
        run = tmp_path / folder / "mine"
        run.mkdir(parents=True)
        for name in ("checkpoint_1_90.pt", "checkpoint_2_100.pt", "checkpoint_last.pt", "checkpoint3.pt"):
            (run / name).touch()
    found = growth.kept_checkpoints(tmp_path, "demo")
    assert [(of.seed, of.updates) for of in found] == [(seed, at) for seed in (1, 2, 12) for at in (90, 100)]
    assert {of.seed for of in growth.kept_checkpoints(tmp_path, "demo-seed2")} == {2}


@pytest.mark.parametrize("of", ["nothing", "one checkpoint"])
def test_without_two_checkpoints_of_a_run_one_line_says_how_they_are_kept(kept, characters, tmp_path, capsys, of):
    runs = tmp_path / "runs"
    if of == "one checkpoint":
        shutil.copytree(kept / "demo" / "morlet", runs / "demo" / "morlet")
    assert draw(runs, characters, tmp_path, "growth") == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: {runs / 'demo'} has no run with two checkpoints of --save-interval-updates; ")
    assert said.count("\n") == 1 and not (tmp_path / "demo").exists()


def test_a_preset_without_a_longer_length_is_refused(kept, characters, tmp_path):
    preset = DEMO.__class__(**{**vars(DEMO), "lengths": [16, L_TRAIN]})
    with pytest.raises(ValueError, match="preset demo has no length > l_train 64"):
        growth.measure(tmp_path / "demo", preset, kept, characters)


def test_the_sheet_is_drawn_where_the_runs_are_gone(again, characters):
    shutil.rmtree(again / "demo" / "figures")
    assert draw(again / "gone", characters, again, "growth") == 0
    assert {path.name for path in (again / "demo" / "figures").iterdir()} == {"growth.svg", "growth.png"}


def test_unasked_checkpoints_are_evaluated_only_where_there_is_a_sheet(kept, characters, again, evaluated, capsys):
    path = again / "demo" / "growth.csv"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-2]))
    assert draw(kept, characters, again) == 2  # no run is finished, which other figures need
    assert evaluated == ["alibi/checkpoint_1_6.pt"]
    path.unlink()
    assert draw(kept, characters, again) == 2
    assert len(evaluated) == 1 and not path.exists()
    assert "has no finished run of nope" in capsys.readouterr().err


def test_of_a_single_checkpoint_there_is_no_growth(capsys):
    with pytest.raises(SystemExit):
        figures.main(["--path", "runs/own/checkpoint_last.pt", "--data", "data", "growth"])
    assert "'growth' is unknown; accepted are positions, receptive-field" in " ".join(capsys.readouterr().err.split())


def test_the_figure_has_the_ratios_over_the_tokens_around_a_line_at_1_and_the_perplexities_below():
    lines = pd.DataFrame(
        [
            (row, seed, at, 1000 * at, 8, length, 50 / at * over, over, 0.9 * over, 1.1 * over, "text")
            for row, ratio in (("alibi", 0.5), ("rope-10k", 4.0))
            for seed in (1, 2)
            for at in (1, 10)
            for length, over in ((8, 1), (40, seed * ratio))
        ],
        columns=results.GROWTH,
    )
    above, below = drawn.draw_growth(lines).axes
    curves = [line for line in above.get_lines() if not line.get_label().startswith("_")]
    assert [line.get_label() for line in curves] == 2 * ["ALiBi"] + 2 * ["RoPE theta=10000"]
    assert [list(line.get_xdata()) for line in curves] == 4 * [[1000, 10000]]
    assert np.exp([line.get_ydata() for line in curves]) == pytest.approx(
        np.array([[0.5] * 2, [1] * 2, [4] * 2, [8] * 2])
    )
    (at_1,) = [line for line in above.get_lines() if line.get_label().startswith("_")]
    assert set(at_1.get_ydata()) == {0}  # nats
    ticks = {label.get_text(): place for label, place in zip(above.get_yticklabels(), above.get_yticks())}
    assert ticks["1"] == 0 and math.exp(ticks["3"]) == pytest.approx(3)
    assert [list(line.get_ydata()) for line in below.get_lines()] == 4 * [[50, 5]]
    assert below.get_xscale() == "log"


# The preset and the table of the project's own growth


def test_the_long_preset_is_the_short_one_with_five_times_the_updates_and_its_checkpoints():
    short, long = load_preset("wikitext2-chars-cpu"), load_preset("wikitext2-chars-cpu-long")
    assert long.train["max-update"] == 5 * short.train["max-update"]
    for name in ("corpus", "l_train", "lengths", "gpus", "tokens_per_update", "tokens_per_device"):
        assert getattr(long, name) == getattr(short, name)
    other = ("max-update", "save-interval-updates", "keep-interval-updates")
    alike = [{name: value for name, value in of.train.items() if name not in other} for of in (short, long)]
    assert alike[0] == alike[1]
    run = Run(long, load_table("table1-six")[1][0], PLUGIN, PLUGIN, long.gpus, seed=1)
    options = fairseq_options(run)
    assert options.keep_interval_updates == -1 and long.train["max-update"] // options.save_interval_updates >= 5


def test_the_six_rows_are_those_of_table_1():
    rows = load_table("table1-six")[1]
    of_table_1 = {row.name: row for row in load_table("table1")[1]}
    assert [of_table_1[row.name] for row in rows] == rows
    assert {row.name for row in rows} == {"nope", "rope-10k", "alibi", "trans-xl", "ricker", "haar-fixed"}
