"""Makes several runs side by side, here or as jobs of Slurm, and collects their outcomes."""

import functools
import math
import os
import queue
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Dict, List, Union

from .runs import Broken, InUse, Run, RunFailed, execute, shown_perplexity, threads_of

_SECONDS_BETWEEN_LINES = 10


class Progress:
    """Prints a line every few seconds: a run, its update and loss, and the time left for all runs.

    max_updates: the last update of each run.
    """

    def __init__(self, max_updates: Dict[str, int]):
        self.max_updates = max_updates
        self.started = math.inf  # at the first update, not at fairseq's start
        self.shown = -math.inf
        self.at_start: Dict[str, int] = {}
        self.updates: Dict[str, int] = {}
        self.lock = threading.Lock()

    def update(self, run: str, update: int, loss: float) -> None:
        """Notes that `run` has made this many updates, with its loss in bits."""
        with self.lock:
            self.at_start.setdefault(run, update)
            self.updates[run] = update
            now = time.monotonic()
            self.started = min(self.started, now)
            made = sum(self.updates.values()) - sum(self.at_start.values())
            if not made or now - self.shown < _SECONDS_BETWEEN_LINES:
                return
            self.shown = now
            left = (sum(self.max_updates.values()) - sum(self.updates.values())) * (now - self.started) / made
            print(
                f"{run:<14} update {update:>6} of {self.max_updates[run]}  loss {loss:6.3f} bits  "
                f"about {left / 60:.0f} min left for all",
                flush=True,
            )


Outcome = Union[Dict[str, Any], str]
"""A run's result, or the word that replaces it in the table."""


def make_here(runs: List[Run], refused: Dict[str, str], jobs: int) -> List[Outcome]:
    """Makes the runs that are not done, `jobs` at a time. Returns the outcome of each; "failed" if it failed.

    refused: the rows that are not run, by name, with the reasons (see `experiments.refusals`).
    """
    outcomes, jobs = _so_far(runs, refused), min(jobs, len(runs))
    missing = [number for number, outcome in enumerate(outcomes) if outcome == "failed"]
    progress = Progress(
        {runs[number].label: runs[number].max_update for number in missing if not runs[number].row.trained}
    )
    shares: queue.SimpleQueue[Dict[str, str]] = queue.SimpleQueue()
    for share in shares_of_the_machine(jobs, runs[0].gpus, runs[0].processes):
        shares.put(share)
    stop = threading.Event()
    others: List[int] = []

    def one(number: int, patience: float) -> None:
        run, label = runs[number], f"[{number + 1}/{len(runs)}] {runs[number].label}"
        print(f"{label}: training {' '.join(run.row.labels.values())}", flush=True)
        share = shares.get()
        try:
            outcome = execute(run, share, functools.partial(progress.update, run.label), patience, stop)
        except InUse as error:
            print(f"{label}: {error}; making the other runs first", flush=True)
            others.append(number)
        except (RunFailed, ValueError, OSError) as error:
            _print_failure(label, error)
        else:
            outcomes[number] = outcome
            _print_success(label, outcome)
        finally:
            shares.put(share)

    with ThreadPoolExecutor(jobs) as pool:
        try:
            for numbers, patience in ((missing, 1.0), (others, math.inf)):
                futures = [pool.submit(one, number, patience) for number in numbers]
                for future in futures:
                    future.result()
        finally:
            stop.set()
            for future in futures:
                future.cancel()
    return outcomes


def shares_of_the_machine(jobs: int, gpus: int, processes: int) -> List[Dict[str, str]]:
    """For each of the jobs side by side, the environment with its share of threads and GPUs.

    Raises ValueError if this process sees fewer than jobs x gpus GPUs.
    """
    shares = [{"OMP_NUM_THREADS": str(threads_of(jobs * processes))} for _ in range(jobs)]
    if gpus and jobs > 1:
        import torch

        seen = os.environ.get("CUDA_VISIBLE_DEVICES")
        devices = list(map(str, range(torch.cuda.device_count()))) if seen is None else seen.split(",")
        if len(devices) < jobs * gpus:
            raise ValueError(f"--jobs {jobs} x --gpus {gpus} is more than the {len(devices)} visible GPUs")
        for number, share in enumerate(shares):
            share["CUDA_VISIBLE_DEVICES"] = ",".join(devices[number * gpus : (number + 1) * gpus])
    return shares


def make_on_slurm(runs: List[Run], refused: Dict[str, str], folder: Path, name: str) -> List[Outcome]:
    """Like `make_here`, with the runs as Slurm jobs called `name`, whose files are in `folder`."""
    from . import slurm

    outcomes, resources = _so_far(runs, refused), dict(runs[0].preset.slurm)
    if runs[0].gpus:
        resources.setdefault("gpus_per_node", runs[0].gpus)
    by_label = {run.label: number for number, run in enumerate(runs) if outcomes[number] == "failed"}
    cpus = resources.get("cpus_per_task")  # without it, the job has what the node gives
    share = {"OMP_NUM_THREADS": str(threads_of(runs[0].processes, cpus))} if cpus else {}
    make_one = functools.partial(execute, environment=share, patience=math.inf)
    tasks = {label: functools.partial(make_one, runs[number]) for label, number in by_label.items()}
    for number in by_label.values():
        (runs[number].folder / "failed").unlink(missing_ok=True)  # of an earlier attempt
    for label, failure in slurm.ended(slurm.submit(tasks, folder, name, resources), name):
        run = runs[by_label[label]]
        failed = run.folder / "failed"
        try:
            result = run.result()
        except (ValueError, OSError) as error:
            _print_failure(label, error)
            continue
        if result:
            outcomes[by_label[label]] = result
            _print_success(label, result)
        else:
            text = failed.read_text(encoding="utf-8", errors="replace") if failed.is_file() else failure
            _print_failure(label, text)
    return outcomes


def _print_success(label: str, result: Dict[str, Any]) -> None:
    at_l_train = next(cell for cell in result["cells"] if cell["sequence_length"] == cell["l_train"])
    print(f"{label}: {shown_perplexity(at_l_train):.2f} perplexity at L_train {at_l_train['l_train']}", flush=True)


def _print_failure(label: str, why: Any) -> None:
    print(f"{label}: FAILED with {why}", file=sys.stderr, flush=True)


def _so_far(runs: List[Run], refused: Dict[str, str]) -> List[Outcome]:
    """Prints and returns what is known of each run beforehand; "failed" stands for those that must be made.

    A run with an invalid file is "broken" and stays as it is. Raises ValueError if one was trained with other options.
    """
    outcomes: List[Outcome] = []
    for number, run in enumerate(runs, 1):
        label = f"[{number}/{len(runs)}] {run.label}"
        if run.row.name in refused:
            outcomes.append("does not fit")
            print(f"{label}: does not fit, {refused[run.row.name]}", file=sys.stderr, flush=True)
            continue
        try:
            outcomes.append(run.result() or "failed")
        except (Broken, OSError) as error:
            outcomes.append("broken")
            print(f"{label}: broken, {error}", file=sys.stderr, flush=True)
        if not isinstance(outcomes[-1], str):
            print(f"{label}: done", flush=True)
    return outcomes
