"""Presets and rows as commands, and a table from its rows to its files."""

import argparse
import dataclasses
import io
import json
import math
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml
from conftest import preprocess, sound_result

from wavepos_fairseq.common import commands
from wavepos_fairseq.lab import configs, experiments, runs, schedule, sweeps, tables
from wavepos_fairseq.plugin.options import as_arguments, position_arguments
from wavepos_fairseq.positions import build_position
from wavepos_fairseq.wavelets import SHIFT_DIRECTIONS

pytest.importorskip("fairseq")
ROOT = Path(__file__).resolve().parents[1]
PRESETS = sorted(path.stem for path in (ROOT / "configs" / "presets").glob("*.yaml"))
LLAMAS = {name for name in PRESETS if configs.load_preset(name).framework == "transformers"}
TABLES = sorted(path.stem for path in (ROOT / "configs" / "tables").glob("*.yaml"))
PAPER = pd.read_csv(ROOT / "results" / "paper" / "table1.csv")


@pytest.fixture(autouse=True)
def in_another_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def dry_run(capsys, *arguments):
    assert experiments.main(["train", *arguments, "--dry-run"]) == 0
    return shlex.split(capsys.readouterr().out)


def option(command, name):
    return command[command.index(name) + 1]


@pytest.mark.parametrize("l_train", [512, 1024])
def test_paper_presets_have_the_hyperparameters_of_the_alibi_release(l_train, capsys):
    command = dry_run(capsys, f"wikitext103-{l_train}", "ricker")
    expected = {
        "--arch": "transformer_lm_wavelet_wiki103",
        "--tokens-per-sample": str(l_train),
        "--max-update": "286000",
        "--optimizer": "nag",
        "--lr": "1.0",
        "--lr-scheduler": "cosine",
        "--t-mult": "2",
        "--lr-period-updates": "270000",
        "--lr-shrink": "0.75",
        "--warmup-updates": "16000",
        "--warmup-init-lr": "1e-07",
        "--stop-min-lr": "1e-09",
        "--min-lr": "0.0001",
        "--clip-norm": "0.1",
        "--criterion": "adaptive_loss",
        "--max-tokens": "9216",
        "--update-freq": "1",
        "--distributed-world-size": "8",
        "--sample-break-mode": "none",
        "--ddp-backend": "legacy_ddp",
    }
    assert {name: option(command, name) for name in expected} == expected
    assert "--fp16" in command


@pytest.mark.parametrize("l_train", [512, 1024])
@pytest.mark.parametrize("gpus", [1, 2, 3, 4, 6, 8, 9, 12])
def test_any_number_of_gpus_keeps_73728_tokens_an_update_in_whole_sequences(l_train, gpus, capsys):
    command = dry_run(capsys, f"wikitext103-{l_train}", "alibi", "--gpus", str(gpus))
    max_tokens = int(option(command, "--max-tokens"))
    assert gpus * max_tokens * int(option(command, "--update-freq")) == 73728
    assert max_tokens <= 9216 and max_tokens % l_train == 0


def test_gpus_that_cannot_share_an_update_evenly_are_refused(capsys):
    assert experiments.main(["train", "wikitext103-1024", "alibi", "--gpus", "16", "--dry-run"]) == 2
    assert "--gpus 16" in capsys.readouterr().err


@pytest.mark.parametrize("preset", sorted({*PRESETS} - LLAMAS - {"recall-cpu", "wikitext2-chars-cpu-8x"}))  # of Table 1
def test_lengths_of_every_preset_stand_to_l_train_as_in_the_paper(preset):
    loaded = configs.load_preset(preset)
    paper_l_train = 1024 if loaded.l_train in (256, 1024) else 512
    paper = sorted(PAPER[PAPER.l_train == paper_l_train].sequence_length.unique())
    assert loaded.lengths == [length * loaded.l_train // paper_l_train for length in paper]


def test_table1_has_every_method_of_the_paper_and_names_its_own_additions():
    title, rows = configs.load_table("table1")
    positions = {row.labels["method"]: row.labels["position"] for row in rows}
    paper = dict(zip(PAPER.method, PAPER.position))
    assert {method: positions[method] for method in paper} == paper
    assert set(positions) - set(paper) == {"Sinusoidal", "Wavelet Ricker future"}
    assert len(rows) == 12


def papers_rows(table, columns):
    """The leading cells of the table's rows, in the paper's order."""
    cells = pd.read_csv(ROOT / "results" / "paper" / f"{table}.csv", dtype=str)
    return [tuple(row) for row in cells[columns].drop_duplicates().values]


def labels_at_the_papers_width(table):
    head_dim = experiments.head_dim_of(configs.load_preset("wikitext103-512"))
    rows = experiments.with_head_dim(configs.load_table(table)[1], head_dim)
    return [tuple(row.labels.values()) for row in rows]


def head(row):
    """mother wavelet, scales, shifts and direction of a row for the paper's heads of 128"""
    return build_position(**row.position, head_dim=128, num_heads=8).head


def test_table3_is_the_papers_row_by_row():
    rows = configs.load_table("table3")[1]
    paper = papers_rows("table3", ["wavelet", "scale_exponents", "num_shifts"])
    assert len(rows) == 23 and labels_at_the_papers_width("table3") == paper
    for row, (wavelet, exponents, num_shifts) in zip(rows, paper):
        first, last = map(int, exponents.split()[0].split(".."))
        scales = [1.0] * 8 if "all scales" in exponents else [math.ldexp(1, e) for e in range(first, last + 1)]
        assert head(row) == (wavelet.lower(), tuple(scales), tuple(range(int(num_shifts))), "past")


def test_table4_is_the_papers_row_by_row():
    rows = configs.load_table("table4")[1]
    paper = papers_rows("table4", ["family", "wavelet"])
    assert len(rows) == 31 and labels_at_the_papers_width("table4") == paper
    for row, (_, wavelet) in zip(rows, paper):
        closed_form = wavelet in ("Ricker", "Gaussian", "Morlet", "Haar")
        scales = [2.0**e for e in range(8)] if closed_form else [1, 2, 3, 4, 5, 6, 7, 8]
        assert head(row) == (wavelet.lower(), tuple(scales), tuple(range(16)), "past")


def test_the_rows_of_the_shift_direction_are_six_of_table3_in_each_reading():
    rows, table3 = (configs.load_table(table)[1] for table in ("shift-direction", "table3"))
    pasts = [row for row in rows if row.labels["direction"] == "past"]
    expected = [(past, direction) for past in pasts for direction in SHIFT_DIRECTIONS]
    expected.remove((pasts[0], "scaled"))  # all its scales are 2^0, so it is past
    assert pasts[0].position["wavelet_scales"] == "2^0*8" and len(pasts) == 6 and len(rows) == len(expected)
    for row, (past, direction) in zip(rows, expected):
        assert head(row) == (*head(past)[:3], direction)
        assert row.labels == {**past.labels, "direction": direction}
        assert row.name == (past.name if row is past else f"{past.name}-{direction}")
        assert row is not past or any((row.name, row.position) == (past.name, past.position) for row in table3)


@pytest.mark.parametrize("head_dim", [32, 64, 128])
def test_the_rows_of_the_shift_direction_fit_heads_of_any_preset_and_are_finite(head_dim):
    for row in configs.load_table("shift-direction")[1]:
        position = build_position(**row.position, head_dim=head_dim, num_heads=4)
        for dtype in (torch.float64, torch.float32):
            like = torch.empty(0, dtype=dtype)
            tensors = (position.relative(2512, like), *position.factors(2512, like))
            assert all(tensor.isfinite().all() for tensor in tensors), row.name


def test_a_row_has_the_same_options_in_every_table():
    rows = [row for table in TABLES for row in configs.load_table(table)[1] if not row.trained]
    arguments = {(row.name, *position_arguments(row.position), *as_arguments(row.train)) for row in rows}
    assert len(arguments) == len({row.name for row in rows})
    assert len({words[1:] for words in arguments}) == len(arguments)  # and is trained once


def test_a_row_that_evaluates_another_is_the_same_in_every_table():
    rows = [row for table in TABLES for row in configs.load_table(table)[1] if row.trained]
    evaluations = {(row.name, row.trained, *as_arguments(row.evaluate)) for row in rows}
    assert rows and len(evaluations) == len({row.name for row in rows})


@pytest.mark.parametrize("preset", sorted({*PRESETS} - LLAMAS))
def test_fairseq_accepts_the_rows_of_table1_whose_options_depend_on_the_heads_under_every_preset(preset, capsys):
    rows = [row for row in configs.load_table("table1")[1] if preset == "demo" or row.position["name"] == "wavelet"]
    for row in rows:
        arguments = position_arguments(row.position)
        assert dry_run(capsys, preset, row.name)[-len(arguments) :] == arguments


def test_options_that_fairseq_would_refuse_stop_before_anything_is_written(tmp_path, capsys):
    assert experiments.main(["train", "demo", "--wavelet", "rickr", "--runs", str(tmp_path / "runs")]) == 2
    assert "error: --wavelet 'rickr' is unknown; accepted are ricker" in capsys.readouterr().err
    assert experiments.main(["train", "demo", "--no-such-option", "--runs", str(tmp_path / "runs")]) == 2
    assert capsys.readouterr().err == "error: unrecognized arguments: --no-such-option\n"
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("preset", ["wikitext103-512", "wikitext103-1024"])
def test_the_best_combination_is_a_row_at_the_papers_size(preset, capsys):
    assert dry_run(capsys, preset, "haar+alibi")[-4:] == ["--position-encoding", "wavelet+alibi", "--wavelet", "haar"]


@pytest.mark.parametrize("table", TABLES)
def test_the_papers_preset_takes_every_row_of_every_table(table):
    preset, rows = configs.load_preset("wikitext103-512"), configs.load_table(table)[1]
    assert not experiments.refusals([runs.Run(preset, row, ROOT, ROOT, 8, 1) for row in rows])


def test_a_sweep_reports_every_combination_that_does_not_fit_before_anything_is_written(tmp_path, capsys):
    arguments = ["sweep", "--preset", "demo", "--runs", str(tmp_path / "runs"), "--results", str(tmp_path / "results")]
    grid = ["--wavelet", "ricker", "cmor", "--scales", "2^0..2^7", "2^0..", "--shifts", "0..3", "0..4"]
    assert experiments.main([*arguments, *grid]) == 2
    message = capsys.readouterr().err
    assert "error: 7 of 8 combinations do not fit" in message
    assert (
        "\n  ricker 2^0..2^7 0..4: " in message and "= 40 wavelets, but a head has 32 dimensions; 8 x 4 fit" in message
    )
    assert "ricker 2^0.. 0..3: " in message and "'2^0..' is not a number" in message
    assert message.count("--wavelet 'cmor' is unknown") >= 2
    assert list(tmp_path.iterdir()) == []


def test_a_sweep_is_the_grid_of_what_is_given():
    rows = sweeps.sweep_rows({"wavelet": ["ricker", "db5"], "shifts": ["0..3", "0..7"]}, head_dim=64)
    labels = [("ricker", "0..3"), ("ricker", "0..7"), ("db5", "0..3"), ("db5", "0..7")]
    assert [tuple(row.labels.values()) for row in rows] == labels
    assert rows[3].position == {"name": "wavelet", "wavelet": "db5", "wavelet_shifts": "0..7"}
    rows = sweeps.sweep_rows({"wavelet": ["db5"], "direction": list(SHIFT_DIRECTIONS)}, head_dim=64)
    expected = [{"name": "wavelet", "wavelet": "db5", "wavelet_shift_direction": name} for name in SHIFT_DIRECTIONS]
    assert [row.position for row in rows] == expected


@pytest.mark.parametrize(
    "grid, name",
    [
        ({"wavelet": ["ricker"]}, "ricker"),
        ({"wavelet": ["ricker"], "scales": ["2^0..2^7"], "shifts": ["0..15"]}, "ricker"),
        ({"wavelet": ["ricker"], "direction": ["future"]}, "ricker-future"),
        ({"wavelet": ["ricker"], "direction": ["scaled"]}, "ricker-scaled"),
        ({"wavelet": ["gaussian"], "scales": ["1,2"]}, "gaussian-e0-1"),
        ({"wavelet": ["haar"], "scales": ["2^0*8"]}, "haar-fixed"),
        ({"wavelet": ["dmey"], "scales": ["1..8"]}, "dmey"),
    ],
)
def test_what_a_table_has_is_the_tables_run_in_a_sweep_too(grid, name):
    assert all(not row.train for row in sweeps.sweep_rows(grid, head_dim=128))
    (row,) = sweeps.sweep_rows(grid, head_dim=128)
    assert (row.name, row.position) == (name, configs.find_row(name).position)


def test_combinations_of_a_sweep_that_come_to_the_same_are_one_run_and_others_never_share_a_name():
    grid = {"wavelet": ["db5"], "shifts": ["0..7", "0,1,2,3,4,5,6,7", "0..7"]}
    assert len(sweeps.sweep_rows(grid, head_dim=64)) == 1
    (levels,) = sweeps.sweep_rows({"wavelet": ["db5"], "scales": ["1..4"]}, head_dim=64)
    (shifts,) = sweeps.sweep_rows({"wavelet": ["db5"], "shifts": ["1..4"]}, head_dim=64)
    assert levels.name != shifts.name
    long = [",".join(str(base + number) for number in range(64)) for base in (1, 2)]
    rows = sweeps.sweep_rows({"wavelet": ["ricker"], "scales": long}, head_dim=64)
    assert rows[0].name != rows[1].name and all(len(row.name) < 200 for row in rows)


def test_a_sweep_may_vary_what_the_wavelets_are_combined_with():
    grid = {"wavelet": ["haar", "db5"], "position": ["wavelet", "wavelet+alibi", "alibi+wavelet"]}
    rows = sweeps.sweep_rows(grid, head_dim=64)
    assert [row.position["name"] for row in rows] == ["wavelet", "wavelet+alibi"] * 2
    assert [row.name for row in rows[:2]] == ["haar", "haar+alibi"]  # as in the tables that have them
    assert rows[3].name == "db5_position-wavelet+alibi"
    with pytest.raises(ValueError, match="2 of 3 combinations do not fit") as refused:
        sweeps.sweep_rows({"wavelet": ["haar"], "position": ["wavelet+t5", "wavelet+", "alibi"]}, head_dim=64)
    assert "\n  haar wavelet+: --position 'wavelet+': '' is unknown; " in str(refused.value)
    assert "\n  haar alibi: --wavelet 'haar' is given, but --position 'alibi' does not read it" in str(refused.value)


def test_the_status_of_a_sweep_is_asked_for_by_its_grid(tmp_path, capsys):
    status = ["status", "--preset", "demo", "--runs", str(tmp_path)]
    assert experiments.main([*status, "--wavelet", "ricker", "db5", "--shifts", "1..2"]) == 0
    shown = [line.split("|")[1:3] for line in capsys.readouterr().out.splitlines()[2:]]
    assert [[word.strip() for word in line] for line in shown] == [
        ["ricker_shifts-1..2", "not started"],
        ["db5_shifts-1..2", "not started"],
    ]
    for both_or_none in ([], ["table1", "--wavelet", "ricker"]):
        assert experiments.main([*status, *both_or_none]) == 2
        assert "either a table or a sweep's grid" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["table1", "a/b", "../escape", "", ".hidden"])
def test_a_sweep_has_a_table_of_its_own_in_the_results_folder(name, tmp_path, capsys):
    arguments = ["sweep", "--preset", "demo", "--wavelet", "ricker", "--results", str(tmp_path), "--name", name]
    assert experiments.main(arguments) == 2
    assert f"error: --name {name!r}: accepted are letters" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["claims", "positions", "attention", "table1.tidy", "table1.manifest", "press2022"])
def test_a_table_is_not_named_as_other_files_of_the_results_folder(name, tmp_path, capsys, monkeypatch):
    words = ["--preset", "demo", "--results", str(tmp_path)]
    assert experiments.main(["sweep", "--wavelet", "ricker", "--name", name, *words]) == 2
    assert f"error: --name {name!r}: this name is taken" in capsys.readouterr().err
    monkeypatch.setattr(configs, "names", lambda folder: [name, "demo"])
    assert experiments.main(["reproduce", name, *words]) == 2
    assert f"error: table {name!r}: this name is taken" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["train", "wikitext103", "ricker"], "preset 'wikitext103' is unknown; accepted are demo, llama-cpu, "),
        (["train", "demo", "riker"], "row 'riker' is unknown; accepted are "),
        (["train", "demo"], "give a row or options"),
        (
            ["reproduce", "table9", "--preset", "demo"],
            "table 'table9' is unknown; accepted are beyond, beyond-seeds, combination-ablation, ",
        ),
        (
            ["reproduce", "table1", "--preset", "demo", "--data", "no-such-folder"],
            "--data no-such-folder does not exist",
        ),
        (["train", "wikitext103-512", "ricker", "--gpus", "0", "--dry-run"], "--fp16 needs a GPU"),
    ],
)
def test_unknown_names_are_refused_with_what_is_accepted(arguments, message, capsys):
    assert experiments.main(arguments) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("l_train, per_update, per_device", [(16, 16 * 24, 16 * 5), (8, 8 * 36, 8), (3, 3 * 30, 100)])
def test_batches_are_the_fewest_whole_ones_that_make_an_update_and_other_devices_are_told_which_do(
    l_train, per_update, per_device
):
    sizes = {"l_train": l_train, "tokens_per_update": per_update, "tokens_per_device": per_device}
    preset = dataclasses.replace(configs.load_preset("demo"), **sizes)
    sequences, refused = per_update // l_train, set()
    for devices in range(1, sequences + 2):
        fewest = [
            (freq, tokens)
            for freq in range(1, sequences + 1)
            for tokens in range(l_train, per_device + 1, l_train)
            if devices * freq * tokens == per_update
        ][:1]
        try:
            words = runs.batch_options(preset, devices, 1)
        except ValueError as error:
            refused.add(devices)
            accepted = str(error).rpartition("accepted are ")[2]
            assert fewest == []
        else:
            assert fewest == [(int(option(words, "--update-freq")), int(option(words, "--max-tokens")))]
    assert accepted == ", ".join(str(n) for n in range(1, sequences + 1) if n not in refused)


def test_a_sweep_or_seeds_without_end_are_refused_before_any_is_looked_at(monkeypatch, capsys):
    monkeypatch.setattr(sweeps, "_wavelets", lambda *_: pytest.fail("looked at"))
    monkeypatch.setattr(experiments, "_run", lambda *_: pytest.fail("looked at"))
    many = [str(number) for number in range(1000)]
    for command in ("sweep", "status"):
        grid = [command, "--preset", "demo", "--wavelet", "ricker", "--scales", *many, "--shifts", *many]
        assert experiments.main(grid) == 2
        said = "1 wavelet x 1000 scales x 1000 shifts = 1,000,000; accepted are at most 10,000 runs in a call"
        assert said in capsys.readouterr().err
    assert experiments.main(["status", "table1", "--preset", "demo", "--seeds", "9" * 18]) == 2
    assert f"12 rows x {'9' * 18} seeds = 11,999,999,999,999,999,988;" in capsys.readouterr().err


@pytest.mark.parametrize(
    "text, least", [("²", 1), ("٣", 1), ("9" * 5000, 1), ("0", 1), ("-1", 0), ("1_0", 0), (" 1", 0), ("", 0)]
)
def test_what_is_no_count_is_said_to_be_none(text, least):
    with pytest.raises(argparse.ArgumentTypeError, match=f"not a whole number {'>' if least else '>='} 0$") as refused:
        commands.parse_count(text, least)
    assert len(str(refused.value)) < 60


# What would fail in hours


@pytest.fixture
def fails_early(small_configs, small_data, monkeypatch, capsys):
    """fails_early(changes to the preset, words): what reproduce says, with which nothing is trained or left."""
    monkeypatch.setattr(runs.Run, "train", lambda *_: pytest.fail("trained"))
    preset = small_configs / "configs" / "presets" / "small.yaml"
    content = yaml.safe_load(preset.read_text(encoding="utf-8"))
    there = ["--data", str(small_data), "--runs", str(small_configs / "runs")]
    results = ["--results", str(small_configs / "results")]

    def said(changes, *more, commands=("reproduce", "train")):
        preset.write_text(yaml.safe_dump({**content, **changes}), encoding="utf-8")
        before = sorted(small_configs.rglob("*"))
        errors = []
        for command in commands:
            words = ["reproduce", "table1", "--preset", "small", *results] if command == "reproduce" else []
            assert experiments.main([*(words or ["train", "small", "alibi"]), *there, *more]) == 2
            errors.append(capsys.readouterr().err)
        assert sorted(small_configs.rglob("*")) == before
        assert all(error.startswith("error: ") and error.count("\n") == 1 for error in errors), errors
        assert len(set(errors)) == 1
        return errors[0]

    return said


@pytest.mark.parametrize(
    "evaluate, message",
    [
        ({"max-tokesn": 64}, "unrecognized arguments: --max-tokesn 64"),
        ({"max-tok": 64}, "unrecognized arguments: --max-tok 64"),
        ({"max-tokens": 0}, "argument --max-tokens: '0' is not a whole number > 0"),
        ({"cpu": 3}, "unrecognized arguments: 3"),
        ({"lengths": 8}, "--lengths cannot be given here"),
        ({"output": "elsewhere"}, "--output cannot be given here"),
        ({"path": "elsewhere"}, "--path cannot be given here"),
        ({"position-encoding": "alibi"}, "--position-encoding cannot be given here"),
        ({"inference": "sliding"}, "sliding needs --stride, the tokens that a window scores"),
        ({"inference": "sliding", "stride": 65}, "--stride 65: accepted are 1 to 8, the shortest length"),
        ({"help": True}, "--help"),
        ({"model-overrides": "{'x': 1}"}, "--model-overrides: x is no option of the model of row alibi"),
    ],
)
def test_what_the_evaluation_would_refuse_is_refused_before_the_training(fails_early, evaluate, message):
    assert fails_early({"evaluate": evaluate}) == f"error: preset small, evaluate: {message}\n"


def test_a_subset_that_is_not_there_is_missed_before_the_training(fails_early):
    assert "--subset vlaid: " in fails_early({"evaluate": {"subset": "vlaid"}})


def test_a_checkpoint_that_will_not_be_written_is_missed_before_the_training(fails_early):
    said = fails_early({"checkpoint": "checkpoint_best.pt"})
    assert said == "error: --disable-validation: small needs checkpoint_best.pt, which is not written\n"


def test_cutoffs_that_the_vocabulary_does_not_reach_are_refused_before_the_training(fails_early, small_configs):
    preset = yaml.safe_load((small_configs / "configs/presets/small.yaml").read_text(encoding="utf-8"))
    for cutoffs, option in (("10,2000", "input"), ("20,10", "input"), ("10,2000", "softmax")):
        said = fails_early({"train": {**preset["train"], f"adaptive-{option}-cutoff": cutoffs}})
        assert f"--adaptive-{option}-cutoff {cutoffs}: accepted are ascending numbers from 1 to 40, the types" in said
    train = {**preset["train"], "adaptive-softmax-cutoff": "10,30"}
    assert "adaptive-softmax-cutoff, not 10,20 and 10,30" in fails_early({"train": train})
    assert "from 1 to 25, the types" in fails_early({"train": {**train, "output-dictionary-size": 25}})


def test_a_results_folder_that_cannot_be_written_is_noticed_before_the_training(fails_early, small_configs):
    results = small_configs / "results"
    results.write_text("a file")
    assert f"Not a directory: '{results}/small/table1.csv'" in fails_early({}, commands=["reproduce"])
    results.unlink()
    (results / "small" / "table1.manifest.json").mkdir(parents=True)
    assert f"Is a directory: '{results}/small/table1.manifest.json'" in fails_early({}, commands=["reproduce"])


def test_a_runs_folder_that_cannot_be_written_is_noticed_before_the_training(fails_early, small_configs):
    (small_configs / "runs" / "small").mkdir(parents=True)
    (small_configs / "runs" / "small" / "alibi").write_text("a file")
    assert f"Not a directory: '{small_configs}/runs/small/alibi/training.json'" in fails_early({})


def test_a_slurm_section_is_read_before_slurm_is_asked(fails_early):
    slurm = ["--launcher", "slurm"]
    assert "slurm: gpu is unknown" in fails_early({"slurm": {"gpu": 1}}, *slurm, commands=["reproduce"])
    assert "slurm: timeout_min is missing" in fails_early({"slurm": {}}, *slurm, commands=["reproduce"])


def test_the_status_of_a_table_imports_none_of_what_takes_seconds():
    program = "import sys; from wavepos_fairseq.lab import experiments; experiments.main(sys.argv[1:]); "
    program += "print({'torch', 'fairseq', 'pandas', 'numpy', 'submitit'} & {*sys.modules})"
    command = [sys.executable, "-c", program, "status", "table1", "--preset", "demo", "--seeds", "2"]
    done = subprocess.run(command, cwd=str(ROOT), stdout=subprocess.PIPE, text=True, check=True)
    assert "| ricker seed 2" in done.stdout and done.stdout.splitlines()[-1] == "set()"


@pytest.mark.parametrize("more", [[], ["--max-update=60"], ["--max-update", "60", "--max-update=70", "--lr", "1"]])
def test_status_reads_the_last_update_as_fairseq_does(more):
    row = configs.Row("nope", {}, {"name": "nope"}, tuple(more))
    run = runs.Run(configs.load_preset("demo"), row, ROOT, ROOT, gpus=0, seed=1)
    assert run.max_update == runs.fairseq_options(run).max_update


@pytest.mark.parametrize("seed", ["-1", "one", "4294967296"])
def test_a_seed_that_no_generator_takes_is_refused(seed, capsys):
    with pytest.raises(SystemExit) as stop:
        experiments.main(["status", "table1", "--preset", "demo", f"--seed={seed}"])
    assert stop.value.code == 2 and seed in capsys.readouterr().err.splitlines()[-1]


def test_runs_side_by_side_have_threads_and_gpus_of_their_own(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(runs, "cpu_count", lambda: 16)
    assert schedule.shares_of_the_machine(4, 0, 2) == 4 * [{"OMP_NUM_THREADS": "2"}]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5,6,7,GPU-1")
    assert schedule.shares_of_the_machine(1, 4, 1) == [{"OMP_NUM_THREADS": "16"}]
    shares = schedule.shares_of_the_machine(2, 2, 1)
    assert [share["CUDA_VISIBLE_DEVICES"] for share in shares] == ["3,5", "6,7"]
    with pytest.raises(ValueError, match="--jobs 2 x --gpus 3 is more than the 5 visible GPUs"):
        schedule.shares_of_the_machine(2, 3, 1)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    shares = schedule.shares_of_the_machine(8, 1, 1)
    assert [share["CUDA_VISIBLE_DEVICES"] for share in shares] == list("01234567")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,0,0")  # named three times, a GPU is shared by three
    assert [share["CUDA_VISIBLE_DEVICES"] for share in schedule.shares_of_the_machine(3, 1, 1)] == ["0", "0", "0"]


@pytest.fixture
def three_runs(tmp_path):
    preset, rows = configs.load_preset("demo"), configs.load_table("table1")[1][:3]
    return [runs.Run(preset, row, ROOT, tmp_path / "runs" / row.name, 0, 1) for row in rows]


def test_a_run_with_a_broken_file_is_marked_and_named_and_the_others_are_made(
    three_runs, tmp_path, monkeypatch, capsys
):
    for run, name in zip(three_runs, ("result.json", "training.json")):
        run.folder.mkdir(parents=True)
        (run.folder / name).write_text("[1]")
    monkeypatch.setattr(schedule, "execute", lambda run, *_: sound_result(run))
    outcomes = schedule.make_here(three_runs, {}, jobs=1)
    assert outcomes == ["broken", "broken", sound_result(three_runs[2])]
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith("[1/3] nope: broken, ") and "result.json" in first and "; remove the file to" in first
    assert second.startswith("[2/3] sinusoidal: broken, ") and f": remove {three_runs[1].folder}, or" in second
    experiments.write_table("table1", "Table 1", three_runs, outcomes, {}, tmp_path / "results")
    assert json.loads((tmp_path / "results" / "table1.manifest.json").read_text())["rows"]["nope"] == "broken"
    assert "| broken |" in (tmp_path / "results" / "table1.md").read_text()
    experiments.print_status(three_runs)
    assert [line.split("|")[2].strip() for line in capsys.readouterr().out.splitlines()[-3:]] == [
        *("broken", "broken", "not started")
    ]


def test_the_manifest_counts_an_evaluation_once_and_has_the_threads(three_runs):
    result = {**sound_result(three_runs[0]), "threads": 3}
    seconds = {16: 1.0, 32: 2.0, 64: 4.0, 126: 8.0, 189: 16.0, 314: 32.0}
    for cell in result["cells"]:  # up to L_train = 64 the second inference is a copy of the first
        again = cell["inference"] == "non-overlapping" and cell["sequence_length"] > 64
        cell["seconds"] = seconds[cell["sequence_length"]] + (100 if again else 0)
    row = experiments.manifest(three_runs[:1], [result], {})["rows"]["nope"]
    assert row["evaluation_seconds"] == sum(seconds.values()) + (100 + 8) + (100 + 16) + (100 + 32)
    assert row["threads"] == 3


def test_the_time_left_is_that_of_the_updates_without_fairseqs_start(monkeypatch, capsys):
    clock = iter([100.0, 100.0, 110.0, 120.0])
    progress = schedule.Progress({"a": 100, "b": 50})
    monkeypatch.setattr(schedule.time, "monotonic", lambda: next(clock))
    for run, update in (("a", 10), ("b", 10), ("a", 20), ("b", 30)):
        progress.update(run, update, 5.0)
    assert capsys.readouterr().out.splitlines() == [  # 10 updates in 10 s, and 30 in 20
        "a              update     20 of 100  loss  5.000 bits  about 2 min left for all",
        "b              update     30 of 50  loss  5.000 bits  about 1 min left for all",
    ]


def broken_pipe():
    reader, writer = os.pipe()
    os.close(reader)
    return open(writer, "w", encoding="utf-8", buffering=1)


def closed_file():
    file = open(os.devnull, "w", encoding="utf-8")
    file.close()
    return file


def ascii_only():
    return io.TextIOWrapper(io.BytesIO(), encoding="ascii")


@pytest.mark.parametrize("stream", [broken_pipe, closed_file, ascii_only, lambda: None])
def test_progress_that_cannot_be_printed_fails_nothing(stream, monkeypatch):
    there = stream()
    monkeypatch.setattr(sys, "stdout", there)
    monkeypatch.setattr(sys, "stderr", there)
    with commands.progress_fails_nothing():
        for text in ("café", 100_000 * "x"):
            print(text, flush=True)
            print(text, file=sys.stderr)
    assert sys.stdout is sys.stderr is there
    if there is not None and not there.closed:
        there.close()  # as Python does at the end


def test_options_make_a_run_of_their_own(capsys):
    command = dry_run(capsys, "demo", "--position-encoding", "rope", "--rope-theta", "5e4")
    assert option(command, "--save-dir") == "runs/demo/position-encoding_rope_rope-theta_5e4"
    assert command[-4:] == ["--position-encoding", "rope", "--rope-theta", "5e4"]
    assert option(dry_run(capsys, "demo", "alibi", "--lr", "0.1"), "--save-dir") == "runs/demo/alibi_lr_0.1"


@pytest.fixture
def small_configs(tmp_path, monkeypatch):
    """A preset of a few updates, and a table of which one row does not fit the heads."""
    preset = yaml.safe_load((ROOT / "configs" / "presets" / "demo.yaml").read_text(encoding="utf-8"))
    preset.update(l_train=16, lengths=[8, 16, 24], tokens_per_update=64, tokens_per_device=64)
    preset["train"].update({"max-update": 4, "warmup-updates": 1, "log-interval": 1, "criterion": "adaptive_loss"})
    preset["train"].update({"adaptive-softmax-cutoff": "10,20", "adaptive-input-cutoff": "10,20"})
    rows = {
        "alibi": ("ALiBi", {"name": "alibi"}),
        "broken": ("Broken", {"name": "nope"}),
        "too-wide": ("Too wide", {"name": "wavelet", "wavelet_scales": "2^0..2^127"}),
    }
    rows = {
        name: {"labels": {"method": method, "position": "rel"}, "position": position}
        for name, (method, position) in rows.items()
    }
    for folder, name, content in (
        ("presets", "small", preset),
        ("tables", "table1", {"title": "Table 1", "rows": rows}),
    ):
        (tmp_path / "configs" / folder).mkdir(parents=True)
        (tmp_path / "configs" / folder / f"{name}.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    monkeypatch.setattr(configs, "CONFIGS", tmp_path / "configs")
    return tmp_path


@pytest.fixture
def small_data(tmp_path):
    text = "\n".join(" ".join(f"w{(line * word) % 31}" for word in range(1, 13)) for line in range(40)) + "\n"
    for split in ("train", "valid"):
        (tmp_path / split).write_text(text, encoding="utf-8")
    return preprocess(tmp_path / "data-bin", train=tmp_path / "train", valid=tmp_path / "valid")


def test_data_of_another_corpus_makes_no_table(small_data, capsys):
    arguments = ["reproduce", "table1", "--preset", "wikitext2-cpu", "--data", str(small_data), "--runs", "runs"]
    (small_data / "test.idx").write_bytes((small_data / "valid.idx").read_bytes())
    assert experiments.main(arguments) == 2
    assert "this is not wikitext-2 (train tokens: expected 2,088,628, found" in capsys.readouterr().err
    (small_data / "provenance.json").write_text('{"name": "demo"}')
    assert experiments.main(arguments) == 2
    assert "holds demo, but preset wikitext2-cpu is for wikitext-2" in capsys.readouterr().err
    (small_data / "provenance.json").write_text('{"name": "wikitext-2-characters", "unit": "character"}')
    assert experiments.main(["train", "wikitext2-cpu", "alibi", *arguments[4:]]) == 2
    assert "holds wikitext-2-characters, but preset wikitext2-cpu is for wikitext-2" in capsys.readouterr().err
    assert not Path("runs").exists()


def states(capsys):
    """What `status` printed: state and updates by run."""
    lines = [line.split("|") for line in capsys.readouterr().out.splitlines()[2:]]
    return {line[1].strip(): (line[2].strip(), line[3].strip()) for line in lines}


def test_a_row_trained_and_evaluated_alone_is_done_in_the_tables_whose_inferences_it_has(
    small_configs, small_data, capsys, forked
):
    folder = small_configs
    alibi = {"labels": {"method": "ALiBi"}, "position": {"name": "alibi"}}
    content = {"title": "Full", "evaluate": {"inference": "full"}, "rows": {"alibi": alibi}}
    (folder / "configs" / "tables" / "full.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    common = ["--preset", "small", "--data", str(small_data), "--runs", str(folder / "runs")]
    make_full = ["reproduce", "full", *common, "--results", str(folder / "results")]
    assert experiments.main(["train", "small", "alibi", *common[2:]]) == 0
    capsys.readouterr()
    assert experiments.main(["status", "full", *common]) == 0 and states(capsys)["alibi"][0] == "stopped"
    assert experiments.main(make_full) == 0
    tidy, path = folder / "results" / "small" / "full.tidy.csv", folder / "runs" / "small" / "alibi" / "result.json"
    assert {*pd.read_csv(tidy).inference} == {cell["inference"] for cell in json.loads(path.read_text())["cells"]}
    alone = tidy.read_bytes()
    capsys.readouterr()
    assert experiments.main(["status", "full", *common]) == 0 and states(capsys)["alibi"][0] == "done"
    assert experiments.main(["status", "table1", *common]) == 0 and states(capsys)["alibi"][0] == "stopped"

    assert experiments.main(["evaluate", "small", "alibi", *common[2:]]) == 0
    of_both = path.read_bytes()
    capsys.readouterr()
    assert {cell["inference"] for cell in json.loads(of_both)["cells"]} == {"full", "non-overlapping"}
    for table in ("full", "table1"):
        assert experiments.main(["status", table, *common]) == 0 and states(capsys)["alibi"][0] == "done"
    assert experiments.main(make_full) == 0
    assert tidy.read_bytes() == alone and path.read_bytes() == of_both


def test_a_row_is_evaluated_alone_as_the_preset_says_unless_all_of_its_tables_say_otherwise():
    assert configs.find_row("haar").evaluate == configs.find_row("ricker").evaluate == {}
    assert configs.find_row("ricker-e7").evaluate == {"inference": "full"}
    assert [row.evaluate for row in sweeps.sweep_rows({"wavelet": ["ricker"], "scales": ["2^7"]}, 128)] == [{}]


def test_a_row_has_options_of_the_training_in_place_of_the_presets_and_may_begin_at_another_run(
    small_configs, small_data, capsys, forked
):
    begin = "{run}/../../small/mine/checkpoint_last.pt"
    row = {"labels": {"method": "tuned"}, "position": {"name": "alibi"}}
    row["train"] = {"finetune-from-model": begin, "max-update": 1, "warmup-updates": 0, "lr": 1e-30}
    tuned = {"title": "Tuned", "rows": {"tuned": row}}
    (small_configs / "configs" / "tables" / "tuned.yaml").write_text(yaml.safe_dump(tuned), encoding="utf-8")
    common = ["--data", str(small_data), "--runs", str(small_configs / "runs")]
    mine = [*common, "--name", "mine", "--position-encoding", "alibi"]
    assert experiments.main(["train", "small", *mine, "--clip-norm", "0.5"]) == 0
    assert experiments.main(["train", "small", "tuned", *common]) == 2
    assert "mine/checkpoint_last.pt: this run is not finished; train and evaluate it" in capsys.readouterr().err
    assert experiments.main(["evaluate", "small", *mine]) == 0
    assert experiments.main(["train", "small", "tuned", *common]) == 0
    command = capsys.readouterr().out.splitlines()[-1]
    assert "--max-update 1 " in command and "--max-update 4" not in command
    folders = [small_configs / "runs" / "small" / name for name in ("mine", "tuned")]
    of = [torch.load(folder / "checkpoint_last.pt") for folder in folders]
    assert [saved["optimizer_history"][-1]["num_updates"] for saved in of] == [4, 1]
    weights = [{name: one for name, one in saved["model"].items() if name.endswith(("weight", "bias"))} for saved in of]
    assert len(weights[0]) > 20  # fairseq's buffers besides them hold what was in memory
    torch.testing.assert_close(*weights, rtol=0, atol=1e-29)  # a weight of zero moves, all others stay

    trained = json.loads((folders[0] / "training.json").read_text())["command"]
    assert json.loads((folders[0] / "result.json").read_text())["training_command"] == trained
    assert trained.endswith("--clip-norm 0.5")


def test_a_row_may_evaluate_the_training_of_another_with_other_options(small_configs, small_data, capsys, forked):
    folder = small_configs
    for suffix in ("bin", "idx"):
        (small_data / f"test.{suffix}").write_bytes((small_data / f"valid.{suffix}").read_bytes())
    alibi = {"labels": {"method": "ALiBi"}, "position": {"name": "alibi"}}
    again = {"labels": {"method": "tempered"}, "trained": "alibi"}
    again["evaluate"] = {"model-overrides": "{'attention_temperature': 'yarn'}"}
    content = {"title": "Twice", "evaluate": {"subset": "test"}, "rows": {"alibi": alibi, "again": again}}
    (folder / "configs" / "tables" / "twice.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    common = ["twice", "--preset", "small", "--data", str(small_data), "--runs", str(folder / "runs")]
    arguments = ["reproduce", *common, "--results", str(folder / "results"), "--jobs", "2"]
    assert experiments.main(["status", *common]) == 0
    assert states(capsys) == {"alibi": ("not started", "0 of 4"), "again": ("not started", "0 of 4")}
    assert experiments.main(arguments) == 0
    assert list((folder / "runs" / "small" / "again").glob("*.pt")) == []
    assert "test set" in (folder / "results" / "small" / "twice.md").read_text()
    logs = [folder / "runs" / "small" / name / "evaluation.log" for name in ("alibi", "again")]
    written = [log.read_bytes() for log in logs]
    assert experiments.main(arguments) == 0
    assert [log.read_bytes() for log in logs] == written  # a row is not evaluated again for the other one
    cells = pd.read_csv(folder / "results" / "small" / "twice.tidy.csv").query("inference == 'full'")
    perplexities = cells.set_index(["method", "sequence_length"]).perplexity
    assert [perplexities["tempered", n] == perplexities["ALiBi", n] for n in (8, 16, 24)] == [True, True, False]
    capsys.readouterr()
    assert experiments.main(["status", *common]) == 0
    assert states(capsys) == {"alibi": ("done", "4 of 4"), "again": ("done", "4 of 4")}
    assert experiments.main(["train", "small", "again", *common[3:], "--dry-run"]) == 0
    assert str(folder / "runs" / "small" / "alibi") in capsys.readouterr().out
    content["rows"]["again"]["trained"] = "again"
    (folder / "configs" / "tables" / "twice.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    assert experiments.main(arguments) == 2
    assert "row again: trained 'again': accepted are rows above it that are trained" in capsys.readouterr().err


def test_table_is_written_when_a_row_fails_and_done_rows_are_not_trained_again(
    small_configs, small_data, capsys, monkeypatch, forked
):
    folder = small_configs
    markdown, beside = tables.markdown, []
    monkeypatch.setattr(tables, "markdown", lambda *words: beside.append(words[-2]) or markdown(*words))
    arguments = ["reproduce", "table1", "--preset", "small", "--data", str(small_data)]
    arguments += ["--runs", str(folder / "runs"), "--results", str(folder / "results"), "--jobs", "2"]
    (folder / "runs" / "small" / "broken").mkdir(parents=True)
    unfit = {"optimizer_history": [{"num_updates": 1}]}  # from which no fairseq goes on
    torch.save(unfit, str(folder / "runs" / "small" / "broken" / "checkpoint_last.pt"))
    assert experiments.main(arguments) == 1
    printed = capsys.readouterr()
    assert "[1/3] alibi: training ALiBi" in printed.out
    assert "[2/3] broken: FAILED with status 1; the last lines of" in printed.err
    assert "[3/3] too-wide: does not fit, --wavelet-scales '2^0..2^127': 128 scales" in printed.err
    assert "error: 2 of 3 rows have no numbers" in printed.err
    assert beside[0].method.tolist() == pd.read_csv(ROOT / "results" / "paper" / "table1.csv").method.tolist()
    wide = pd.read_csv(folder / "results" / "small" / "table1.csv", dtype=str).set_index(["inference", "method"])
    assert set(wide.loc[("full", "Broken")][1:]) == {"failed"}
    assert set(wide.loc[("full", "Too wide")][1:]) == {"does not fit"}
    manifest = json.loads((folder / "results" / "small" / "table1.manifest.json").read_text())
    assert manifest["rows"]["broken"] == "failed"
    assert manifest["rows"]["too-wide"].startswith("--wavelet-scales '2^0..2^127': 128 scales")
    alibi = json.loads((folder / "runs" / "small" / "alibi" / "result.json").read_text())
    assert manifest["rows"]["alibi"]["training_command"] == alibi["training_command"]
    perplexities = {(cell["inference"], cell["sequence_length"]): cell["perplexity"] for cell in alibi["cells"]}
    assert f"{perplexities['full', 24]:.2f}" == wide.loc[("full", "ALiBi")]["24"]

    status = ["status", *arguments[1:8]]
    assert experiments.main(status) == 0
    assert states(capsys)["broken"] == ("failed", "0 of 4")

    table = folder / "configs" / "tables" / "table1.yaml"
    table.write_text(re.sub("  broken:.*?(?=  too-wide)", "", table.read_text(), flags=re.DOTALL), encoding="utf-8")
    checkpoint = folder / "runs" / "small" / "alibi" / "checkpoint_last.pt"
    trained_at = checkpoint.stat().st_mtime_ns
    assert experiments.main([*arguments, "--seeds", "2"]) == 1
    printed = capsys.readouterr().out
    assert "[1/4] alibi: done" in printed and "[3/4] alibi seed 2: training" in printed
    assert checkpoint.stat().st_mtime_ns == trained_at
    both = pd.read_csv(folder / "results" / "small" / "table1.csv", dtype=str).set_index(["inference", "method"])
    assert float(both.loc[("full", "ALiBi")]["24 std"]) > 0
    tidy = pd.read_csv(folder / "results" / "small" / "table1.tidy.csv")
    assert sorted(tidy[tidy.method == "ALiBi"].seed.unique()) == [1, 2]
    manifest = json.loads((folder / "results" / "small" / "table1.manifest.json").read_text())
    assert manifest["rows"]["alibi seed 2"]["seed"] == 2

    assert experiments.main([*status, "--seeds", "2"]) == 0
    found = states(capsys)
    assert found["alibi"] == found["alibi seed 2"] == ("done", "4 of 4")
    assert found["too-wide"] == ("not started", "0 of 4")

    preset = folder / "configs" / "presets" / "small.yaml"
    text = preset.read_text(encoding="utf-8")
    preset.write_text(text.replace("- 24", "- 32"), encoding="utf-8")
    assert experiments.main(status) == 0
    (alibi_now,) = [line for line in capsys.readouterr().out.splitlines() if "alibi" in line]
    assert "| stopped" in alibi_now and "4 of 4" in alibi_now and "fully trained, not yet evaluated" in alibi_now
    assert experiments.main(arguments) == 1  # evaluated again, at other lengths, but not trained
    assert "alibi: training" in capsys.readouterr().out and checkpoint.stat().st_mtime_ns == trained_at
    again = json.loads((folder / "runs" / "small" / "alibi" / "result.json").read_text())
    assert {cell["sequence_length"] for cell in again["cells"]} == {8, 16, 32}
    assert again["training_seconds"] == alibi["training_seconds"]

    (folder / "runs" / "small" / "alibi" / "result.json").unlink()  # killed between the last update and its result
    assert experiments.main(arguments) == 1
    capsys.readouterr()
    assert checkpoint.stat().st_mtime_ns == trained_at
    assert json.loads((folder / "runs" / "small" / "alibi" / "result.json").read_text())["cells"]

    preset.write_text(text.replace("lr: 0.006", "lr: 0.003"), encoding="utf-8")
    assert experiments.main(arguments) == 2
    assert "alibi was trained with other options" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["train", "--lr", "0.5"], ["train", "--name", "mine"], ["evaluate", "--lr", "0.5"]])
def test_a_row_with_anothers_training_takes_no_options_of_its_own(tmp_path, capsys, words):
    name, *options = words
    command = [name, "wikitext2-chars-cpu", "ricker-temperature", *options, "--runs", str(tmp_path), "--dry-run"]
    assert experiments.main(command) == 2
    assert "has the training of ricker" in capsys.readouterr().err
