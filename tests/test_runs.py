"""What a run survives: in the end its result is the one of the run that nothing befell."""

import functools
import json
import os
import pickle
import resource
import shlex
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
from conftest import preprocess, sound_result, synthetic_text

from wavepos_fairseq import DIGITS
from wavepos_fairseq.common import files
from wavepos_fairseq.common.files import write_json
from wavepos_fairseq.lab import configs, experiments, runs, schedule, slurm, tables

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
    return configs.Preset(name="small", **content)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    for split, lines in (("train", 80), ("valid", 20)):
        (folder / split).write_text(synthetic_text(lines, seed=len(split)), encoding="utf-8")
    return preprocess(folder / "data-bin", train=folder / "train", valid=folder / "valid")


@pytest.fixture
def run(preset, data, tmp_path):
    row = configs.Row("ricker", {"method": "Ricker"}, {"name": "wavelet"})
    return runs.Run(preset, row, data, tmp_path / "runs" / "ricker", gpus=0, seed=1)


@pytest.fixture(scope="module")
def undisturbed(preset, data, tmp_path_factory):
    """The cells of the run that nothing befalls."""
    row = configs.Row("ricker", {"method": "Ricker"}, {"name": "wavelet"})
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
    program = "import pickle, sys; from wavepos_fairseq.lab import runs; runs.execute(*pickle.load(sys.stdin.buffer))"
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


def test_killed_at_any_moment_it_goes_on_from_its_last_checkpoint_with_as_many_threads(run, undisturbed, capfd):
    process = in_a_process(run)
    wait_for(lambda: int(run.last_logged().get("num_updates", 0)) >= 13)
    os.kill(process.pid, signal.SIGKILL)  # alone: its training ends with it
    process.wait()
    wait_for(lambda: run.state() == "stopped")
    assert 0 < run.resumed_at() < LAST
    result = runs.execute(run, {"OMP_NUM_THREADS": "2"})
    assert numbers(result) == undisturbed and result["threads"] == 1
    assert f"{run.folder} began with 1 threads and keeps them, instead of 2\n" in capfd.readouterr().err
    assert first_attempts(run) == 2


def test_a_checkpoint_cut_short_is_replaced_by_the_one_before_or_by_none(run, capsys):
    run.folder.mkdir(parents=True)
    for updates, name in ((12, "checkpoint_last"), (12, "checkpoint_2_12"), (9, "checkpoint_1_9")):
        torch.save({"optimizer_history": [{"num_updates": updates}]}, str(run.folder / f"{name}.pt"))
    for cut, resumed_at in (("checkpoint_last", 12), ("checkpoint_2_12", 12), ("checkpoint_last", 9)):
        checkpoint = run.folder / f"{cut}.pt"
        checkpoint.write_bytes(checkpoint.read_bytes()[:100])
        assert run.resumed_at() == resumed_at
    assert (run.folder / runs.UNREADABLE).is_file()
    said = capsys.readouterr().err
    assert "checkpoint_last.pt cannot be read" in said and "checkpoint_last.pt is replaced by checkpoint_1_9.pt" in said
    for checkpoint in run.folder.glob("*.pt"):
        checkpoint.write_bytes(b"")
    assert run.resumed_at() == 0 and not (run.folder / "checkpoint_last.pt").exists()


def test_what_cannot_be_read_is_kept_until_a_checkpoint_is_written_after_it(run):
    run.folder.mkdir(parents=True)
    last, unreadable = run.folder / "checkpoint_last.pt", run.folder / runs.UNREADABLE
    for updates, checkpoint in ((9, run.folder / "checkpoint_1_9.pt"), (12, last)):
        torch.save({"optimizer_history": [{"num_updates": updates}]}, str(checkpoint))
        os.utime(checkpoint, (updates, updates))
    last.write_bytes(last.read_bytes()[:100])
    assert run.resumed_at() == run.resumed_at() == 9 and unreadable.is_file()
    torch.save({"optimizer_history": [{"num_updates": 15}]}, str(last))
    assert run.resumed_at() == 15 and not unreadable.exists()


def test_who_has_the_run_removes_what_those_before_left_half_written(run):
    run.folder.mkdir(parents=True)
    for name in ("checkpoint_last.part", "checkpoint_1_9.pt.tmp", "result.json.17.part", "checkpoint_1_6.pt"):
        (run.folder / name).write_bytes(b"half")
    with run.locked():
        assert sorted(path.name for path in run.folder.iterdir()) == ["checkpoint_1_6.pt", "lock"]


def test_a_run_that_is_complete_keeps_nothing_that_cannot_be_read(run):
    run.folder.mkdir(parents=True)
    (run.folder / "result.json").write_text(json.dumps(sound_result(run)))
    (run.folder / runs.UNREADABLE).write_bytes(b"half")
    assert runs.execute(run)["cells"] and not (run.folder / runs.UNREADABLE).exists()


@pytest.mark.parametrize("updates", [-5, "12", None, 3.5])
def test_a_checkpoint_of_no_number_of_updates_is_not_gone_on_from(run, updates):
    run.folder.mkdir(parents=True)
    torch.save({"optimizer_history": [{"num_updates": updates}]}, str(run.folder / "checkpoint_last.pt"))
    assert run.resumed_at() == 0 and (run.folder / runs.UNREADABLE).is_file()


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
    assert "checkpoint_last.pt cannot be read (it is damaged: " in said and "is replaced by checkpoint_1_9.pt" in said
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
    logged = '2026 | INFO | train_inner | {"epoch": 1, "loss": "9.1", "wall": "2", "num_updates": "%s"}\n'
    unsound = [(logged % 4)[:60], *(logged % number for number in (-4, "many", "1e999", "[4]")), '{"epoch": 1}']
    (run.folder / "train.log").write_text(logged % 3 + "\n".join(unsound))
    assert run.result() is None and run.state() == "not started"
    assert run.last_logged()["num_updates"] == "3"
    (run.folder / "result.json").write_text("")
    with pytest.raises(ValueError, match="result.json is not a JSON file"):
        run.result()


def test_a_process_that_outlives_its_parent_keeps_the_run(run):
    """As one that waits for the disk does, even killed."""
    run.folder.mkdir(parents=True)
    (run.folder / "training.json").write_text(json.dumps({"command": shlex.join(run.training_command())}))
    with run.locked() as lock:
        process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, pass_fds=[lock])
    assert run.state() == "running"
    with pytest.raises(runs.InUse, match=f"ricker is in use: process {os.getpid()} on .* started it"):
        runs.execute(run)
    process.communicate(b"\n")
    assert run.state() == "stopped"


@pytest.mark.long
def test_two_processes_on_one_folder_make_each_run_once(run, monkeypatch, capsys):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    rows = [replace(run.row, name=name, position={"name": name}) for name in ("nope", "alibi")]
    both = [replace(run, row=row, folder=run.folder.with_name(row.name)) for row in rows]
    found = []
    threads = [threading.Thread(target=lambda: found.append(schedule.make_here(both, {}, jobs=1))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [first_attempts(one) for one in both] == [1, 1]
    assert found[0] == found[1] and all(outcome["cells"] for outcome in found[0])
    assert "nope is in use: process" in capsys.readouterr().out


@pytest.mark.long
def test_a_run_that_slurm_requeues_midway_ends_with_the_same_numbers(
    run, undisturbed, slurm_cluster, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(slurm, "SECONDS_BETWEEN_QUERIES", 0.5)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    found = []
    waiting = threading.Thread(
        target=lambda: found.extend(schedule.make_on_slurm([run], {}, tmp_path / "slurm", "wavepos-test-runs"))
    )
    waiting.start()
    wait_for(lambda: int(run.last_logged().get("num_updates", 0)) >= 5)
    (job,) = slurm._states("wavepos-test-runs")
    subprocess.run(["scontrol", "requeue", job], check=True)
    waiting.join()
    assert numbers(found[0]) == undisturbed
    assert first_attempts(run) == 2
    assert "perplexity at L_train 16" in capsys.readouterr().out


@pytest.mark.long
def test_a_disk_that_is_full_is_said_and_nothing_is_lost(run, undisturbed):
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limit[1]))  # no checkpoint is as small as that
    try:
        with pytest.raises(runs.RunFailed, match=f"^File too large in {run.folder}; status 1"):
            runs.execute(run, ONE_THREAD)
        assert "File too large" in (run.folder / "failed").read_text()
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, limit[1]))
        with pytest.raises(OSError, match=f"File too large: '{run.folder}'"):
            runs.execute(run, ONE_THREAD)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert numbers(runs.execute(run, ONE_THREAD)) == undisturbed
    assert not list(run.folder.glob("*.tmp"))


def test_a_failure_that_cannot_be_written_down_leaves_no_empty_file(run, monkeypatch):
    def fail(*_):
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, limit[1]))
        raise runs.RunFailed("status 1")

    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    monkeypatch.setattr(runs, "_train", fail)
    try:
        with pytest.raises(runs.RunFailed, match="status 1"):
            runs.execute(run)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert [path.name for path in run.folder.iterdir()] == ["lock"]


@pytest.fixture
def stub(tmp_path, monkeypatch):
    """In the place of fairseq-train: a process that logs an update every 0.1 s, and writes nothing."""
    logged = '"train_inner |", json.dumps({"epoch": 1, "loss": "9.1", "wall": "2", "num_updates": str(update)})'
    program = f"import json, time\nfor update in range(1, 100):\n    print({logged}, flush=True)\n    time.sleep(0.1)\n"
    (tmp_path / "stub_of_fairseq.py").write_text(program)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setitem(runs._MODULES, "fairseq-train", ["stub_of_fairseq"])


def test_an_error_while_it_is_followed_ends_the_process_that_it_started(run, stub):
    class Stop(Exception):
        pass

    def progress(update, loss):
        raise Stop

    with pytest.raises(Stop):
        runs.execute(run, ONE_THREAD, progress)
    assert run.state() == "stopped"


def changed(change):
    """A sound result after `change`, as JSON."""

    def write(run):
        result = sound_result(run)
        change(result)
        return json.dumps(result)

    return write


UNSOUND = {
    "null": "is not a JSON object with ",
    "[1]": "is not a JSON object with ",
    "{}": "is not a JSON object with ",
    "": "is not a JSON file",
    changed(lambda result: result.pop("cells")): "is not a JSON object with cells",
    changed(lambda result: result.update(cells=[])): "cells must be a list of cells, not []",
    changed(lambda result: result.update(cells=[1])): "cell 1: expected a mapping",
    changed(lambda result: result["cells"][1].pop("nll")): "cell 2: nll is missing",
    changed(lambda result: result["cells"][0].update(perplexity=float("nan"))): "perplexity must be a number >= 0",
    changed(lambda result: result["cells"][0].update(nll=10**400)): "nll must be a number >= 0",
    changed(lambda result: result["cells"][0].update(seconds=True)): "seconds must be a number >= 0",
    changed(lambda result: result["cells"][0].update(inference=[])): "inference must be full or non-overlapping",
    changed(lambda result: result["cells"].pop()): "its cells are not the requested ones",
    changed(lambda result: result["cells"].append(result["cells"][0])): "its cells are not the requested ones",
    changed(lambda result: [cell.update(l_train=8) for cell in result["cells"]]): "its L_train is not 16",
    changed(lambda result: result.update(training_command="'")): "training_command must be a command",
    changed(lambda result: result.update(training_command="fairseq-train data --lr 1")): "it is from another training",
    changed(lambda result: result.update(seed=2)): "it is from another training",
    changed(lambda result: result.update(threads=0)): "threads must be a whole number > 0, or null, not 0",
    changed(
        lambda result: result.update(training_seconds=-1)
    ): "training_seconds must be a number >= 0, or null, not -1",
}


def test_a_result_of_another_checkpoint_counts_for_nothing(run):
    write_json(run.folder / "result.json", sound_result(run))
    assert run.result() == sound_result(run)
    moved = replace(run, folder=run.folder.rename(run.folder.with_name("elsewhere")))
    assert moved.result() is not None  # it is the same checkpoint in another place
    assert replace(moved, preset=replace(run.preset, checkpoint="checkpoint_best.pt")).result() is None


def test_a_training_that_ends_early_is_not_done(run, forked):
    early = replace(run, row=replace(run.row, train={"max-epoch": 1}))
    with pytest.raises(runs.RunFailed, match=f"the training ended before update {LAST}"):
        runs.execute(early, ONE_THREAD)
    assert early.state() == "failed" and not (run.folder / "evaluation.json").exists()


def test_seed_in_an_option_is_the_end_of_the_folders_name(run):
    begin = replace(run, row=replace(run.row, train={"finetune-from-model": "{run}/../../small{seed}/x.pt"}))
    for seed, folder in ((1, "small"), (2, "small-seed2")):
        assert f"{run.folder}/../../{folder}/x.pt" in replace(begin, seed=seed).training_arguments()


@pytest.mark.parametrize("content, message", UNSOUND.items(), ids=UNSOUND.values())
def test_a_result_that_says_nonsense_is_not_done_and_it_is_said_why(run, content, message):
    run.folder.mkdir(parents=True)
    path = run.folder / "result.json"
    path.write_text(content if isinstance(content, str) else content(run))
    with pytest.raises(runs.Broken) as broken:
        run.result()
    said = str(broken.value)
    assert said.startswith(str(path)) and message in said and len(said.splitlines()) == 1
    assert said.endswith("; remove the file to evaluate the run again")
    path.unlink()
    assert run.result() is None


@pytest.mark.parametrize(
    "content", ["null", "[1]", "", "{}", '{"command": ""}', '{"command": "\'"}', '{"command": "x", "threads": -1}']
)
def test_a_training_json_that_says_nonsense_is_not_gone_on_with(run, content):
    run.folder.mkdir(parents=True)
    (run.folder / "training.json").write_text(content)
    for ask in (run.refuse_other_options, run.result, run.state, lambda: runs.execute(run)):
        with pytest.raises(runs.Broken, match="training.json.* what was trained here is unknown: remove .*ricker, or"):
            ask()


def test_the_result_and_the_training_json_of_version_0_2_3_are_read(run):
    """They say nothing of threads."""
    result = {key: value for key, value in sound_result(run).items() if key != "threads"}
    run.folder.mkdir(parents=True)
    (run.folder / "result.json").write_text(json.dumps(result))
    started = {"command": result["training_command"], "version": runs.DIGITS}
    (run.folder / "training.json").write_text(json.dumps(started))
    assert run.result() == result
    assert experiments.manifest([run], [result], {})["rows"]["ricker"]["threads"] is None


@pytest.mark.parametrize(
    "words", [("--lr=0.1", "--fp16"), ("--lr", "9", "--lr=0.1", "--fp16"), ("--fp16", "--lr=9", "--lr", "0.1")]
)
def test_an_option_is_the_same_with_a_space_and_with_an_equals_sign(words):
    assert runs._by_option(shlex.join(["fairseq-train", "data", *words]))["--lr"] == "0.1"


def test_a_training_that_began_with_fairseqs_own_task_goes_on_with_ours(run):
    began = shlex.join(run.training_command()).replace("language_modeling_wavepos", "language_modeling")
    assert began != shlex.join(run.training_command())
    run.folder.mkdir(parents=True)
    write_json(run.folder / "training.json", {"command": began, "version": DIGITS, "threads": 1})
    run.refuse_other_options()


@pytest.mark.parametrize(
    "option, given, kept",
    [
        ("--save-dir", "elsewhere", "{folder}"),
        ("--seed", "7", "1"),
        ("--tokens-per-sample", "8", "16"),
        ("--task", "language_modeling", "language_modeling_wavepos"),
    ],
)
def test_what_makes_the_run_what_it_is_is_not_an_option_of_its_training(run, option, given, kept):
    for words in ((option, given), (f"{option}={given}",)):
        with pytest.raises(ValueError) as refused:
            runs.fairseq_options(replace(run, row=replace(run.row, arguments=words)))
        assert f"{option} {given}: this run has {kept.format(folder=run.folder)}; " in str(refused.value)


def test_threads_are_an_even_share_of_the_cpus_that_this_process_may_use(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    allowed = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(allowed)})
        assert runs.threads_of(1) == runs.threads_of(3) == 1
    finally:
        os.sched_setaffinity(0, allowed)
    monkeypatch.setattr(runs, "cpu_count", lambda: 7)
    assert [runs.threads_of(processes) for processes in (1, 2, 3, 9)] == [7, 3, 2, 1]
    assert runs.threads_of(2, cpus=16) == 8
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    assert runs.threads_of(1) == runs.threads_of(9, cpus=16) == 5
    monkeypatch.setenv("OMP_NUM_THREADS", "none")
    with pytest.raises(ValueError, match="OMP_NUM_THREADS=none: accepted is a whole number > 0"):
        runs.threads_of(1)


def test_a_process_has_the_threads_it_is_given_whatever_the_machine_and_its_variables_say(tmp_path, monkeypatch):
    (tmp_path / "said.py").write_text("import sys, torch; print(torch.get_num_threads(), *sys.argv[1:])")
    for name, text in (
        ("PYTHONPATH", tmp_path),
        ("OMP_NUM_THREADS", 1),
        ("MKL_NUM_THREADS", 1),
        ("OMP_THREAD_LIMIT", 1),
    ):
        monkeypatch.setenv(name, str(text))
    threads = os.cpu_count() + 3  # more than MKL makes by itself
    with (tmp_path / "log").open("w+") as log:
        process = runs._start(["said", "--a", "b c"], log.fileno(), threads, {"OMP_NUM_THREADS": "2"}, log)
        assert process.wait() == 0
        log.seek(0)
        assert log.read() == f"{threads} --a b c\n"


def test_stopped_it_ends_its_processes_at_once(run, stub):
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
        f"version 0.0.1 there, {runs.DIGITS} here",
        "remove it, or give another --runs",
    ):
        assert difference in str(refused.value)


def test_ctrl_c_ends_everything_and_says_how_to_go_on(run, tmp_path):
    folder = tmp_path / "configs"
    of_llamas = ("framework", "shape", "tokenizer")
    preset = {name: value for name, value in vars(run.preset).items() if name not in ("name", *of_llamas)}
    table = {"title": "Rows", "rows": {"ricker": {"labels": {"method": "Ricker"}, "position": {"name": "wavelet"}}}}
    for name, content in (("presets/small.yaml", preset), ("tables/rows.yaml", table)):
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_text(yaml.safe_dump(content), encoding="utf-8")
    (run.data / "provenance.json").write_text('{"name": "demo"}')
    words = ["reproduce", "rows", "--preset", "small", "--data", str(run.data), "--runs", str(tmp_path / "runs")]
    program = "import pathlib, sys; from wavepos_fairseq.lab import configs, experiments, runs; "
    program += "configs.CONFIGS = pathlib.Path(sys.argv[1]); sys.exit(experiments.main(sys.argv[2:]))"
    command = [sys.executable, "-c", program, str(folder), *words, "--results", str(tmp_path / "results")]
    heard = functools.partial(signal.signal, signal.SIGINT, signal.default_int_handler)  # also if these tests are deaf
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, preexec_fn=heard)
    log = tmp_path / "runs" / "small" / "ricker" / "train.log"
    wait_for(lambda: log.is_file() and '"num_updates": "2"' in log.read_text(encoding="utf-8"))
    process.send_signal(signal.SIGINT)  # to it alone, not to the group that a terminal would stop
    said = process.communicate(timeout=20)[1]
    assert process.returncode == 130 and "run the same command again to resume" in said
    made = replace(run, folder=log.parent)
    with made.locked():
        pass


def test_an_unfinished_begin_is_refused_from_any_folder(tmp_path, monkeypatch):
    for module in (files, runs):
        monkeypatch.setattr(module, "ROOT", tmp_path)
    source = tmp_path / "runs" / "wikitext2-chars-cpu" / "rope-10k"
    folder = tmp_path / "runs" / "wikitext2-chars-cpu-8x" / "rope-10k-8x"
    for made in (source, folder, tmp_path / "elsewhere"):
        made.mkdir(parents=True)
    (source / "training.json").write_text('{"command": "x", "version": null, "threads": 1}')
    begun = runs.Run(
        configs.load_preset("wikitext2-chars-cpu-8x"), configs.find_row(folder.name), tmp_path, folder, 0, 1
    )
    for place in (tmp_path, tmp_path / "elsewhere"):
        monkeypatch.chdir(place)
        with pytest.raises(ValueError, match="this run is not finished"):
            begun.refuse_unfinished_begin()


@pytest.mark.parametrize(
    "more, shown",
    [
        ({"words": 10, "word_perplexity": 1e6}, 10.0),  # a Llama, or subwords
        ({"words": 10, "word_perplexity": None}, 10.0),  # a text almost without blanks
        ({"words": 10, "word_perplexity": 680.0, "bits_per_character": 1.8}, 680.0),
        ({}, 10.0),
    ],
)
def test_the_perplexity_that_is_said_is_the_table_s(more, shown, capsys):
    cell = {"inference": "full", "l_train": 128, "sequence_length": 128, "tokens": 9, "perplexity": 10.0, **more}
    assert runs.shown_perplexity(cell) == shown
    assert tables.tidy([tables.RowResult({"method": "A"}, 1, [cell])], 128, [128]).perplexity[0] == shown
    schedule._print_success("a", {"cells": [cell]})
    assert f"a: {shown:.2f} perplexity" in capsys.readouterr().out


def of_words(table, folder):
    """The run of ALiBi that a table of words asks for."""
    row = next(row for row in configs.load_table(table)[1] if row.name == "alibi")
    folder.mkdir(parents=True, exist_ok=True)
    return runs.Run(configs.load_preset("wikitext2-cpu"), row, ROOT / "data", folder, 0, 1)


def test_an_evaluation_with_sliding_windows_will_do_for_a_table_without_them(tmp_path):
    more, fewer = (of_words(table, tmp_path / "alibi") for table in ("combinations-seeds", "table1"))
    command = shlex.join(more.training_command())
    write_json(more.folder / "training.json", {"command": command, "version": DIGITS, "threads": 1})
    result = sound_result(more)
    (cell, *_), lengths = result["cells"], more.preset.lengths
    asked = ("full", "non-overlapping", "sliding")
    cells = [{**cell, "inference": inference, "sequence_length": n} for inference in asked for n in lengths]
    write_json(more.folder / "result.json", {**result, "cells": cells})
    assert {cell["inference"] for cell in more.result()["cells"]} == {*asked}
    assert {cell["inference"] for cell in fewer.result()["cells"]} == {"full", "non-overlapping"}


def test_an_older_failure_is_not_told_of_a_new_job(tmp_path, monkeypatch, capsys):
    failed = of_words("table1", tmp_path / "alibi")
    (failed.folder / "failed").write_text("of yesterday")
    monkeypatch.setattr(slurm, "submit", lambda tasks, *_: dict.fromkeys(tasks))
    monkeypatch.setattr(slurm, "ended", lambda jobs, name: ((label, "by scancel") for label in jobs))
    schedule.make_on_slurm([failed], {}, tmp_path, "n")
    assert "FAILED with by scancel" in capsys.readouterr().err


def test_the_last_line_of_a_failure_needs_no_end(tmp_path):
    words = [sys.executable, "-c", r"import os; os.write(1, b'first\nlast'); os._exit(3)"]
    with pytest.raises(runs.RunFailed, match="first\nlast$"):
        runs._follow(functools.partial(start_with, words), tmp_path / "log", print, threading.Event())


def start_with(words, output):
    return subprocess.Popen(words, stdout=output)
