"""Presets x rows = runs: trained, evaluated and gathered into tables.

    python -m wavepos_fairseq.lab.experiments reproduce table1 --preset wikitext2-cpu --data DIR
    python -m wavepos_fairseq.lab.experiments sweep --preset wikitext2-cpu --wavelet ricker db4 --shifts 0..3 0..7
    python -m wavepos_fairseq.lab.experiments status table1 --preset wikitext2-cpu
    python -m wavepos_fairseq.lab.experiments status --preset wikitext2-cpu --wavelet ricker db4 --shifts 0..3 0..7
    python -m wavepos_fairseq.lab.experiments train wikitext103-512 ricker --gpus 4 --dry-run

The runs (see `runs`) of seed 1 are the folders RUNS/PRESET/ROW, those of seed 2 RUNS/PRESET-seed2/ROW. One that has a
result is done and not made again; one that another process is at is waited for.
"""

import argparse
import contextlib
import functools
import hashlib
import io
import itertools
import math
import os
import platform
import queue
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple, Union

from tabulate import tabulate

from ..common import commands
from ..common.commands import parse_count
from ..common.errors import prefixing_errors
from ..common.files import PAPER, ROOT, read_json, refuse_unwritable, shown_path, write_json
from ..data import WIKITEXT, check_counts, prepare
from .runs import (
    Broken,
    InUse,
    Preset,
    Row,
    Run,
    RunFailed,
    batch_options,
    cpu_count,
    execute,
    fairseq_options,
    find_row,
    load_preset,
    load_table,
    names,
    refuse_alike,
    refuse_path,
    refuse_table_name,
    threads_of,
)

# PyTorch, fairseq, pandas and submitit are imported where they are used: each takes a second or more, and who asks how
# far the runs of a table are needs none of them.

_SECONDS_BETWEEN_LINES = 10
MOST_RUNS = 10_000  # of a call: checked within seconds; fairseq alone takes a core most of a day to be started so often

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
    _refuse_too_many(" x ".join(f"{len(values)} {axis}" for axis, values in grid.items()), *map(len, grid.values()))
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


def _refuse_too_many(what: str, *counts: int) -> None:
    """ValueError where the product of the counts is more than MOST_RUNS."""
    if math.prod(counts) > MOST_RUNS:
        raise ValueError(f"{what} = {math.prod(counts):,}; accepted are at most {MOST_RUNS:,} runs in a call")


def _rows_by_wavelets(head_dim: int) -> Dict[Tuple, Row]:
    rows = {}
    for row in [row for table in names("tables") for row in load_table(table)[1]]:
        if row.options[:2] == ("--position-encoding", "wavelet"):
            with contextlib.suppress(ValueError):  # made for wider heads
                rows[_wavelets(row, head_dim)] = row
    return rows


def _wavelets(row: Row, head_dim: int) -> Tuple:
    """Mother wavelet, scales, shifts and direction of a row of wavelets; ValueError where they do not fit the head."""
    from ..positions import build_position

    given = zip(row.options[2::2], row.options[3::2])
    options = {option[2:].replace("-", "_"): text for option, text in given}
    return build_position("wavelet", head_dim=head_dim, num_heads=1, **options).head


def _folder_of(labels: Dict[str, str]) -> str:
    """A run's name from the axes of its sweep: ``ricker_scales-2e0..2e7``."""
    parts = [value if axis == "wavelet" else f"{axis}-{value}" for axis, value in labels.items()]
    name = "_".join(parts).translate({ord("^"): "e", ord("*"): "x", ord(" "): None})
    return name if len(name) <= 120 else f"{name[:100]}-{hashlib.sha256(name.encode()).hexdigest()[:16]}"


class Progress:
    """A line every few seconds: which run, how far it is, its loss, and the time left for all.

    max_updates: the last update of each run that is to be made.
    """

    def __init__(self, max_updates: Dict[str, int]):
        self.max_updates = max_updates
        self.started = math.inf  # with the first update, not with fairseq's start
        self.shown = -math.inf
        self.at_start: Dict[str, int] = {}
        self.updates: Dict[str, int] = {}
        self.lock = threading.Lock()

    def update(self, run: str, update: int, loss: float) -> None:
        """`run` has made so many updates, at a loss in bits."""
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
"""A run's result, or the word that stands in the table in its place."""


def make(runs: List[Run], refused: Dict[str, str], jobs: int) -> List[Outcome]:
    """What came of each run, made where it was not done yet, `jobs` at a time; "failed" where it failed.

    refused: why rows are not run, by their names (see `refusals`).
    """
    outcomes, jobs = _so_far(runs, refused), min(jobs, len(runs))
    missing = [number for number, outcome in enumerate(outcomes) if outcome == "failed"]
    progress = Progress({runs[number].label: runs[number].max_update for number in missing})
    shares = queue.SimpleQueue()
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
            print(f"{label}: {error}; the others first", flush=True)
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
    """For each of the jobs that run side by side, the environment that gives it threads and GPUs of its own.

    Raises ValueError where there are fewer than jobs x gpus GPUs that this process sees.
    """
    shares = [{"OMP_NUM_THREADS": str(threads_of(jobs * processes))} for _ in range(jobs)]
    if gpus and jobs > 1:
        import torch

        seen = os.environ.get("CUDA_VISIBLE_DEVICES")
        devices = list(map(str, range(torch.cuda.device_count()))) if seen is None else seen.split(",")
        if len(devices) < jobs * gpus:
            raise ValueError(f"--jobs {jobs} x --gpus {gpus} is more than the {len(devices)} GPUs that are here")
        for number, share in enumerate(shares):
            share["CUDA_VISIBLE_DEVICES"] = ",".join(devices[number * gpus : (number + 1) * gpus])
    return shares


def make_on_slurm(runs: List[Run], refused: Dict[str, str], folder: Path, name: str) -> List[Outcome]:
    """As `make`, the runs being jobs of Slurm called `name`, whose files are in `folder`."""
    from . import slurm

    outcomes, resources = _so_far(runs, refused), dict(runs[0].preset.slurm)
    if runs[0].gpus:
        resources.setdefault("gpus_per_node", runs[0].gpus)
    by_label = {run.label: number for number, run in enumerate(runs) if outcomes[number] == "failed"}
    cpus = resources.get("cpus_per_task")  # without it, what the node gives the job
    share = {"OMP_NUM_THREADS": str(threads_of(runs[0].processes, cpus))} if cpus else {}
    make_one = functools.partial(execute, environment=share, patience=math.inf)
    tasks = {label: functools.partial(make_one, runs[number]) for label, number in by_label.items()}
    for label, failure in slurm.finished(slurm.submit(tasks, folder, name, resources), name):
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
    print(f"{label}: {at_l_train['perplexity']:.2f} perplexity at L_train {at_l_train['l_train']}", flush=True)


def _print_failure(label: str, why: Any) -> None:
    print(f"{label}: FAILED with {why}", file=sys.stderr, flush=True)


def _so_far(runs: List[Run], refused: Dict[str, str]) -> List[Outcome]:
    """What is known of each run, and printed, before any is made; "failed" for those that are to be made.

    One of whose files is not sound is "broken", and stays as it is; ValueError for one trained with other options.
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
            print(f"{label}: is done", flush=True)
    return outcomes


def write_table(
    table: str, title: str, runs: List[Run], outcomes: List[Outcome], refused: Dict[str, str], folder: Path
) -> None:
    """The table, its Markdown, which is also printed, and its manifest in `folder`."""
    from . import tables

    preset = runs[0].preset
    text = tables.write_tables(
        folder,
        table,
        f"{title}, preset {preset.name}",
        preset.corpus,
        [
            tables.RowResult(run.row.labels, run.seed, outcome if isinstance(outcome, str) else outcome["cells"])
            for run, outcome in zip(runs, outcomes)
        ],
        preset.l_train,
        preset.lengths,
        PAPER / f"{table}.csv",
    )
    write_json(folder / f"{table}.manifest.json", manifest(runs, outcomes, refused))
    print(f"{text}\nwritten: {shown_path(folder)}/{', '.join(_table_files(table))}")


def _table_files(table: str) -> List[str]:
    return [f"{table}.csv", f"{table}.tidy.csv", f"{table}.md", f"{table}.manifest.json"]


def manifest(runs: List[Run], outcomes: List[Outcome], refused: Dict[str, str]) -> Dict[str, Any]:
    """What a table was made from: the machine and, for each run, commit, versions, commands, seconds, or why not."""
    kept = ("commit", "seed", "training_command", "evaluation_command", "parameters", "device", "versions", "threads")
    return {
        "preset": runs[0].preset.name,
        "machine": {"system": platform.system(), "machine": platform.machine(), "cpus": cpu_count()},
        "rows": {
            run.label: refused.get(run.row.name, outcome)
            if isinstance(outcome, str)
            else {
                **{key: outcome.get(key) for key in kept},
                "training_seconds": outcome["training_seconds"],
                "evaluation_seconds": sum(_seconds_by_pieces(outcome["cells"]).values()),
            }
            for run, outcome in zip(runs, outcomes)
        },
    }


def _seconds_by_pieces(cells: List[Dict[str, Any]]) -> Dict[Tuple[int, int], float]:
    """Seconds by length and length of the pieces: up to L_train both inferences are one evaluation, see `evaluate`."""
    seconds = {}
    for cell in cells:
        length = cell["sequence_length"]
        piece_length = length if cell["inference"] == "full" else min(length, cell["l_train"])
        seconds[length, piece_length] = cell["seconds"]
    return seconds


def print_status(runs: List[Run]) -> None:
    """A line for each run: what it is at, how far, how long still, and its perplexities so far.

    It looks at the runs' files only. That a row does not fit is seen where it is to be trained.
    """
    lines = []
    for run in runs:
        line = {"run": run.label, "state": "", "updates": "", "perplexity": "", "training": ""}
        lines.append(line)
        try:
            line["state"], result, logged, last = run.state(), run.result(), run.last_logged(), run.max_update
        except ValueError as error:
            line.update(state="broken" if isinstance(error, Broken) else "refused", training=str(error))
            continue
        updates = last if result else int(logged.get("num_updates", 0))
        line["updates"] = f"{updates} of {last}"
        if result:
            cells = {cell["sequence_length"]: cell for cell in result["cells"] if cell["inference"] == "full"}
            line["perplexity"] = ", ".join(f"{cell['perplexity']:.2f} at {length}" for length, cell in cells.items())
        elif updates >= last:
            line["training"] = "trained to the end, not evaluated yet"
        elif updates:
            left = float(logged["wall"]) * (last / updates - 1)
            line["training"] = f"loss {float(logged['loss']):.3f} bits, {left / 60:.0f} min left"
    print(tabulate(lines, headers="keys", tablefmt="pipe"))


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


def refuse_evaluation(run: Run) -> None:
    """ValueError where the evaluation, hours later, would refuse its options, or evaluate something else."""
    from ..plugin import evaluate as evaluation

    parser = evaluation.parser()
    parser.allow_abbrev = False
    words = run.evaluation_command()
    with prefixing_errors(f"preset {run.preset.name}, evaluate"):
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as said:
            try:
                args = parser.parse_args(words[words.index("wavepos_fairseq.evaluation") + 1 :])
            except SystemExit:
                raise ValueError(said.getvalue().strip().rpartition("error: ")[2] or "--help") from None
        ours = {"path": shown_path(run.checkpoint), "lengths": run.preset.lengths, "position_encoding": None}
        ours["output"] = Path(shown_path(run.folder / "evaluation.json"))
        for name, value in ours.items():
            if getattr(args, name) != value:
                raise ValueError(f"--{name.replace('_', '-')} is not among what can be given here")


def _refuse_no_checkpoint(run: Run) -> None:
    """ValueError where fairseq would not write the checkpoint that is to be evaluated."""
    options, name = fairseq_options(run), run.preset.checkpoint
    without = {"no_save": True, "no_last_checkpoints": name == "checkpoint_last.pt"}
    without["disable_validation"] = name == "checkpoint_best.pt"
    for switch, matters in without.items():
        if matters and getattr(options, switch):
            raise ValueError(f"--{switch.replace('_', '-')}: no {name} is written, which {run.preset.name} evaluates")


def refuse_data(runs: List[Run]) -> None:
    """ValueError where the runs' data-bin has not what they read of it at their start, or hours later."""
    from fairseq.data import Dictionary

    from ..models.transformer_lm_wavelet import refuse_cutoffs
    from ..plugin import evaluate as evaluation

    data, preset = runs[0].data, runs[0].preset
    words = data / "dict.txt"
    with prefixing_errors(shown_path(words)):
        dictionary = Dictionary.load(str(words))
    evaluation.load_stream(str(data), str(preset.evaluate.get("subset", "valid")), dictionary)
    for run in runs:
        options = fairseq_options(run)
        with prefixing_errors(shown_path(words)):
            refuse_cutoffs(options, len(dictionary))


def with_head_dim(rows: List[Row], head_dim: int) -> List[Row]:
    """The rows with their labels ``d/N`` made numbers, d being the width of a head.

    ValueError where this makes two rows the same.
    """

    def number(label: str) -> str:
        divisor = label[2:] if label.startswith("d/") else ""
        return str(head_dim // int(divisor)) if divisor and head_dim % int(divisor) == 0 else label

    rows = [replace(row, labels={name: number(label) for name, label in row.labels.items()}) for row in rows]
    with prefixing_errors(f"heads of width {head_dim}"):
        refuse_alike(rows)
    return rows


def _data_bin(data: Optional[Path], preset: Preset) -> Path:
    """A data-bin folder as it is; a folder of text, or none, is prepared first (see `data`)."""
    if data is not None and not data.exists():
        raise ValueError(f"--data {data}: there is no such folder")
    if data is not None and (data / "dict.txt").is_file():
        return data
    return prepare(preset.corpus, data, ROOT / "data", option="--data")


def _refuse_other_corpus(data: Path, preset: Preset) -> None:
    """A table names its corpus: ValueError where the data-bin was made from another."""
    provenance = read_json(data / "provenance.json", "name")
    if provenance and provenance["name"] != preset.corpus:
        raise ValueError(f"--data {data} holds {provenance['name']}, but preset {preset.name} is for {preset.corpus}")
    if not provenance and preset.corpus in WIKITEXT:
        from ..plugin.streams import count  # which needs fairseq

        check_counts(preset.corpus, count(data))


_count = functools.partial(parse_count, least=0)


def _seed(text: str) -> int:
    if _count(text) >= 2**32:  # which NumPy's generator takes no more
        raise argparse.ArgumentTypeError(f"{text} is no seed: accepted are 0 to {2**32 - 1}")
    return int(text)


def _parser() -> argparse.ArgumentParser:
    parser = commands.parser(__doc__, prog="python -m wavepos_fairseq.lab.experiments")
    added = parser.add_subparsers(dest="command", required=True)
    seed = {"type": _seed, "default": 1, "help": "seed of initialisation, order and dropout (default: 1)"}
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--data", type=Path, help="data-bin folder, or the corpus's text (default: data/CORPUS)")
    common.add_argument("--runs", type=Path, default=ROOT / "runs", help="where runs live (default: runs)")
    common.add_argument("--gpus", type=_count, help="GPUs to train on, 0 for the CPU (default: as the preset says)")
    common.add_argument("--processes", type=parse_count, default=1, help="processes a run trains with on the CPU")
    many = argparse.ArgumentParser(add_help=False)
    seeds = many.add_mutually_exclusive_group()
    seeds.add_argument("--seeds", type=parse_count, metavar="N", help="the seeds 1 to N, and their spread in the table")
    seeds.add_argument("--seed", **seed)
    many.add_argument("--preset", required=True, help=", ".join(names("presets")))
    making = argparse.ArgumentParser(add_help=False)
    making.add_argument("--results", type=Path, default=ROOT / "results", help="where tables go (default: results)")
    making.add_argument("--launcher", choices=("local", "slurm"), default="local", help="where runs are made")
    jobs = "runs side by side, threads and GPUs divided (default: 1)"
    making.add_argument("--jobs", type=parse_count, default=1, help=jobs)
    table = added.add_parser("reproduce", parents=[common, many, making], help="train and evaluate a table's rows")
    table.add_argument("table", help=", ".join(names("tables")))
    sweep = added.add_parser("sweep", parents=[common, many, making], help="train and evaluate a grid of wavelets")
    sweep.add_argument("--name", dest="table", default="sweep", help="the table's name (default: sweep)")
    status = added.add_parser("status", parents=[common, many], help="how far the runs of a table or a sweep are")
    status.add_argument("table", nargs="?", help=f"{', '.join(names('tables'))}; of a sweep not it, but the grid")
    for command in (sweep, status):
        for axis, option in _AXES.items():
            text = f"what {option} takes, once or more ({_EXAMPLES[axis]})"
            required = command is sweep and axis == "wavelet"
            command.add_argument(f"--{axis}", nargs="+", metavar="X", required=required, help=text)
    for name in ("train", "evaluate"):
        one = added.add_parser(name, parents=[common], help=f"{name} one row, or any options", allow_abbrev=False)
        one.add_argument("preset", help=", ".join(names("presets")))
        one.add_argument("--seed", **seed)
        one.add_argument("--name", help="the run's name (default: the row's, or made from the options)")
        one.add_argument("--dry-run", action="store_true", help="print the command and stop")
    return parser


def main(arguments=None) -> int:
    parser = _parser()
    args, options = parser.parse_known_args(arguments)
    if args.command in ("reproduce", "sweep", "status") and options:
        parser.error(f"unrecognized arguments: {' '.join(options)}")
    if args.command != "status" or not args.table:  # a table's status is read off files
        commands.require_fairseq()
    only_prints = args.command == "status" or getattr(args, "dry_run", False)
    with contextlib.nullcontext() if only_prints else commands.progress_fails_nothing():
        try:
            return _one_run(args, options) if args.command in ("train", "evaluate") else _all_runs(args)
        except (ValueError, InUse, OSError) as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        except KeyboardInterrupt:
            print("interrupted: the same command goes on where this one stopped", file=sys.stderr)
            return 130


def _run(args: argparse.Namespace, preset: Preset, row: Row, seed: int) -> Run:
    gpus = preset.gpus if args.gpus is None else args.gpus
    batch_options(preset, gpus, args.processes)
    folder = args.runs / (preset.name if seed == 1 else f"{preset.name}-seed{seed}") / row.name
    data = args.data or ROOT / "data" / preset.corpus
    for option, path, marks in (("--data", data, (":", "${", "\\'")), ("--runs", folder, ("${", "\\'"))):
        read_otherwise = [mark for mark in marks if mark in shown_path(path)]
        if read_otherwise:
            raise ValueError(
                f"{option} {shown_path(path)}: fairseq takes no folder with {read_otherwise[0]} in its path"
            )
    return Run(preset, row, data, folder, gpus, seed, args.processes)


def _all_runs(args: argparse.Namespace) -> int:
    preset = load_preset(args.preset)
    if args.command == "sweep":
        _refuse_table_name(args.table)
    grid = {axis: getattr(args, axis) for axis in _AXES if getattr(args, axis, None)}
    if bool(grid) == bool(args.table) and args.command == "status":
        raise ValueError("say which runs: a table or, of a sweep, its grid (--wavelet ...)")
    if grid:
        title, rows = f"Sweep {args.table}", sweep_rows(grid, head_dim_of(preset))
    else:
        title, rows = load_table(args.table)
        if args.command != "status":  # which shows no labels
            rows = with_head_dim(rows, head_dim_of(preset))
    _refuse_too_many(f"{len(rows)} rows x {args.seeds or 1} seeds", len(rows), args.seeds or 1)
    seeds = range(1, args.seeds + 1) if args.seeds else [args.seed]
    runs = [_run(args, preset, row, seed) for seed in seeds for row in rows]
    if args.command == "status":
        print_status(runs)
        return 0
    of_each_kind = runs[: 1 if grid else len(rows)]
    refused = refusals(of_each_kind)
    fitting = [run for run in of_each_kind if run.row.name not in refused]
    for run in fitting:
        _refuse_no_checkpoint(run)
        refuse_evaluation(run)
    if args.launcher == "slurm":
        from . import slurm

        slurm.refuse_resources(preset.slurm)
        slurm.refuse_without_cluster()
    folder = args.results / (preset.name if args.seeds or args.seed == 1 else f"{preset.name}-seed{args.seed}")
    written = [folder / file for file in _table_files(args.table)]
    for path in [*written, *(run.folder / "training.json" for run in runs)]:
        refuse_unwritable(path)
    data = _data_bin(args.data, preset)
    _refuse_other_corpus(data, preset)
    runs = [replace(run, data=data) for run in runs]
    if fitting:
        refuse_data([replace(run, data=data) for run in fitting])
    if args.launcher == "slurm":
        outcomes = make_on_slurm(runs, refused, args.runs / "slurm", f"wavepos-{preset.name}-{args.table}")
    else:
        outcomes = make(runs, refused, args.jobs)
    write_table(args.table, title, runs, outcomes, refused, folder)
    missing = sum(isinstance(outcome, str) for outcome in outcomes)
    if missing:
        print(f"error: {missing} of {len(runs)} rows have no numbers", file=sys.stderr)
    return 1 if missing else 0


def _one_run(args: argparse.Namespace, options: List[str]) -> int:
    preset = load_preset(args.preset)
    run = _run(args, preset, _chosen_row(args.name, options), args.seed)
    if args.command == "train":
        _refuse_no_checkpoint(run)
    refuse_evaluation(run)
    if not args.dry_run:
        refuse_unwritable(run.folder / "training.json")
        run = replace(run, data=_data_bin(args.data, preset))
        if args.command == "train":
            refuse_data([run])
    print(shlex.join(run.training_command() if args.command == "train" else run.evaluation_command()), flush=True)
    if args.dry_run:
        return 0
    with run.locked() as lock:
        if args.command == "evaluate":
            return _until_it_ends(run.evaluate(lock))
        run.refuse_other_options()
        if run.is_trained():
            print(f"{shown_path(run.checkpoint)} is trained to the end")
            return 0
        return _until_it_ends(run.train(lock))


def _until_it_ends(process: "subprocess.Popen[bytes]") -> int:
    try:
        return process.wait()
    except KeyboardInterrupt:  # which a process that is not in the terminal's group does not get
        process.terminate()
        process.wait()
        raise


def _refuse_table_name(name: str) -> None:
    """A sweep's table has a name of its own, which makes its files'."""
    if not re.fullmatch(r"\w[\w.-]*", name) or name in names("tables"):
        raise ValueError(
            f"--name {name!r}: accepted are letters, digits and . _ -, scales-1 for example, but not the tables "
            f"{', '.join(names('tables'))}"
        )
    refuse_table_name("--name", name)


def _chosen_row(run_name: Optional[str], words: List[str]) -> Row:
    """The row that the words begin with, and the options after it; ValueError where there is neither."""
    if not words:
        raise ValueError("neither a row nor options are given: say which position representation to train")
    row, options = (Row("", {}, ()), words) if words[0].startswith("-") else (find_row(words[0]), words[1:])
    name = "_".join(word.lstrip("-").replace("/", "-") for word in words) if run_name is None else run_name
    refuse_path("--name", name)
    return Row(name, row.labels, (*row.options, *options))


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends it as Ctrl-C does
    sys.exit(main())
