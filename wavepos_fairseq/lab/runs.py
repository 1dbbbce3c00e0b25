"""Preset x row x seed = run: a model trained and evaluated in its own folder.

The run's folder holds checkpoints, logs and, once it is complete, result.json. A run that was interrupted at any moment
continues from its last complete checkpoint.
"""

import argparse
import collections
import contextlib
import fcntl
import functools
import itertools
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Callable, Deque, Dict, Iterator, List, Mapping, Optional, Set, Tuple

from .. import DIGITS
from ..common import child
from ..common.errors import first_line, prefixing_errors
from ..common.files import PACKAGE, ROOT, read_json, shown_path, write_json, write_whole
from ..common.schema import COMMAND, COUNT, MAPPING, NUMBER, TEXT, WHOLE, Accepted, check, is_number, or_none
from ..evaluation.inferences import INFERENCES, PAPERS_INFERENCES
from ..plugin.options import as_arguments, options_of_model, parse_training, position_arguments
from .configs import Preset, Row

UNREADABLE = "checkpoint_last.unreadable"
_SECONDS_BETWEEN_LOOKS = 0.2
_MODULES = {  # of commands, by their first word
    "fairseq-train": ["fairseq_cli.train"],
    "torchrun": ["torch.distributed.run"],
    "accelerate": ["accelerate.commands.accelerate_cli"],
}

# The keys read from a run's files; others may be there. Null: not written by earlier versions, or unknown.
_TRAINING: Dict[str, Accepted] = {"command": COMMAND, "version": or_none(TEXT), "threads": or_none(COUNT)}
_RESULT: Dict[str, Accepted] = {
    "seed": WHOLE,
    "commit": TEXT,
    "training_command": COMMAND,
    "evaluation_command": COMMAND,
    "training_seconds": or_none(NUMBER),
    "threads": or_none(COUNT),
    "parameters": COUNT,
    "device": TEXT,
    "versions": MAPPING,
    "cells": ("a list of cells", lambda value: isinstance(value, list) and value != []),
}
_CELL: Dict[str, Accepted] = {
    "inference": (" or ".join(INFERENCES), lambda value: value in INFERENCES),
    "l_train": COUNT,
    "sequence_length": COUNT,
    "tokens": COUNT,
    "nll": NUMBER,
    "perplexity": NUMBER,
    "perplexity_low": or_none(NUMBER),
    "perplexity_high": or_none(NUMBER),
    "stretch_nll": or_none(("a list of numbers", lambda value: isinstance(value, list) and all(map(is_number, value)))),
    "words": or_none(COUNT),
    "stride": or_none(COUNT),
    "seconds": NUMBER,
}


def batches(preset: Preset, gpus: int, processes: int) -> Tuple[int, int]:
    """How many sequences a device takes at a time, and how often for an update.

    These GPUs, or CPU processes (gpus = 0), take tokens_per_update together.

    Raises ValueError if the update's sequences do not divide evenly among them.
    """
    devices = gpus or processes
    if gpus and processes > 1:
        raise ValueError(f"--processes {processes} is for the CPU (--gpus 0); each of the {gpus} GPUs has a process")
    sequences = preset.tokens_per_update // preset.l_train
    each, rest = divmod(sequences, devices)
    if rest:
        accepted = [str(number) for number in range(1, min(sequences, 10_000) + 1) if sequences % number == 0]
        raise ValueError(
            f"--{'gpus' if gpus else 'processes'} {devices}: an update of {preset.name} has {sequences} sequences of "
            f"{preset.l_train} tokens, which must divide evenly; accepted are {', '.join(accepted)}"
        )
    most = min(each, preset.tokens_per_device // preset.l_train)
    at_a_time = next(number for number in range(most, 0, -1) if each % number == 0)
    return at_a_time, each // at_a_time


def batch_options(preset: Preset, gpus: int, processes: int) -> List[str]:
    """fairseq's options for `batches`."""
    at_a_time, update_freq = batches(preset, gpus, processes)
    world = ["--distributed-world-size", str(gpus)] if gpus else ["--cpu"]
    if gpus > 1:  # else rank 0 sends the checkpoint in a form that PyTorch 2.6 and later refuses
        world.append("--load-checkpoint-on-all-dp-ranks")
    return [*world, "--max-tokens", str(at_a_time * preset.l_train), "--update-freq", str(update_freq)]


def folder_end(seed: int) -> str:
    """How the name of a preset's folder of runs or results ends for a seed."""
    return "" if seed == 1 else f"-seed{seed}"


@dataclass(frozen=True)
class Run:
    """One row, trained and evaluated with a preset in a folder of its own. Commands run in the project's root."""

    preset: Preset
    row: Row
    data: Path
    folder: Path
    gpus: int
    seed: int
    processes: int = 1

    @property
    def label(self) -> str:
        """The row's name, with the seed unless it is 1."""
        return self.row.name if self.seed == 1 else f"{self.row.name} seed {self.seed}"

    @property
    def trained(self) -> "Run":
        """The run whose training is evaluated: this one, or that of the row that its row names."""
        name = self.row.trained
        if not name:
            return self
        return replace(
            self, row=replace(self.row, name=name, trained="", evaluate={}), folder=self.folder.with_name(name)
        )

    @property
    def checkpoint(self) -> Path:
        return self.trained.folder / self.preset.checkpoint

    def training_command(self) -> List[str]:
        """fairseq-train, or torchrun for several processes, with `training_arguments`."""
        parallel = [
            "torchrun",
            "--standalone",
            "--nproc_per_node",
            str(self.processes),
            "-m",
            "wavepos_fairseq.plugin.parallel",
        ]
        return [*(["fairseq-train"] if self.processes == 1 else parallel), *self.training_arguments()]

    def training_arguments(self) -> List[str]:
        """The preset's options, then the row's."""
        return [
            *(shown_path(self.data), "--user-dir", "wavepos_fairseq", "--save-dir", shown_path(self.folder)),
            *("--task", "language_modeling_wavepos", "--tokens-per-sample", str(self.preset.l_train)),
            *batch_options(self.preset, self.gpus, self.processes),
            *(self._filled(word) for word in as_arguments(self.trained_with())),
            *("--seed", str(self.seed)),
            *(position_arguments(self.row.position) if self.row.position else []),
            *self.row.arguments,
        ]

    def _filled(self, word: str) -> str:
        """{run}: the run's folder. {seed}: how the name of a preset's folder ends."""
        return word.replace("{run}", shown_path(self.folder)).replace("{seed}", folder_end(self.seed))

    def trained_with(self) -> Dict[str, Any]:
        """The preset's options of the training, or the row's in their place."""
        return {**self.preset.train, **self.row.train}

    def evaluated_with(self) -> Dict[str, Any]:
        """The preset's options of the evaluation, or the row's in their place."""
        return {**self.preset.evaluate, **self.row.evaluate}

    @property
    def subset(self) -> str:
        """The split that is evaluated."""
        return str(self.evaluated_with().get("subset", "valid"))

    def evaluated(self) -> List[str]:
        """What the evaluation reads: the data and the trained checkpoint."""
        return [shown_path(self.data), "--path", shown_path(self.checkpoint)]

    def evaluation_command(self) -> List[str]:
        return ["python", "-m", "wavepos_fairseq.evaluation", *self.evaluation_arguments()]

    def evaluation_arguments(self, with_options: bool = True) -> List[str]:
        """The evaluation at the preset's lengths, in both inferences unless the preset's options say otherwise."""
        lengths = ",".join(map(str, self.preset.lengths))
        return [
            *self.evaluated(),
            *("--lengths", lengths, "--output", shown_path(self.folder / "evaluation.json")),
            *(as_arguments(self.evaluated_with()) if with_options else []),
            *([] if self.gpus else ["--cpu"]),
        ]

    def started(self) -> Optional[Dict[str, Any]]:
        """The content of training.json, None before the training has started. Raises Broken if it is invalid."""
        remedy = f"what was trained here is unknown: remove {shown_path(self.folder)}, or give another --runs"
        return _read(self.folder / "training.json", _TRAINING, remedy)

    def refuse_other_options(self) -> None:
        """Raises ValueError if the folder was trained with other options or an incompatible version."""
        started = self.started()
        if started is None:
            return
        there = {**_by_option(started["command"]), "version": started.get("version") or DIGITS}
        here = {**_by_option(shlex.join(self.training_command())), "version": DIGITS}
        differences = [
            f"{option} {there.get(option, 'not given')} there, {here.get(option, 'not given')} here"
            for option in {**there, **here}
            if there.get(option) != here.get(option)
        ]
        if differences:
            raise ValueError(
                f"{shown_path(self.folder)} was trained with other options ({'; '.join(differences)}); remove it, or "
                "give another --runs"
            )

    def result(self) -> Optional[Dict[str, Any]]:
        """The content of result.json if these commands made it; None until the run is complete.

        An evaluation in more inferences will do; the result then has only the cells that are asked for.

        Raises Broken if a file of the run is invalid, and ValueError like `refuse_other_options`.
        """
        self.trained.refuse_other_options()
        result = read_result(self.folder)
        asked, wanted = _evaluated_by(shlex.join(self.evaluation_command()))
        made, evaluated = _evaluated_by(result["evaluation_command"]) if result else ({}, set())
        for option, inferences in _ONLY_OF.items():
            for options in (made, asked) if not wanted & inferences else ():
                options.pop(option, None)
        if result is None or made != asked or not wanted <= evaluated:
            return None
        expected = sorted(itertools.product(evaluated, self.preset.lengths))
        trained_by = (result["seed"], _by_option(result["training_command"]))
        problems = {
            "its cells are not the requested ones": expected
            != sorted((cell["inference"], cell["sequence_length"]) for cell in result["cells"]),
            f"its L_train is not {self.preset.l_train}": {cell["l_train"] for cell in result["cells"]}
            != {self.preset.l_train},
            "it is from another training": trained_by
            != (self.seed, _by_option(shlex.join(self.trained.training_command()))),
        }
        for problem in [problem for problem, is_there in problems.items() if is_there]:
            raise Broken(f"{shown_path(self.folder / 'result.json')}: {problem}; {_EVALUATED_AGAIN}")
        return {**result, "cells": [cell for cell in result["cells"] if cell["inference"] in wanted]}

    def resumed_at(self) -> int:
        """The number of updates in the checkpoint that training continues from; 0 without a checkpoint.

        If the last checkpoint cannot be read, because it is incomplete or a bit has changed, the newest readable one
        replaces it. The unreadable one is kept as checkpoint_last.unreadable until training has written another.
        """
        from ..plugin import unpickling as checkpoints  # here, because PyTorch takes a second to import

        last, unreadable = self.folder / "checkpoint_last.pt", self.folder / UNREADABLE
        with contextlib.suppress(FileNotFoundError):
            if last.stat().st_mtime > unreadable.stat().st_mtime:
                unreadable.unlink()
        older = sorted(self.folder.glob("checkpoint_*_*.pt"), key=lambda path: -int(path.stem.split("_")[-1]))
        for checkpoint in [last, *older] if last.is_file() else older:
            try:
                updates = checkpoints.load(checkpoint)["optimizer_history"][-1]["num_updates"]
                if type(updates) is not int or updates < 0:
                    raise ValueError(f"its number of updates is {updates!r}")
            except checkpoints.Refused as error:
                raise ValueError(f"{shown_path(checkpoint)} {error}") from error
            except (OSError, MemoryError):  # the machine's fault, not the file's
                raise
            except Exception as error:  # torch raises any kind on half a file
                print(f"{shown_path(checkpoint)} cannot be read ({first_line(error)})", file=sys.stderr, flush=True)
                if checkpoint == last:
                    last.replace(unreadable)
                continue
            if checkpoint != last:
                print(f"{shown_path(last)} is replaced by {checkpoint.name}", file=sys.stderr, flush=True)
                part = last.with_suffix(".part")
                shutil.copy2(checkpoint, part)  # with its time, which must stay older than the unreadable one's
                os.replace(part, last)
            return updates
        return 0

    def is_trained(self) -> bool:
        """Whether the last checkpoint has the last update. fairseq, started again, would make one more."""
        return self.resumed_at() >= self.max_update

    @property
    def max_update(self) -> int:
        """The last update. `fairseq_options` checks that fairseq, which takes seconds to import, reads the same."""
        parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
        parser.add_argument("--max-update")
        return int(parser.parse_known_args(self.training_arguments())[0].max_update)

    def refuse_options(self) -> None:
        """Raises ValueError if the framework, the representation or the model refuses the options."""
        fairseq_options(self)

    def model_options(self) -> Set[str]:
        """The model's options, which an evaluation may override."""
        return options_of_model(fairseq_options(self).arch)

    def refuse_no_checkpoint(self) -> None:
        """Raises ValueError if fairseq would not write the checkpoint that is evaluated."""
        options, name = fairseq_options(self), self.preset.checkpoint
        without = {"no_save": True, "no_last_checkpoints": name == "checkpoint_last.pt"}
        without["disable_validation"] = name == "checkpoint_best.pt"
        for switch, matters in without.items():
            if matters and getattr(options, switch):
                raise ValueError(f"--{switch.replace('_', '-')}: {self.preset.name} needs {name}, which is not written")

    def refuse_untrained(self) -> None:
        """Raises ValueError if there is no checkpoint."""
        if not self.checkpoint.exists():
            raise ValueError(f"{shown_path(self.checkpoint)} does not exist: train it first with scripts/train.sh")

    def refuse_data(self) -> None:
        """Raises ValueError if the data lack what the run reads at its start or hours later."""
        from ..models.transformer_lm_wavelet import refuse_cutoffs
        from ..plugin.streams import load_dictionary, load_stream

        dictionary = load_dictionary(str(self.data))
        load_stream(str(self.data), self.subset, dictionary)
        with prefixing_errors(shown_path(self.data / "dict.txt")):
            refuse_cutoffs(fairseq_options(self), len(dictionary))

    def head_dim(self) -> int:
        """The width of a head."""
        options = fairseq_options(self)
        return options.decoder_embed_dim // options.decoder_attention_heads

    def counted(self) -> List[str]:
        """What a dry run says beside the command."""
        return []

    def last_logged(self) -> Dict[str, Any]:
        """What fairseq logged last in training; empty if nothing yet."""
        log = self.folder / "train.log"
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.is_file() else []
        return next(filter(None, map(_logged, reversed(lines))), {})

    def state(self) -> str:
        """``done``, ``running``, ``failed``, ``stopped`` or ``not started``; raises as `result` does."""
        if self.result():
            return "done"
        if not (self.folder / ("lock" if self.row.trained else "training.json")).is_file():
            return "not started"
        with contextlib.suppress(FileNotFoundError), (self.folder / "lock").open() as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return "running"
        return "failed" if (self.folder / "failed").is_file() else "stopped"

    @contextlib.contextmanager
    def locked(self, patience: float = 1.0, stop: Optional[threading.Event] = None) -> Iterator[int]:
        """Locks the run for this process and for those that inherit the file descriptor.

        Raises InUse if another process holds it for `patience` seconds, and KeyboardInterrupt once `stop` is set. An
        OSError within, from a full disk for example, gets the folder's name if it has none.
        """
        stop, ends = stop or threading.Event(), time.monotonic() + patience
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            with (self.folder / "lock").open("a+", encoding="utf-8") as file:
                while True:
                    try:
                        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                        break
                    except BlockingIOError:
                        if time.monotonic() > ends:
                            file.seek(0)
                            raise InUse(f"{shown_path(self.folder)} is in use: {file.read()} started it") from None
                        if stop.wait(_SECONDS_BETWEEN_LOOKS):
                            raise KeyboardInterrupt from None
                file.truncate(0)
                file.write(f"process {os.getpid()} on {socket.gethostname()}")
                file.flush()
                for unfinished in itertools.chain(self.folder.glob("*.tmp"), self.folder.glob("*.part")):
                    unfinished.unlink()  # its writer had the lock, so it has ended
                yield file.fileno()
        except OSError as error:
            error.filename = error.filename or shown_path(self.folder)
            raise

    def refuse_unfinished_begin(self) -> None:
        """Raises ValueError if the training begins at the checkpoint of another run, which is not finished."""
        begin = _by_option(shlex.join(self.training_command())).get("--finetune-from-model", "")
        source = (ROOT / begin).parent  # where the command runs
        if begin and (source / "training.json").is_file() and not read_result(source):
            raise ValueError(f"--finetune-from-model {begin}: this run is not finished; train and evaluate it first")

    def train(self, lock: int, environment: Mapping[str, str] = {}, output=None) -> "subprocess.Popen[bytes]":
        """Starts fairseq-train, which continues from its last checkpoint if there is one.

        Raises ValueError like `refuse_unfinished_begin`.
        """
        self.refuse_unfinished_begin()
        command, threads = self.training_command(), self._threads(environment)
        started = {"command": shlex.join(command), "version": DIGITS, "threads": threads}
        write_json(self.folder / "training.json", started)
        words = command[2:] if command[0] == "python" else [*_MODULES[command[0]], *command[1:]]
        return _start(words, lock, threads, environment, output)

    def evaluate(self, lock: int, environment: Mapping[str, str] = {}, output=None) -> "subprocess.Popen[bytes]":
        """Starts the evaluation. Raises ValueError if there is no checkpoint."""
        self.refuse_untrained()
        return _start(self.evaluation_command()[2:], lock, self._threads(environment), environment, output)

    def record(self) -> Dict[str, Any]:
        """Writes result.json, once training and evaluation have ended, and returns its content."""
        evaluated = read_json(self.folder / "evaluation.json", "cells")
        logged = {} if self.row.trained else self.last_logged()
        wall = float(logged.get("wall") or 0)  # 0 where fairseq lost it
        started = self.trained.started()
        result = {
            "row": self.row.name,
            "seed": self.seed,
            "commit": _commit(),
            "training_command": started["command"] if started else shlex.join(self.trained.training_command()),
            "evaluation_command": shlex.join(self.evaluation_command()),
            "training_seconds": wall or None,  # over all attempts; None after train.sh, or of another row
            "threads": started and started.get("threads"),
            **(evaluated or {}),
        }
        write_json(self.folder / "result.json", result)
        return result

    def _threads(self, environment: Mapping[str, str]) -> int:
        """Threads of each process: as many as the run began with, because the last digits depend on them."""
        now = int(environment.get("OMP_NUM_THREADS") or threads_of(self.processes))
        began_with = (self.trained.started() or {}).get("threads") or now
        if began_with != now:
            said = f"{shown_path(self.folder)} began with {began_with} threads and keeps them, instead of {now}"
            print(said, file=sys.stderr, flush=True)
        return began_with


class Broken(ValueError):
    """A file of a run is invalid. The message names it and says what to remove."""


_ONLY_OF = {"--stride": {"sliding"}, "--sliding-tokens": {"sliding"}, "--sequences": {*PAPERS_INFERENCES}}
"""Options of the evaluation that other inferences than these do not read."""
_EVALUATED_AGAIN = "remove the file to evaluate the run again"


def read_result(folder: Path) -> Optional[Dict[str, Any]]:
    """The content of a run's result.json, None if it does not exist. Raises Broken if it is invalid."""
    return _read(folder / "result.json", _RESULT, _EVALUATED_AGAIN)


def shown_perplexity(cell: Dict[str, Any]) -> float:
    """A cell's perplexity as tables show it: per word where its tokens are characters."""
    return cell["word_perplexity" if "bits_per_character" in cell else "perplexity"]


def runs_of(runs: Path, name: str) -> List[Tuple[str, int, Path]]:
    """Row, seed and folder of each run in RUNS/NAME and, of other seeds, in RUNS/NAME-seedN."""
    of_seeds = re.compile(re.escape(name) + r"(-seed\d+)?")
    folders = [run for of in sorted(runs.glob("*")) if of_seeds.fullmatch(of.name) for run in sorted(of.glob("*"))]
    seeds = [re.search(r"-seed(\d+)$", run.parent.name) for run in folders]
    return [(run.name, int(seed[1]) if seed else 1, run) for run, seed in zip(folders, seeds) if run.is_dir()]


def finished_checkpoint(run: Path, checkpoint: str) -> Optional[Path]:
    """The checkpoint in a run's folder, None if the run is not finished, or broken, which is said."""
    try:
        return run / checkpoint if read_result(run) and (run / checkpoint).is_file() else None
    except Broken as error:
        print(f"{shown_path(run)} is broken, {error}", file=sys.stderr, flush=True)
        return None


def _read(path: Path, accepted: Dict[str, Accepted], remedy: str) -> Optional[Dict[str, Any]]:
    """The content of one of a run's files, None if it does not exist. Raises Broken if it is invalid."""
    try:
        content = read_json(path, *(key for key, (_, accepts) in accepted.items() if not accepts(None)))
        if content is not None:
            with prefixing_errors(shown_path(path)):
                check(content, accepted, others=True)
                for number, cell in enumerate(content.get("cells", []), 1):
                    with prefixing_errors(f"cell {number}"):
                        check(cell, _CELL, others=True)
    except ValueError as error:
        raise Broken(f"{error}; {remedy}") from error
    return content


def _by_option(command: str) -> Dict[str, str]:
    """The values of the options that a command's numbers depend on; ``data`` is what precedes the first option."""
    _, *words = shlex.split(command)
    given, option = {"data": "", "--processes": "1"}, "data"
    module = next((word for word in words if word.endswith(".parallel")), None)  # plugin.parallel since 0.3
    if module:
        start = words.index(module)
        given["--processes"], words = words[start - 2], words[start + 1 :]
    for word in words:
        if word.startswith("--"):
            option, is_given, value = word.partition("=")
            given[option] = value if is_given else "given"
        else:
            given[option] = word if given[option] in ("", "given") else f"{given[option]} {word}"
    if "--path" in given:
        given["--path"] = Path(given["--path"]).name
    unread = ["--save-dir", "--tensorboard-logdir", "--output", "--output_dir", "--model"]
    unread.append("--task")  # both tasks give the same numbers
    return {option: text for option, text in given.items() if option not in unread}


def _evaluated_by(command: str) -> Tuple[Dict[str, str], Set[str]]:
    """The options of an evaluation (see `_by_option`) without its inferences, and these."""
    options = _by_option(command)
    return options, {*options.pop("--inference", ",".join(PAPERS_INFERENCES)).split(",")}


def cpu_count() -> int:
    """The CPUs that this process may use, by its affinity and its control group's quota."""
    import joblib  # which takes NumPy along

    return joblib.cpu_count()


def threads_of(processes: int, cpus: Optional[int] = None) -> int:
    """Threads for each of these parallel processes: OMP_NUM_THREADS, or an even share of the CPUs.

    cpus: by default those that this process may use. Raises ValueError if OMP_NUM_THREADS is not a number.
    """
    given = os.environ.get("OMP_NUM_THREADS")
    if not given:
        return max(1, (cpus or cpu_count()) // processes)
    if not given.isdecimal() or int(given) == 0:
        raise ValueError(f"OMP_NUM_THREADS={given}: accepted is a whole number > 0")
    return int(given)


def _start(
    arguments: List[str], lock: int, threads: int, environment: Mapping[str, str], output
) -> "subprocess.Popen[bytes]":
    """Starts a module with its arguments as a process with this many threads. It ends with this process."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}
    inherited["PYTHONUNBUFFERED"] = "1"  # SLURM_* is left out: fairseq would take another number of GPUs from it
    if ROOT == PACKAGE.parent:  # a checkout; Python finds an installed package by itself
        inherited["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    inherited.pop("OMP_THREAD_LIMIT", None)
    exactly = {f"{library}_NUM_THREADS": str(threads) for library in ("OMP", "MKL")}
    exactly.update(OMP_DYNAMIC="FALSE", MKL_DYNAMIC="FALSE")  # not fewer on a machine with fewer cores
    return subprocess.Popen(
        [sys.executable, child.__file__, str(os.getpid()), *arguments],
        stdout=output,
        stderr=output and subprocess.STDOUT,
        cwd=ROOT,
        env={**inherited, **environment, **exactly},
        pass_fds=[lock],  # the run stays locked while this process lives
    )


class InUse(RuntimeError):
    """Another process holds the run."""


class RunFailed(RuntimeError):
    """A command of a run failed. The message has its last lines."""


def execute(
    run: Run,
    environment: Mapping[str, str] = {},
    progress: Callable[[int, float], None] = lambda update, loss: None,
    patience: float = 1.0,
    stop: Optional[threading.Event] = None,
) -> Dict[str, Any]:
    """Trains and evaluates what is not done yet. Returns the result, and writes it to result.json.

    environment: added to that of its processes. progress(update, loss): called with what fairseq logs. patience:
    seconds to wait for another process that has the run. stop: once another thread sets it, KeyboardInterrupt is
    raised. Raises InUse and RunFailed.
    """
    stop, failed = stop or threading.Event(), run.folder / "failed"
    with run.locked(patience, stop) as lock:
        result = run.result()
        if result is None:
            failed.unlink(missing_ok=True)
            try:
                trained = run.trained
                with trained.locked(patience, stop) if run.row.trained else contextlib.nullcontext(lock) as of_trained:
                    told = (lambda update, loss: None) if run.row.trained else progress  # the other row tells its own
                    _train(trained, of_trained, environment, told, stop)
                result = _evaluate(run, lock, environment, stop)
            except RunFailed as error:
                with contextlib.suppress(OSError):  # a full disk leaves no file, rather than an empty one
                    write_whole(failed, str(error))
                raise
        (run.folder / UNREADABLE).unlink(missing_ok=True)
        return result


def _train(run: Run, lock: int, environment, progress, stop) -> None:
    def on_line(line: str) -> None:
        logged = _logged(line)
        if logged:
            progress(int(logged["num_updates"]), float(logged["loss"]))

    if not run.is_trained():
        _follow(functools.partial(run.train, lock, environment), run.folder / "train.log", on_line, stop)
        if not run.is_trained():
            raise RunFailed(f"the training ended before update {run.max_update}, as its options may say")


def _evaluate(run: Run, lock: int, environment, stop) -> Dict[str, Any]:
    start = functools.partial(run.evaluate, lock, environment)
    _follow(start, run.folder / "evaluation.log", lambda line: None, stop)
    return run.record()


def _logged(line: str) -> Dict[str, Any]:
    """What fairseq logged of an update with --log-format json; empty if the line is anything else or incomplete."""
    start = line.find('{"epoch"')
    with contextlib.suppress(ValueError, TypeError, KeyError, OverflowError, RecursionError):
        logged = json.loads(line[start:]) if start >= 0 else {}
        float(logged["loss"])
        if int(logged["num_updates"]) >= 0 and is_number(float(logged["wall"])):
            return logged
    return {}


def _follow(
    start: Callable[..., "subprocess.Popen[bytes]"], log: Path, on_line: Callable[[str], None], stop: threading.Event
) -> None:
    """Starts a process that appends to `log`, and passes its lines on until it ends.

    Raises RunFailed if it fails, KeyboardInterrupt if Ctrl-C or `stop` ends it.
    """
    last: Deque[str] = collections.deque(maxlen=10)
    with log.open("ab") as output, log.open(encoding="utf-8", errors="replace") as lines:
        lines.seek(0, os.SEEK_END)
        process = start(output=output)
        ended, line = False, ""
        try:
            while not ended:
                ended = process.poll() is not None
                *whole, line = (line + lines.read()).split("\n")
                last += whole
                for text in whole:
                    on_line(text)
                if not ended and stop.wait(_SECONDS_BETWEEN_LOOKS):
                    raise KeyboardInterrupt
            last += [line] if line else []
        finally:
            if not ended:
                process.terminate()
                process.wait()
    if process.returncode == -signal.SIGINT or process.returncode and stop.wait(_SECONDS_BETWEEN_LOOKS):
        raise KeyboardInterrupt
    if process.returncode:
        lines_shown = "\n".join(last)
        full = _why_full(log.parent)
        raise RunFailed(f"{full}status {process.returncode}; the last lines of {shown_path(log)}:\n{lines_shown}")


def _why_full(folder: Path) -> str:
    """Why the folder cannot be written to, if so. The log cannot say it, because it is there, too."""
    try:
        with tempfile.TemporaryFile(dir=str(folder)) as file:
            file.write(bytes(2**20))
    except OSError as error:
        return f"{error.strerror} in {shown_path(folder)}; "
    return ""


def _commit() -> str:
    if not (PACKAGE.parent / ".git").exists():  # an installed package may lie in another project's checkout
        return "not a git checkout"
    git = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    return subprocess.run(git, capture_output=True, text=True).stdout.strip() or "not a git checkout"


def fairseq_options(run: Run) -> argparse.Namespace:
    """fairseq-train's reading of the run's options, with its architecture's defaults.

    Raises ValueError if fairseq, the representation or the model refuses them.
    """
    from ..positions import position_options

    unknown = [name for name in run.row.position if name != "name" and name not in position_options()]
    if unknown:
        raise ValueError(f"position: {unknown[0]} is unknown; accepted are name, {', '.join(position_options())}")
    arguments = run.training_arguments()
    user_dir = arguments.index("--user-dir")  # `parse_training` imports the plugin itself
    del arguments[user_dir : user_dir + 2]
    understood = parse_training(arguments)
    if understood.cpu and understood.fp16:
        raise ValueError("--fp16 needs a GPU, but this run is on the CPU (--gpus 0)")
    if understood.max_update < 1:
        raise ValueError(f"--max-update {understood.max_update}: accepted is a whole number > 0")
    ours: Dict[str, Tuple[Any, Any]] = {
        "--task": (understood.task, "language_modeling_wavepos"),
        "--save-dir": (understood.save_dir, shown_path(run.folder)),
        "--tokens-per-sample": (understood.tokens_per_sample, run.preset.l_train),
        "--seed": (understood.seed, run.seed),
        "--max-update": (understood.max_update, run.max_update),
    }
    refuse_changed(ours)
    return understood


def refuse_changed(options: Mapping[str, Tuple[Any, Any]]) -> None:
    """Raises ValueError if an option is given, the first of its pair, otherwise than the run has it, the second."""
    for option, (given, kept) in options.items():
        if given != kept:
            raise ValueError(f"{option} {given}: this run has {kept}; only its preset, --runs or --seed can change it")
