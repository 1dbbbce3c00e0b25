"""Presets x rows = runs: trained, evaluated and gathered into tables.

    python -m wavepos_fairseq.experiments reproduce table1 --preset wikitext2-cpu --data DIR
    python -m wavepos_fairseq.experiments sweep --preset wikitext2-cpu --wavelet ricker db4 --shifts 0..3 0..7
    python -m wavepos_fairseq.experiments train wikitext103-512 ricker --gpus 4 --dry-run

A preset (configs/presets) says what is trained on what, and how long; a row (configs/tables, or a combination of a
sweep) is one line of options: the position representation. Their run is a folder, RUNS/PRESET/ROW, with checkpoints,
logs and, once it is complete, result.json. A run that was interrupted goes on from its last checkpoint; one with a
result is done.
"""

import argparse
import collections
import contextlib
import hashlib
import itertools
import json
import logging
import math
import os
import platform
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Callable, Deque, Dict, List, Optional, Tuple, Union

import torch
import yaml

from . import tables
from .data import WIKITEXT, check_counts, count, prepare
from .evaluation import parse_count, write_json
from .positions import build_position

ROOT = Path(__file__).resolve().parent.parent
CONFIGS = ROOT / "configs"
PAPER = ROOT / "results" / "paper"
_SECONDS_BETWEEN_LINES = 10


@dataclass(frozen=True)
class Preset:
    """configs/presets/NAME.yaml.

    train holds fairseq-train's options without their dashes (``true`` for a switch); tokens_per_update counts all
    devices, tokens_per_device is what one of them takes at a time (fairseq's --max-tokens) at the most.
    """

    name: str
    corpus: str
    l_train: int
    lengths: List[int]
    gpus: int
    tokens_per_update: int
    tokens_per_device: int
    checkpoint: str
    train: Dict[str, Any]
    evaluate: Dict[str, Any]


@dataclass(frozen=True)
class Row:
    """A row of configs/tables/NAME.yaml: its labels, in the paper's columns, and the options that make it.

    Rows of one name and the same options are one run, in whatever tables they stand.
    """

    name: str
    labels: Dict[str, str]
    options: Tuple[str, ...]


def load_preset(name: str) -> Preset:
    """The preset `name`; ValueError where there is none, or where it is not evaluated at L_train."""
    path = CONFIGS / "presets" / f"{name}.yaml"
    if not path.is_file():
        raise ValueError(f"preset {name!r} is unknown; accepted are {', '.join(_names('presets'))}")
    preset = Preset(name=name, **yaml.safe_load(path.read_text(encoding="utf-8")))
    if preset.l_train not in preset.lengths:
        raise ValueError(f"preset {name}: lengths {preset.lengths} must contain l_train {preset.l_train}")
    return preset


def load_table(name: str) -> Tuple[str, List[Row]]:
    """Title and rows of the table `name`; ValueError where there is none."""
    path = CONFIGS / "tables" / f"{name}.yaml"
    if not path.is_file():
        raise ValueError(f"table {name!r} is unknown; accepted are {', '.join(_names('tables'))}")
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    rows = [
        Row(row, {label: text for label, text in entry.items() if label != "options"}, _words(entry["options"]))
        for row, entry in content["rows"].items()
    ]
    return content["title"], rows


def _words(options: str) -> Tuple[str, ...]:
    return tuple(shlex.split(options))


_AXES = {
    "wavelet": "--wavelet",
    "scales": "--wavelet-scales",
    "shifts": "--wavelet-shifts",
    "direction": "--wavelet-shift-direction",
}
_EXAMPLES = {"wavelet": "ricker db4", "scales": "2^0..2^7 1,2,4,8", "shifts": "0..7", "direction": "past future"}


def sweep_rows(grid: Dict[str, List[str]], head_dim: int) -> List[Row]:
    """A row for each combination of the grid's values, by the keys of _AXES; other axes stay at their default.

    Combinations that come to the same wavelets are one row, and what a table has as a row is that row's run. Raises
    ValueError with all combinations that do not fit heads of this width.
    """
    combinations = list(itertools.product(*grid.values()))
    known = _rows_by_wavelets(head_dim)
    rows: Dict[Tuple, Row] = {}
    faulty = []
    for values in combinations:
        labels = dict(zip(grid, values))
        options = tuple(word for axis, value in labels.items() for word in (_AXES[axis], value))
        row = Row(_folder_of(labels), labels, ("--position-encoding", "wavelet", *options))
        try:
            wavelets = _wavelets(row, head_dim)
        except ValueError as error:
            faulty.append(f"{' '.join(values)}: {error}")
        else:
            rows.setdefault(wavelets, replace(known.get(wavelets, row), labels=labels))
    if faulty:
        raise ValueError("\n  ".join([f"{len(faulty)} of {len(combinations)} combinations do not fit", *faulty]))
    return list(rows.values())


def _rows_by_wavelets(head_dim: int) -> Dict[Tuple, Row]:
    rows = {}
    for row in [row for table in _names("tables") for row in load_table(table)[1]]:
        if row.options[:2] == ("--position-encoding", "wavelet"):
            with contextlib.suppress(ValueError):  # made for wider heads
                rows[_wavelets(row, head_dim)] = row
    return rows


def _wavelets(row: Row, head_dim: int) -> Tuple:
    """Mother wavelet, scales, shifts and direction of a row of wavelets; ValueError where they do not fit the head."""
    given = zip(row.options[2::2], row.options[3::2])
    options = {option[2:].replace("-", "_"): text for option, text in given}
    return build_position("wavelet", head_dim=head_dim, num_heads=1, **options).head


def _folder_of(labels: Dict[str, str]) -> str:
    """A run's name from the axes of its sweep: ``ricker_scales-2e0..2e7``."""
    parts = [value if axis == "wavelet" else f"{axis}-{value}" for axis, value in labels.items()]
    name = "_".join(parts).translate({ord("^"): "e", ord("*"): "x", ord(" "): None})
    return name if len(name) <= 120 else f"{name[:100]}-{hashlib.sha256(name.encode()).hexdigest()[:16]}"


def find_row(name: str) -> Row:
    """The row `name` of any table; ValueError where there is none."""
    rows = {row.name: row for table in _names("tables") for row in load_table(table)[1]}
    if name not in rows:
        raise ValueError(f"row {name!r} is unknown; accepted are {', '.join(rows)}, or options beginning with --")
    return rows[name]


def _names(folder: str) -> List[str]:
    return sorted(path.stem for path in (CONFIGS / folder).glob("*.yaml"))


def batch_options(preset: Preset, gpus: int) -> List[str]:
    """--max-tokens and --update-freq that make tokens_per_update on so many GPUs (0 is the CPU).

    Raises ValueError for numbers of GPUs over which the update's sequences cannot be divided evenly.
    """
    devices = max(1, gpus)
    for update_freq in range(1, preset.tokens_per_update // preset.l_train + 1):
        max_tokens, rest = divmod(preset.tokens_per_update, devices * update_freq)
        if rest == 0 and max_tokens <= preset.tokens_per_device and max_tokens % preset.l_train == 0:
            world = ["--distributed-world-size", str(gpus)] if gpus else ["--cpu"]
            return [*world, "--max-tokens", str(max_tokens), "--update-freq", str(update_freq)]
    sequences = preset.tokens_per_update // preset.l_train
    raise ValueError(
        f"--gpus {gpus}: an update of {preset.name} has {sequences} sequences of {preset.l_train} tokens, which must "
        f"divide evenly; accepted are the divisors of {sequences}"
    )


@dataclass(frozen=True)
class Run:
    """One row trained and evaluated under a preset, in a folder of its own; commands run in the project's root."""

    preset: Preset
    row: Row
    data: Path
    folder: Path
    gpus: int
    seed: int

    @property
    def checkpoint(self) -> Path:
        return self.folder / self.preset.checkpoint

    def training_command(self) -> List[str]:
        """fairseq-train with the preset's options, then the row's."""
        return [
            *("fairseq-train", _short(self.data), "--user-dir", "wavepos_fairseq", "--save-dir", _short(self.folder)),
            *("--task", "language_modeling", "--tokens-per-sample", str(self.preset.l_train)),
            *batch_options(self.preset, self.gpus),
            *_as_options(self.preset.train),
            *("--seed", str(self.seed), *self.row.options),
        ]

    def evaluation_command(self) -> List[str]:
        """The evaluation of the trained checkpoint at the preset's lengths, in both inferences."""
        lengths = ",".join(map(str, self.preset.lengths))
        return [
            *("python", "-m", "wavepos_fairseq.evaluation", _short(self.data), "--path", _short(self.checkpoint)),
            *("--lengths", lengths, "--output", _short(self.folder / "evaluation.json")),
            *_as_options(self.preset.evaluate),
            *([] if self.gpus else ["--cpu"]),
        ]

    def result(self) -> Optional[Dict[str, Any]]:
        """What result.json holds, if it was made by these commands; None until the run is complete.

        Raises ValueError where the folder holds a training by another command.
        """
        started = _read_json(self.folder / "training.json")
        if started and started["command"] != shlex.join(self.training_command()):
            raise ValueError(
                f"{_short(self.folder)} was trained with other options (its training.json says which); remove it, or "
                "give another --runs"
            )
        result = _read_json(self.folder / "result.json")
        return result if result and result["evaluation_command"] == shlex.join(self.evaluation_command()) else None

    def is_trained(self) -> bool:
        """Whether the last checkpoint has made the last update; fairseq, started again, would make one more."""
        try:
            state = torch.load(str(self.folder / "checkpoint_last.pt"), map_location="cpu")
        except Exception:  # none yet, or one that fairseq itself will refuse
            return False
        command = self.training_command()
        max_update = [value for name, value in zip(command, command[1:]) if name == "--max-update"][-1]
        return state["optimizer_history"][-1]["num_updates"] >= int(max_update)

    def train(self, output=None, threads: Optional[int] = None) -> "subprocess.Popen[str]":
        """Starts fairseq-train, which goes on from its last checkpoint where there is one."""
        command = self.training_command()
        write_json(self.folder / "training.json", {"command": shlex.join(command)})
        return _start(["-m", "fairseq_cli.train", *command[1:]], output, threads)

    def evaluate(self, output=None, threads: Optional[int] = None) -> "subprocess.Popen[str]":
        """Starts the evaluation; ValueError where there is no checkpoint."""
        if not self.checkpoint.is_file():
            raise ValueError(f"{_short(self.checkpoint)} does not exist: train it first with scripts/train.sh")
        return _start(self.evaluation_command()[1:], output, threads)


def _as_options(settings: Dict[str, Any]) -> List[str]:
    options: List[str] = []
    for name, value in settings.items():
        options += [f"--{name}"] if value is True else [f"--{name}", str(value)]
    return options


def _short(path: Path) -> str:
    """`path` seen from the project's root where it lies below: what is recorded names no folder of this machine."""
    path = path.resolve()
    return str(path.relative_to(ROOT)) if ROOT in path.parents else str(path)


def _read_json(path: Path) -> Optional[Dict[str, Any]]:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def _start(arguments: List[str], output, threads: Optional[int]) -> "subprocess.Popen[str]":
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    if threads:
        environment["OMP_NUM_THREADS"] = str(threads)
    return subprocess.Popen(
        [sys.executable, *arguments],
        stdout=output,
        stderr=output and subprocess.STDOUT,
        text=True,
        cwd=ROOT,
        errors="replace",
        env=environment,
    )


class RunFailed(RuntimeError):
    """A command of a run ended with a status other than 0; the message holds its last lines."""


def execute(run: Run, threads: int, progress: Callable[[int, float], None]) -> Dict[str, Any]:
    """Trains and evaluates what is not done yet and gives the result, which it writes to result.json.

    progress(update, loss): called with what fairseq logs. Raises RunFailed.
    """

    def on_line(line: str) -> None:
        start = line.find('{"epoch"')  # of --log-format json
        if start >= 0:
            logged = json.loads(line[start:])
            if "num_updates" in logged:
                progress(int(logged["num_updates"]), float(logged["loss"]))

    log = run.folder / "train.log"
    if not run.is_trained():
        _follow(run.train(subprocess.PIPE, threads), log, on_line)
    _follow(run.evaluate(subprocess.PIPE, threads), run.folder / "evaluation.log", lambda line: None)
    evaluation = _read_json(run.folder / "evaluation.json")
    if not all(math.isfinite(cell["perplexity"]) for cell in evaluation["cells"]):
        raise RunFailed("a perplexity that is not finite")
    walls = re.findall(r'"wall": "([0-9.]+)"', log.read_text(encoding="utf-8")) if log.is_file() else []
    result = {
        "row": run.row.name,
        "seed": run.seed,
        "commit": _commit(),
        "training_command": shlex.join(run.training_command()),
        "evaluation_command": shlex.join(run.evaluation_command()),
        "training_seconds": float(walls[-1]) if walls else None,  # fairseq's, over all attempts; None after train.sh
        **evaluation,
    }
    write_json(run.folder / "result.json", result)
    return result


def _follow(process: "subprocess.Popen[str]", log: Path, on_line: Callable[[str], None]) -> None:
    """Copies what a process prints to the end of `log`, and to on_line, until it ends.

    Raises RunFailed where it failed, KeyboardInterrupt where Ctrl-C ended it.
    """
    last: Deque[str] = collections.deque(maxlen=10)
    with process, log.open("a", encoding="utf-8") as out:
        for line in process.stdout:
            out.write(line)
            out.flush()
            last.append(line)
            on_line(line)
    if process.returncode == -signal.SIGINT:
        raise KeyboardInterrupt
    if process.returncode:
        raise RunFailed(f"status {process.returncode}; the last lines of {_short(log)}:\n{''.join(last)}")


def _commit() -> str:
    git = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    return subprocess.run(git, capture_output=True, text=True).stdout.strip() or "not a git checkout"


class Progress:
    """A line every few seconds: which row of how many, how far it is, its loss, and the time left for all rows."""

    def __init__(self, num_rows: int, max_update: int):
        self.num_rows, self.max_update = num_rows, max_update
        self.started = time.monotonic()
        self.shown = 0.0
        self.at_start: Dict[str, int] = {}
        self.updates: Dict[str, int] = {}
        self.lock = threading.Lock()

    def update(self, row: str, update: int, loss: Optional[float] = None) -> None:
        """Row `row` has made so many updates, at a loss in bits; without a loss it had made them before."""
        with self.lock:
            self.at_start.setdefault(row, update)
            self.updates[row] = update
            now = time.monotonic()
            made = sum(self.updates.values()) - sum(self.at_start.values())
            if loss is None or not made or now - self.shown < _SECONDS_BETWEEN_LINES:
                return
            self.shown = now
            left = (self.num_rows * self.max_update - sum(self.updates.values())) * (now - self.started) / made
            print(
                f"{row:<14} update {update:>6} of {self.max_update}  loss {loss:6.3f} bits  "
                f"about {left / 60:.0f} min left for all rows",
                flush=True,
            )


def reproduce(table: str, title: str, runs: List[Run], refused: Dict[str, str], folder: Path, jobs: int) -> int:
    """Makes every run that is not done yet, `jobs` at a time, then the table in `folder`.

    refused: why rows are not run, by their names (see `refusals`). Returns the number of rows without numbers.
    """
    preset = runs[0].preset
    outcomes: Dict[str, Union[Dict[str, Any], str]] = {
        run.row.name: "does not fit" if run.row.name in refused else run.result() or "failed" for run in runs
    }
    progress = Progress(len(runs) - len(refused), preset.train["max-update"])
    threads = max(1, (os.cpu_count() or 1) // jobs)

    def one(number: int, run: Run) -> None:
        name = run.row.name
        label = f"[{number}/{len(runs)}] {name}"
        if name in refused:
            print(f"{label}: does not fit, {refused[name]}", file=sys.stderr, flush=True)
            return
        if outcomes[name] != "failed":
            progress.update(name, progress.max_update)
            print(f"{label}: is done", flush=True)
            return
        print(f"{label}: training {' '.join(run.row.labels.values())}", flush=True)
        try:
            outcomes[name] = execute(run, threads, lambda update, loss: progress.update(name, update, loss))
        except (RunFailed, ValueError) as error:
            print(f"{label}: FAILED with {error}", file=sys.stderr, flush=True)
            return
        print(f"{label}: {_at_l_train(outcomes[name]):.2f} perplexity at L_train {preset.l_train}", flush=True)

    with ThreadPoolExecutor(jobs) as pool:
        futures = [pool.submit(one, number, run) for number, run in enumerate(runs, 1)]
        try:
            for future in futures:
                future.result()
        finally:
            for future in futures:
                future.cancel()
    paper = PAPER / f"{table}.csv"
    text = tables.write_tables(
        folder,
        table,
        f"{title}, preset {preset.name}",
        preset.corpus,
        [
            tables.RowResult(run.row.labels, outcome if isinstance(outcome, str) else outcome["cells"])
            for run, outcome in zip(runs, outcomes.values())
        ],
        preset.l_train,
        preset.lengths,
        paper if paper.is_file() else None,
    )
    write_json(folder / f"{table}.manifest.json", manifest(preset, {**outcomes, **refused}))
    print(f"{text}\nwritten: {_short(folder)}/{table}.csv, {table}.tidy.csv, {table}.md, {table}.manifest.json")
    return sum(isinstance(outcome, str) for outcome in outcomes.values())


def _at_l_train(result: Dict[str, Any]) -> float:
    return next(cell["perplexity"] for cell in result["cells"] if cell["sequence_length"] == cell["l_train"])


def manifest(preset: Preset, outcomes: Dict[str, Union[Dict[str, Any], str]]) -> Dict[str, Any]:
    """What a table was made from: the machine and, for each row, commit, versions, commands, seconds, or why not."""
    kept = ("commit", "seed", "training_command", "evaluation_command", "parameters", "device", "versions")
    return {
        "preset": preset.name,
        "machine": {"system": platform.system(), "machine": platform.machine(), "cpus": os.cpu_count()},
        "rows": {
            name: result
            if isinstance(result, str)
            else {
                **{key: result[key] for key in kept},
                "training_seconds": result["training_seconds"],
                "evaluation_seconds": sum(cell["seconds"] for cell in result["cells"]),
            }
            for name, result in outcomes.items()
        },
    }


def fairseq_options(run: Run) -> argparse.Namespace:
    """What fairseq-train understands of the run's options, its architecture's defaults among them.

    Raises ValueError where the representation refuses them; fairseq itself prints its usage and exits.
    """
    from fairseq import options

    from . import models  # noqa: F401  (registers the architectures)

    logging.getLogger("fairseq").setLevel(logging.WARNING)
    arguments = run.training_command()[1:]
    arguments[arguments.index("--user-dir") + 1] = str(ROOT / "wavepos_fairseq")  # from wherever this process stands
    try:
        return options.parse_args_and_arch(options.get_training_parser(), arguments)
    except SystemExit as stop:
        if isinstance(stop.code, str):
            raise ValueError(stop.code.replace("error: ", "", 1)) from None
        raise


def refusals(runs: List[Run]) -> Dict[str, str]:
    """The rows, by name, whose options the model does not take under this preset, and why."""
    refused = {}
    for run in runs:
        try:
            fairseq_options(run)
        except ValueError as error:
            refused[run.row.name] = str(error)
    return refused


def head_dim_of(preset: Preset) -> int:
    """The width of the heads of the preset's architecture."""
    nope = Run(preset, Row("", {}, ("--position-encoding", "nope")), ROOT, ROOT, preset.gpus, seed=1)
    options = fairseq_options(nope)
    return options.decoder_embed_dim // options.decoder_attention_heads


def with_head_dim(rows: List[Row], head_dim: int) -> List[Row]:
    """The rows with their labels ``d/N`` made numbers, d being the width of a head."""

    def number(label: str) -> str:
        divisor = label[2:] if label.startswith("d/") else ""
        return str(head_dim // int(divisor)) if divisor and head_dim % int(divisor) == 0 else label

    return [replace(row, labels={name: number(label) for name, label in row.labels.items()}) for row in rows]


def _data_bin(data: Optional[Path], preset: Preset) -> Path:
    """A data-bin folder as it is; a folder of text, or none, is prepared first (see `data`)."""
    if data is not None and not data.exists():
        raise ValueError(f"--data {data}: there is no such folder")
    if data is not None and (data / "dict.txt").is_file():
        return data
    return prepare(preset.corpus, data, ROOT / "data")


def _refuse_other_corpus(data: Path, preset: Preset) -> None:
    """A table names its corpus: ValueError where the data-bin was made from another."""
    provenance = _read_json(data / "provenance.json")
    if provenance and provenance["name"] != preset.corpus:
        raise ValueError(f"--data {data} holds {provenance['name']}, but preset {preset.name} is for {preset.corpus}")
    if not provenance and preset.corpus in WIKITEXT:
        check_counts(preset.corpus, count(data))


def _count(text: str) -> int:
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number >= 0")
    return int(text)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m wavepos_fairseq.experiments", description=__doc__.split("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--data", type=Path, help="data-bin folder, or the corpus's text (default: data/CORPUS)")
    common.add_argument("--runs", type=Path, default=ROOT / "runs", help="where runs live (default: runs)")
    common.add_argument("--gpus", type=_count, help="GPUs to train on, 0 for the CPU (default: as the preset says)")
    common.add_argument("--seed", type=_count, default=1, help="seed of initialisation, order and dropout (default: 1)")
    many = argparse.ArgumentParser(add_help=False)
    many.add_argument("--preset", required=True, help=", ".join(_names("presets")))
    many.add_argument("--results", type=Path, default=ROOT / "results", help="where tables go (default: results)")
    many.add_argument("--jobs", type=parse_count, default=1, help="rows side by side, threads divided (default: 1)")
    table = commands.add_parser("reproduce", parents=[common, many], help="train and evaluate the rows of a table")
    table.add_argument("table", help=", ".join(_names("tables")))
    sweep = commands.add_parser("sweep", parents=[common, many], help="train and evaluate a grid of wavelets")
    sweep.add_argument("--name", dest="table", default="sweep", help="the table's name (default: sweep)")
    for axis, option in _AXES.items():
        text = f"what {option} takes, once or more ({_EXAMPLES[axis]})"
        sweep.add_argument(f"--{axis}", nargs="+", metavar="X", required=axis == "wavelet", help=text)
    for name in ("train", "evaluate"):
        one = commands.add_parser(name, parents=[common], help=f"{name} one row, or any options", allow_abbrev=False)
        one.add_argument("preset", help=", ".join(_names("presets")))
        one.add_argument("--name", help="the run's name (default: the row's, or made from the options)")
        one.add_argument("--dry-run", action="store_true", help="print the command and stop")
    return parser


def main(arguments=None) -> int:
    parser = _parser()
    args, options = parser.parse_known_args(arguments)
    if args.command in ("reproduce", "sweep") and options:
        parser.error(f"unrecognized arguments: {' '.join(options)}")
    try:
        preset = load_preset(args.preset)
        gpus = preset.gpus if args.gpus is None else args.gpus
        batch_options(preset, gpus)
        name = preset.name if args.seed == 1 else f"{preset.name}-seed{args.seed}"
        if args.command in ("reproduce", "sweep"):
            if args.command == "sweep":
                _refuse_table_name(args.table)
                grid = {axis: getattr(args, axis) for axis in _AXES if getattr(args, axis)}
                title, rows = f"Sweep {args.table}", sweep_rows(grid, head_dim_of(preset))
            else:
                title, rows = load_table(args.table)
                rows = with_head_dim(rows, head_dim_of(preset))
            runs = [Run(preset, row, ROOT, args.runs / name / row.name, gpus, args.seed) for row in rows]
            refused = refusals(runs)
            data = _data_bin(args.data, preset)
            _refuse_other_corpus(data, preset)
            runs = [replace(run, data=data) for run in runs]
            failed = reproduce(args.table, title, runs, refused, args.results / name, args.jobs)
            if failed:
                print(f"error: {failed} of {len(rows)} rows have no numbers", file=sys.stderr)
            return 1 if failed else 0
        row = _chosen_row(args.name, options)
        data = args.data or ROOT / "data" / preset.corpus
        run = Run(preset, row, data, args.runs / name / row.name, gpus, args.seed)
        if args.command == "train":
            fairseq_options(run)
        if not args.dry_run:
            run = replace(run, data=_data_bin(args.data, preset))
        print(shlex.join(run.training_command() if args.command == "train" else run.evaluation_command()), flush=True)
        if args.dry_run:
            return 0
        if args.command == "evaluate":
            return run.evaluate().wait()
        run.result()
        if run.is_trained():
            print(f"{_short(run.checkpoint)} is trained to the end")
            return 0
        return run.train().wait()
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted: the same command goes on where this one stopped", file=sys.stderr)
        return 130


def _refuse_table_name(name: str) -> None:
    """A sweep's table has a name of its own, which makes its files'."""
    if not re.fullmatch(r"\w[\w.-]*", name) or name in _names("tables"):
        raise ValueError(
            f"--name {name!r}: accepted are letters, digits and . _ -, scales-1 for example, but not the tables "
            f"{', '.join(_names('tables'))}"
        )


def _chosen_row(run_name: Optional[str], words: List[str]) -> Row:
    """The row that the words begin with, and the options after it; ValueError where there is neither."""
    if not words:
        raise ValueError("neither a row nor options are given: say which position representation to train")
    row, options = (Row("", {}, ()), words) if words[0].startswith("-") else (find_row(words[0]), words[1:])
    name = run_name or "_".join(word.lstrip("-").replace("/", "-") for word in words)
    return Row(name, row.labels, (*row.options, *options))


if __name__ == "__main__":
    sys.exit(main())
