"""What a run survives: in the end its result is the one of the run that nothing befell."""

import functools
import json
import os
import pickle
import resource
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from conftest import preprocess, synthetic_text

from wavepos_fairseq import experiments, runs, slurm

pytest.importorskip("fairseq")
ROOT = Path(__file__).resolve().parents[1]
LAST = 24
ONE_THREAD = {"OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def preset():
    content = yaml.safe_load((ROOT / "configs" / "presets" / "demo.yaml").read_text(encoding="utf-8"))
    content.update(l_train=16, lengths=[8, 16, 24], tokens_per_update=64, tokens_per_device=64)
    content["train"].update({"max-update": LAST, "warmup-updates": 1, "log-interval": 1, "dropout": 0.1})
    content["train"].update({"adaptive-softmax-cutoff": "10,20", "adaptive-input-cutoff": "10,20"})
    content["train"].update({"save-interval-updates": 3, "keep-interval-updates": 2})
    content["train"]["tensorboard-logdir"] = "{run}/tensorboard"
    return runs.Preset(name="small", **content)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    for split, lines in (("train", 80), ("valid", 20)):
        (folder / split).write_text(synthetic_text(lines, seed=len(split)), encoding="utf-8")
    return preprocess(folder / "data-bin", train=folder / "train", valid=folder / "valid")


@pytest.fixture
def run(preset, data, tmp_path):
    row = runs.Row("ricker", {"method": "Ricker"}, ("--position-encoding", "wavelet"))
    return runs.Run(preset, row, data, tmp_path / "runs" / "ricker", gpus=0, seed=1)


@pytest.fixture(scope="module")
def undisturbed(preset, data, tmp_path_factory):
    """The cells of the run that nothing befalls."""
    row = runs.Row("ricker", {"method": "Ricker"}, ("--position-encoding", "wavelet"))
    folder = tmp_path_factory.mktemp("runs") / "ricker"
    found = numbers(runs.execute(runs.Run(preset, row, data, folder, gpus=0, seed=1), ONE_THREAD))
    assert list((folder / "tensorboard" / "train_inner").glob("events.*"))
    return found


def numbers(result):
    return [{key: cell[key] for key in cell if "second" not in key} for cell in result["cells"]]


def first_attempts(run):
    """How often fairseq-train was started on the run."""
    return (run.folder / "train.log").read_text(encoding="utf-8").count("| INFO | fairseq_cli.train | model: ")


def in_a_process(run):
    """Makes the run in a process of its own."""
    program = "import pickle, sys; from wavepos_fairseq import runs; runs.execute(*pickle.load(sys.stdin.buffer))"
    command = [sys.executable, "-c", program]
    process = subprocess.Popen(command, cwd=ROOT, start_new_session=True, stdin=subprocess.PIPE)
    pickle.dump((run, ONE_THREAD), process.stdin)
    process.stdin.close()
    return process


def wait_for(condition, seconds=60):
    ends = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < ends
        time.sleep(0.01)


def test_killed_at_any_moment_it_goes_on_from_its_last_checkpoint(run, undisturbed):
    process = in_a_process(run)
    wait_for(lambda: int(run.last_logged().get("num_updates", 0)) >= 13)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    wait_for(lambda: run.state() == "stopped")
    assert 0 < run.resumed_at() < LAST
    assert numbers(runs.execute(run, ONE_THREAD)) == undisturbed
    assert first_attempts(run) == 2


def test_a_checkpoint_cut_short_is_replaced_by_the_one_before_or_by_none(run, capsys):
    run.folder.mkdir(parents=True)
    for updates, name in ((12, "checkpoint_last"), (12, "checkpoint_2_12"), (9, "checkpoint_1_9")):
        torch.save({"optimizer_history": [{"num_updates": updates}]}, str(run.folder / f"{name}.pt"))
    for cut, resumed_at in (("checkpoint_last", 12), ("checkpoint_2_12", 12), ("checkpoint_last", 9)):
        checkpoint = run.folder / f"{cut}.pt"
        checkpoint.write_bytes(checkpoint.read_bytes()[:100])
        assert run.resumed_at() == resumed_at
    assert (run.folder / "checkpoint_last.unreadable").is_file()
    said = capsys.readouterr().err
    assert "checkpoint_last.pt cannot be read" in said and "checkpoint_last.pt: is checkpoint_1_9.pt now" in said
    for checkpoint in run.folder.glob("*.pt"):
        checkpoint.write_bytes(b"")
    assert run.resumed_at() == 0 and not (run.folder / "checkpoint_last.pt").exists()


def test_a_checkpoint_with_a_bit_changed_is_replaced_by_the_one_before(run, capsys):
    run.folder.mkdir(parents=True)
    for updates, name in ((12, "checkpoint_last"), (9, "checkpoint_1_9")):
        torch.save({"optimizer_history": [{"num_updates": updates}]}, str(run.folder / f"{name}.pt"))
    last = run.folder / "checkpoint_last.pt"
    content = bytearray(last.read_bytes())
    content[content.index(b"num_updates") + len("num_updatesq") + 2] ^= 16  # 12 becomes 28, and the pickle is sound
    last.write_bytes(content)
    assert torch.load(str(last), weights_only=False)["optimizer_history"] == [
        {"num_updates": 28}
    ]  # as PyTorch reads it
    assert run.resumed_at() == 9
    said = capsys.readouterr().err
    assert "checkpoint_last.pt cannot be read (it is damaged: " in said and "is checkpoint_1_9.pt now" in said
    assert run.resumed_at() == 9 and (run.folder / "checkpoint_last.unreadable").read_bytes() == content


def test_a_checkpoint_that_is_refused_stays_where_it_is(run):
    run.folder.mkdir(parents=True)
    last = run.folder / "checkpoint_last.pt"
    torch.save({"optimizer_history": [{"num_updates": 12}], "more": "x" * 2**21}, str(last))
    with pytest.raises(ValueError, match="checkpoint_last.pt asks for more beside its tensors than options"):
        run.resumed_at()
    assert last.is_file()


def test_a_checkpoint_that_the_machine_cannot_read_stays_where_it_is(run, monkeypatch):
    run.folder.mkdir(parents=True)
    (run.folder / "checkpoint_last.pt").write_bytes(b"sound")
    monkeypatch.setattr(torch, "load", lambda *_, **__: (_ for _ in ()).throw(MemoryError()))
    with pytest.raises(MemoryError):
        run.resumed_at()
    assert (run.folder / "checkpoint_last.pt").read_bytes() == b"sound"


def test_files_cut_short_are_no_result_and_no_line_of_the_log(run):
    run.folder.mkdir(parents=True)
    (run.folder / "result.json.1.part").write_text('{"cells": [')
    logged = '2026 | INFO | train_inner | {"epoch": 1, "loss": "9.1", "num_updates": "%d"}\n'
    (run.folder / "train.log").write_text(logged % 3 + (logged % 4)[:60])
    assert run.result() is None and run.state() == "not started"
    assert run.last_logged()["num_updates"] == "3"
    (run.folder / "result.json").write_text("")
    with pytest.raises(ValueError, match="result.json is no JSON file"):
        run.result()


def test_a_process_that_outlives_its_parent_keeps_the_run_and_its_work_is_not_lost(run, undisturbed):
    parent = in_a_process(run)
    wait_for(lambda: run.last_logged())
    os.killpg(parent.pid, signal.SIGSTOP)  # so that the training does not end meanwhile
    parent.kill()
    parent.wait()
    assert run.state() == "running"
    with pytest.raises(runs.InUse, match=f"ricker is in use, by what process {parent.pid} on .* started"):
        runs.execute(run)
    os.killpg(parent.pid, signal.SIGCONT)
    wait_for(lambda: run.state() == "stopped")
    assert numbers(runs.execute(run, ONE_THREAD)) == undisturbed
    assert first_attempts(run) == 1


def test_two_processes_on_one_folder_make_each_run_once(run, monkeypatch, capsys):
    monkeypatch.setattr(experiments.os, "cpu_count", lambda: 1)  # as many threads as in the other tests
    rows = [replace(run.row, name=name, options=("--position-encoding", name)) for name in ("nope", "alibi")]
    both = [replace(run, row=row, folder=run.folder.with_name(row.name)) for row in rows]
    found = []
    threads = [threading.Thread(target=lambda: found.append(experiments.make(both, {}, jobs=1))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [first_attempts(one) for one in both] == [1, 1]
    assert found[0] == found[1] and all(outcome["cells"] for outcome in found[0])
    assert "nope is in use, by what process" in capsys.readouterr().out


def test_a_run_that_slurm_requeues_midway_ends_with_the_same_numbers(
    run, undisturbed, slurm_cluster, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(slurm, "SECONDS_BETWEEN_QUERIES", 0.5)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    found = []
    waiting = threading.Thread(
        target=lambda: found.extend(experiments.make_on_slurm([run], {}, tmp_path / "slurm", "wavepos-test-runs"))
    )
    waiting.start()
    wait_for(lambda: int(run.last_logged().get("num_updates", 0)) >= 5)
    (job,) = slurm._states("wavepos-test-runs")
    subprocess.run(["scontrol", "requeue", job], check=True)
    waiting.join()
    assert numbers(found[0]) == undisturbed
    assert first_attempts(run) == 2
    assert "perplexity at L_train 16" in capsys.readouterr().out


def test_a_disk_that_is_full_is_said_and_nothing_is_lost(run, undisturbed):
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limit[1]))  # no checkpoint is as small as that
    try:
        with pytest.raises(runs.RunFailed, match=f"^File too large in {run.folder}; status 1"):
            runs.execute(run, ONE_THREAD)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert numbers(runs.execute(run, ONE_THREAD)) == undisturbed
    assert not list(run.folder.glob("*.tmp"))


def test_stopped_it_ends_its_processes_at_once(run):
    stop = threading.Event()
    with pytest.raises(KeyboardInterrupt):
        runs.execute(run, ONE_THREAD, progress=lambda update, loss: stop.set(), stop=stop)
    assert run.state() == "stopped"  # nobody holds the lock


def test_other_options_or_another_version_are_refused_with_the_difference(run):
    run.folder.mkdir(parents=True)
    command = "fairseq-train elsewhere --lr 0.1 --position-encoding alibi --fp16"
    (run.folder / "training.json").write_text(json.dumps({"command": command, "version": "0.0.1"}))
    with pytest.raises(ValueError) as refused:
        run.result()
    for difference in (
        "data elsewhere there, ",
        "--lr 0.1 there, 0.006 here",
        "--position-encoding alibi there, wavelet here",
        "--fp16 given there, not given here",
        "--adam-betas not given there, (0.9, 0.98) here",
        f"version 0.0.1 there, {runs.__version__} here",
        "remove it, or give another --runs",
    ):
        assert difference in str(refused.value)


def test_ctrl_c_ends_everything_and_says_how_to_go_on(run, tmp_path):
    folder = tmp_path / "configs"
    preset = {name: value for name, value in vars(run.preset).items() if name != "name"}
    table = {"title": "Rows", "rows": {"ricker": {"method": "Ricker", "options": "--wavelet ricker"}}}
    for name, content in (("presets/small.yaml", preset), ("tables/rows.yaml", table)):
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_text(yaml.safe_dump(content), encoding="utf-8")
    (run.data / "provenance.json").write_text('{"name": "demo"}')
    words = ["reproduce", "rows", "--preset", "small", "--data", str(run.data), "--runs", str(tmp_path / "runs")]
    program = "import pathlib, sys; from wavepos_fairseq import experiments, runs; "
    program += "runs.CONFIGS = pathlib.Path(sys.argv[1]); sys.exit(experiments.main(sys.argv[2:]))"
    command = [sys.executable, "-c", program, str(folder), *words, "--results", str(tmp_path / "results")]
    heard = functools.partial(signal.signal, signal.SIGINT, signal.default_int_handler)  # also if these tests are deaf
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, preexec_fn=heard)
    log = tmp_path / "runs" / "small" / "ricker" / "train.log"
    wait_for(lambda: log.is_file() and '"num_updates": "2"' in log.read_text(encoding="utf-8"))
    process.send_signal(signal.SIGINT)  # to it alone, not to the group that a terminal would stop
    said = process.communicate(timeout=20)[1]
    assert process.returncode == 130 and "the same command goes on where this one stopped" in said
    made = replace(run, folder=log.parent)
    with made.locked():
        pass
