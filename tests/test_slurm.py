"""A real Slurm on this machine: its jobs, stopped midway and started again by it."""

import functools
import subprocess
import sys
import time
from pathlib import Path

import pytest

from wavepos_fairseq.lab import experiments, slurm

NAME = "wavepos-test"


def square(number):
    if number == 3:
        raise ValueError("three")
    return number * number


def count(folder):
    """A process of its own counts to 4, on from its checkpoint; deaf to USR2, it stays at 2 until it is stopped."""
    folder.mkdir(exist_ok=True)
    program = """if True:
        import os, pathlib, signal, time
        signal.signal(signal.SIGUSR2, signal.SIG_IGN)
        checkpoint = pathlib.Path("checkpoint")
        begin = int(checkpoint.read_text()) if checkpoint.exists() else 0
        for number in range(begin + 1, 5):
            checkpoint.write_text(str(number))
            with open("log", "a") as log:
                log.write(f"{number} {os.getpid()}\\n")
            while number == 2:
                time.sleep(0.1)
    """
    subprocess.run([sys.executable, "-c", program], cwd=str(folder), check=True)
    return (folder / "checkpoint").read_text()


def counted(folder):
    """The numbers so far, and the processes that counted them."""
    log = folder / "log"
    lines = [line.split() for line in log.read_text().splitlines()] if log.exists() else []
    return [int(number) for number, _ in lines], [int(process) for _, process in lines]


def is_alive(process):
    return Path(f"/proc/{process}").exists() and "(zombie)" not in Path(f"/proc/{process}/status").read_text()


def test_an_unknown_or_missing_resource_is_refused_by_name(tmp_path):
    with pytest.raises(ValueError, match=r"slurm: gpu is unknown; accepted are timeout_min, gpus_per_node"):
        slurm.submit({}, tmp_path, NAME, {"timeout_min": 5, "gpu": 8})
    with pytest.raises(ValueError, match="slurm: timeout_min is missing"):
        slurm.submit({}, tmp_path, NAME, {})


def test_without_slurm_the_launcher_says_so_before_the_data_are_made(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(experiments, "_prepared", lambda *_: pytest.fail("data"))
    words = ["reproduce", "table1", "--preset", "demo", "--launcher", "slurm"]
    (tmp_path / "sbatch").write_text("#!/bin/sh\n")
    (tmp_path / "squeue").write_text("#!/bin/sh\necho first >&2\necho no controller >&2\nexit 1\n")
    for name in ("sbatch", "squeue"):
        (tmp_path / name).chmod(0o755)
    for path, said in (("empty", "sbatch is not on the PATH"), ("", "squeue fails: no controller")):
        monkeypatch.setenv("PATH", str(tmp_path / path))
        assert experiments.main(words) == 2
        assert f"error: --launcher slurm: {said}" in capsys.readouterr().err.splitlines()[-1]


@pytest.fixture
def on_slurm(slurm_cluster, monkeypatch):
    """Jobs find this module; their states are asked for twice a second."""
    monkeypatch.setenv("PYTHONPATH", f"{Path(__file__).parents[1]}:{Path(__file__).parent}")
    monkeypatch.setattr(slurm, "SECONDS_BETWEEN_QUERIES", 0.5)


def test_an_array_gives_each_task_its_result_or_its_failure(on_slurm, tmp_path):
    tasks = {str(number): functools.partial(square, number) for number in (2, 3)}
    jobs = slurm.submit(tasks, tmp_path, NAME, {"timeout_min": 5})
    assert [job.job_id.split("_")[1] for job in jobs.values()] == ["0", "1"]
    failures = dict(slurm.ended(jobs, NAME))
    assert jobs["2"].result() == 4 and failures["2"] is None
    assert "ValueError: three" in failures["3"]


def test_what_slurm_refuses_is_said_in_its_words(on_slurm, tmp_path):
    with pytest.raises(ValueError, match="sbatch refuses the jobs: .*invalid partition"):
        slurm.submit({"one": time.time}, tmp_path, NAME, {"timeout_min": 5, "partition": "nowhere"})


def test_stopped_jobs_are_requeued_and_go_on_from_their_checkpoints(on_slurm, tmp_path, capsys):
    folders = {name: tmp_path / name for name in ("timed out", "preempted", "requeued", "cancelled")}
    tasks = {name: functools.partial(count, folder) for name, folder in folders.items()}
    jobs = slurm.submit(tasks, tmp_path / "jobs", NAME, {"timeout_min": 5})
    limit = time.monotonic() + 20
    while [counted(folder)[0] for folder in folders.values()] != [[1, 2]] * 4:
        assert time.monotonic() < limit
        time.sleep(0.1)

    ids = {name: job.job_id for name, job in jobs.items()}
    subprocess.run(["scancel", "--signal=TERM", ids["preempted"]], check=True)
    subprocess.run(["scontrol", "requeue", ids["requeued"]], check=True)
    subprocess.run(["scancel", ids["cancelled"]], check=True)
    subprocess.run(["scancel", "--signal=USR2", ids["timed out"], ids["preempted"]], check=True)
    failures = dict(slurm.ended(jobs, NAME))
    assert failures.pop("cancelled").startswith("it ended without a result")
    assert failures == {"timed out": None, "preempted": None, "requeued": None}
    for name in failures:
        numbers, processes = counted(folders[name])
        assert (jobs[name].result(), numbers) == ("4", [1, 2, 3, 4])
        assert processes[1] != processes[2]
    assert not [process for folder in folders.values() for process in counted(folder)[1] if is_alive(process)]
    assert f"timed out: pending (job {ids['timed out']})" in capsys.readouterr().out


def test_the_same_call_comes_back_to_jobs_in_the_queue(on_slurm, tmp_path, monkeypatch, capsys):
    tasks = {name: functools.partial(count, tmp_path / name) for name in ("one", "two")}
    jobs = slurm.submit({"one": tasks["one"]}, tmp_path, NAME, {"timeout_min": 5})

    def interrupt(seconds):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(slurm.time, "sleep", interrupt)
        list(slurm.ended(jobs, NAME))
    assert f"scancel {jobs['one'].job_id} ends them" in capsys.readouterr().err
    again = slurm.submit(tasks, tmp_path, NAME, {"timeout_min": 5})
    assert again["one"].job_id == jobs["one"].job_id != again["two"].job_id
    subprocess.run(["scancel", "--name", NAME], check=True)
    assert sorted(name for name, _ in slurm.ended(again, NAME)) == ["one", "two"]
