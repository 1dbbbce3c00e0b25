"""Presets and rows as commands, and a table from its rows to its files."""

import json
import shlex
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import yaml

from wavepos_fairseq import experiments

pytest.importorskip("fairseq")
ROOT = Path(__file__).resolve().parents[1]
PRESETS = sorted(path.stem for path in (ROOT / "configs" / "presets").glob("*.yaml"))
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


@pytest.mark.parametrize("preset", PRESETS)
def test_lengths_of_every_preset_stand_to_l_train_as_in_the_paper(preset):
    loaded = experiments.load_preset(preset)
    paper_l_train = 1024 if loaded.l_train == 1024 else 512
    paper = sorted(PAPER[PAPER.l_train == paper_l_train].sequence_length.unique())
    assert loaded.lengths == [length * loaded.l_train // paper_l_train for length in paper]


def test_table1_has_every_method_of_the_paper_and_names_its_own_additions():
    title, rows = experiments.load_table("table1")
    positions = {row.method: row.position for row in rows}
    paper = dict(zip(PAPER.method, PAPER.position))
    assert {method: positions[method] for method in paper} == paper
    assert set(positions) - set(paper) == {"Sinusoidal", "Wavelet Ricker future"}
    assert len(rows) == 12


@pytest.mark.parametrize("preset", PRESETS)
def test_fairseq_accepts_every_row_of_table1_under_every_preset(preset, capsys):
    for row in experiments.load_table("table1")[1]:
        assert dry_run(capsys, preset, row.name)[-len(row.options) :] == list(row.options)


def test_options_that_fairseq_would_refuse_stop_before_anything_is_written(tmp_path, capsys):
    with pytest.raises(SystemExit, match="--wavelet 'rickr' is unknown; accepted are ricker"):
        experiments.main(["train", "demo", "--wavelet", "rickr", "--runs", str(tmp_path / "runs")])
    with pytest.raises(SystemExit):
        experiments.main(["train", "demo", "--no-such-option", "--runs", str(tmp_path / "runs")])
    assert "--no-such-option" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["train", "wikitext103", "ricker"], "preset 'wikitext103' is unknown; accepted are demo, wikitext103-1024"),
        (["train", "demo", "riker"], "row 'riker' is unknown; accepted are nope, sinusoidal"),
        (["train", "demo"], "neither a row nor options are given"),
        (["reproduce", "table9", "--preset", "demo"], "table 'table9' is unknown; accepted are table1"),
        (["reproduce", "table1", "--preset", "demo", "--data", "no-such-folder"], "--data no-such-folder: there is no"),
    ],
)
def test_unknown_names_are_refused_with_what_is_accepted(arguments, message, capsys):
    assert experiments.main(arguments) == 2
    assert message in capsys.readouterr().err


def test_options_make_a_run_of_their_own(capsys):
    command = dry_run(capsys, "demo", "--position-encoding", "rope", "--rope-theta", "5e4")
    assert option(command, "--save-dir") == "runs/demo/position-encoding_rope_rope-theta_5e4"
    assert command[-4:] == ["--position-encoding", "rope", "--rope-theta", "5e4"]
    assert option(dry_run(capsys, "demo", "alibi", "--lr", "0.1"), "--save-dir") == "runs/demo/alibi_lr_0.1"


@pytest.fixture
def small_configs(tmp_path, monkeypatch):
    """A preset of a few updates, and a table of two rows of which the second cannot be trained."""
    preset = yaml.safe_load((ROOT / "configs" / "presets" / "demo.yaml").read_text(encoding="utf-8"))
    preset.update(l_train=16, lengths=[8, 16, 24], tokens_per_update=64, tokens_per_device=64)
    preset["train"].update({"max-update": 4, "warmup-updates": 1, "log-interval": 1, "criterion": "adaptive_loss"})
    preset["train"].update({"adaptive-softmax-cutoff": "10,20", "adaptive-input-cutoff": "10,20"})
    rows = {
        "alibi": {"method": "ALiBi", "position": "rel", "options": "--position-encoding alibi"},
        "broken": {"method": "Broken", "position": "rel", "options": "--position-encoding rope --rope-theta -1"},
    }
    for folder, name, content in (
        ("presets", "small", preset),
        ("tables", "table1", {"title": "Table 1", "rows": rows}),
    ):
        (tmp_path / "configs" / folder).mkdir(parents=True)
        (tmp_path / "configs" / folder / f"{name}.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    monkeypatch.setattr(experiments, "CONFIGS", tmp_path / "configs")
    return tmp_path


@pytest.fixture
def small_data(tmp_path):
    text = "\n".join(" ".join(f"w{(line * word) % 31}" for word in range(1, 13)) for line in range(40)) + "\n"
    for split in ("train", "valid"):
        (tmp_path / split).write_text(text, encoding="utf-8")
    command = ["-m", "fairseq_cli.preprocess", "--only-source", "--destdir", str(tmp_path / "data-bin")]
    prefixes = ["--trainpref", str(tmp_path / "train"), "--validpref", str(tmp_path / "valid")]
    subprocess.run([sys.executable, *command, *prefixes], check=True, capture_output=True)
    return tmp_path / "data-bin"


def test_data_of_another_corpus_makes_no_table(small_data, capsys):
    arguments = ["reproduce", "table1", "--preset", "wikitext2-cpu", "--data", str(small_data), "--runs", "runs"]
    (small_data / "test.idx").write_bytes((small_data / "valid.idx").read_bytes())
    assert experiments.main(arguments) == 2
    assert "this is not wikitext-2 (train tokens: expected 2,088,628, found" in capsys.readouterr().err
    (small_data / "provenance.json").write_text('{"name": "demo"}')
    assert experiments.main(arguments) == 2
    assert "holds demo, but preset wikitext2-cpu is for wikitext-2" in capsys.readouterr().err
    assert not Path("runs").exists()


def test_table_is_written_when_a_row_fails_and_done_rows_are_not_trained_again(small_configs, small_data, capsys):
    folder = small_configs
    arguments = ["reproduce", "table1", "--preset", "small", "--data", str(small_data)]
    arguments += ["--runs", str(folder / "runs"), "--results", str(folder / "results"), "--jobs", "2"]
    assert experiments.main(arguments) == 1
    printed = capsys.readouterr()
    assert "[1/2] alibi: training ALiBi" in printed.out
    assert "[2/2] broken: FAILED" in printed.err and "--rope-theta -1.0: must be > 0" in printed.err
    wide = pd.read_csv(folder / "results" / "small" / "table1.csv", dtype=str).set_index(["inference", "method"])
    assert set(wide.loc[("full", "Broken")][1:]) == {"failed"}
    manifest = json.loads((folder / "results" / "small" / "table1.manifest.json").read_text())
    assert manifest["rows"]["broken"] == "failed"
    alibi = json.loads((folder / "runs" / "small" / "alibi" / "result.json").read_text())
    assert manifest["rows"]["alibi"]["training_command"] == alibi["training_command"]
    perplexities = {(cell["inference"], cell["sequence_length"]): cell["perplexity"] for cell in alibi["cells"]}
    assert f"{perplexities['full', 24]:.2f}" == wide.loc[("full", "ALiBi")]["24"]

    checkpoint = folder / "runs" / "small" / "alibi" / "checkpoint_last.pt"
    trained_at = checkpoint.stat().st_mtime_ns
    assert experiments.main(arguments) == 1
    assert "[1/2] alibi: is done" in capsys.readouterr().out
    assert checkpoint.stat().st_mtime_ns == trained_at

    preset = folder / "configs" / "presets" / "small.yaml"
    text = preset.read_text(encoding="utf-8")
    preset.write_text(text.replace("- 24", "- 32"), encoding="utf-8")
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
