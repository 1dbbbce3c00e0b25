"""Runs tasks as one Slurm job array, through submitit.

A task is a callable that trains and evaluates one run. Called again, it continues from its last checkpoint. When a job
is preempted, requeued or at its time limit, all its processes are stopped and its task is called again.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable, Dict, Iterator, List, Mapping, Optional, Tuple

if TYPE_CHECKING:
    import submitit

Task = Callable[[], Any]
SECONDS_BETWEEN_QUERIES = 10
_RESOURCES = [
    *("timeout_min", "gpus_per_node", "cpus_per_task", "mem_gb", "partition", "account", "qos", "constraint"),
    *("nodelist", "exclude", "exclusive", "gres", "array_parallelism", "signal_delay_s", "max_num_timeout"),
    *("setup", "srun_args", "comment", "additional_parameters"),
]


def refuse_without_cluster() -> None:
    """Raises ValueError unless Slurm is installed and answers."""
    if shutil.which("sbatch") is None:
        raise ValueError("--launcher slurm: sbatch is not on the PATH; use --launcher local")
    _states("")


def refuse_resources(resources: Mapping[str, Any]) -> None:
    """Raises ValueError unless `submit` knows these parameters and timeout_min is among them."""
    unknown = sorted(set(resources) - set(_RESOURCES))
    if unknown:
        raise ValueError(f"slurm: {', '.join(unknown)} is unknown; accepted are {', '.join(_RESOURCES)}")
    if "timeout_min" not in resources:
        raise ValueError("slurm: timeout_min is missing: the minutes after which Slurm stops and requeues a job")


def submit(tasks: Mapping[str, Task], folder: Path, name: str, resources: Mapping[str, Any]) -> Dict[str, submitit.Job]:
    """Submits the tasks as one job array called `name`. Returns their jobs by the tasks' names.

    Tasks that an earlier call with this name and folder left in the queue are not submitted again. folder: submitit's
    pickles and logs, on a disk that all nodes share. resources: submitit's parameters for Slurm, for example
    ``{"timeout_min": 600, "gpus_per_node": 8}``; a job is requeued after at most max_num_timeout (3) time limits.
    Raises ValueError for unknown parameters, and if Slurm refuses (see `refuse_without_cluster`).
    """
    import submitit
    from submitit.core.utils import FailedJobError

    refuse_resources(resources)
    queued: List[Any] = [submitit.SlurmJob(folder, job_id) for job_id in _states(name)]
    jobs = {job.submission().function.name: job for job in queued if job.paths.submitted_pickle.exists()}
    new = [_Resumable(task_name, task) for task_name, task in tasks.items() if task_name not in jobs]
    if new:
        parameters = {"max_num_timeout": 3, "stderr_to_stdout": True, **resources}
        parameters["additional_parameters"] = {"requeue": True, **resources.get("additional_parameters", {})}
        executor = submitit.AutoExecutor(folder, "slurm", slurm_max_num_timeout=parameters.pop("max_num_timeout"))
        executor.update_parameters(name=name, **{f"slurm_{key}": value for key, value in parameters.items()})
        try:
            jobs.update(zip([task.name for task in new], executor.submit_array(new)))
        except FailedJobError as error:
            raise ValueError(f"slurm: sbatch refuses the jobs: {error}") from None
    return {task_name: jobs[task_name] for task_name in tasks}


def _states(name: str) -> Dict[str, str]:
    """Slurm's states of the user's jobs called `name` that have not ended, by their ids."""
    command = ["squeue", "--me", "--name", name, "--array", "--noheader", "--format=%i %T"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        why = done.stderr.strip().splitlines()[-1:]
        raise ValueError(f"--launcher slurm: squeue fails: {' '.join(why)}; use --launcher local")
    return dict(line.split() for line in done.stdout.splitlines())


class _Resumable:
    """A task as the job's process calls it; its method `checkpoint` tells submitit that it can be requeued."""

    def __init__(self, name: str, task: Task):
        self.name, self.task = name, task

    def __call__(self) -> Any:
        """The task's result.

        Slurm signals all processes of a job, so the task fails together with its training. That failure must not end
        the job, which Slurm is about to requeue or to kill.
        """
        ending = threading.Event()
        signal.signal(signal.SIGTERM, lambda *_: ending.set())
        try:
            return self.task()
        except Exception:
            while ending.wait(1):  # submitit requeues the job in here if its own signal comes
                signal.pause()
            raise

    def checkpoint(self) -> submitit.helpers.DelayedSubmission:
        """What submitit requeues on its signal, USR2: the same task, after the processes that it started have ended."""
        from submitit.helpers import DelayedSubmission

        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        os.killpg(os.getpgrp(), signal.SIGTERM)
        with contextlib.suppress(ChildProcessError):
            while True:
                os.wait()
        return DelayedSubmission(self)


def ended(jobs: Mapping[str, submitit.Job], name: str) -> Iterator[Tuple[str, Optional[str]]]:
    """Waits for the jobs that `submit` returned. Yields each task's name as it ends, and why it failed, or None.

    Prints every change of a job's state. When interrupted, the jobs go on, and it prints how to come back.
    """
    waiting = dict(jobs)
    shown: Dict[str, str] = {}
    try:
        while waiting:
            for task_name, state in _states_of(waiting, name).items():
                if state != shown.get(task_name):
                    print(f"{task_name}: {state.lower()} (job {waiting[task_name].job_id})", flush=True)
                    shown[task_name] = state
                elif state == "ENDED":  # one query later, when a network disk shows what the job has written
                    yield task_name, _failure(waiting.pop(task_name))
            if waiting:
                time.sleep(SECONDS_BETWEEN_QUERIES)
    except KeyboardInterrupt:
        arrays = " ".join(sorted({job.job_id.split("_")[0] for job in waiting.values()}))
        print(f"the jobs continue: the same command waits for them again, scancel {arrays} ends them", file=sys.stderr)
        raise


def _states_of(jobs: Mapping[str, submitit.Job], name: str) -> Dict[str, str]:
    """The jobs' states by the tasks' names; none if Slurm is too busy to answer."""
    try:
        states = _states(name)
    except ValueError:
        return {}
    return {task_name: states.get(job.job_id, "ENDED") for task_name, job in jobs.items()}


def _failure(job: submitit.Job) -> Optional[str]:
    if not job.paths.result_pickle.exists():
        return f"it ended without a result, perhaps by scancel or for lack of memory; its log is {job.paths.stdout}"
    error = job.exception()
    return None if error is None else str(error)
