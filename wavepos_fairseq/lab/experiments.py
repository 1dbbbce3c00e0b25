"""Trains and evaluates runs (presets x rows) and gathers them into tables.

    wavepos reproduce table1 --preset wikitext2-cpu --data DIR
    wavepos sweep --preset wikitext2-cpu --wavelet ricker db4 --shifts 0..3 0..7
    wavepos status table1 --preset wikitext2-cpu
    wavepos status --preset wikitext2-cpu --wavelet ricker db4 --shifts 0..3 0..7
    wavepos train wikitext103-512 ricker --gpus 4 --dry-run
    wavepos evaluate --model FOLDER --text FILE --lengths 128,256,512

The run (see `runs`) of a row is the folder RUNS/PRESET/ROW, or RUNS/PRESET-seed2/ROW for seed 2. A run with a result is
not made again. A run that another process is making is waited for.
"""

import argparse
import contextlib
import functools
import platform
import re
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple

from tabulate import tabulate

from ..common import commands
from ..common.commands import parse_count
from ..common.errors import prefixing_errors
from ..common.files import PAPER, ROOT, read_json, refuse_unwritable, shown_path
from ..data import WIKITEXT, check_counts, prepare, prepare_tokens
from ..data.characters import ENDING as CHARACTERS
from ..plugin.streams import count, unit_of
from . import evaluate, results
from .configs import Preset, Row, find_row, load_preset, load_table, names, refuse_alike, refuse_path
from .llama_runs import run_of
from .runs import Broken, InUse, Run, batches, cpu_count, folder_end, shown_perplexity
from .schedule import Outcome, make_here, make_on_slurm
from .sweeps import AXES, EXAMPLES, refuse_too_many, sweep_rows

# PyTorch, fairseq, pandas and submitit are imported where they are used: each takes a second or more, and the status of
# a table needs none of them.


def write_table(
    table: str, title: str, runs: List[Run], outcomes: List[Outcome], refused: Dict[str, str], folder: Path
) -> None:
    """Writes the table's files into `folder` and prints its Markdown."""
    from . import tables

    preset = runs[0].preset
    rows = [
        tables.RowResult(run.row.labels, run.seed, outcome if isinstance(outcome, str) else outcome["cells"])
        for run, outcome in zip(runs, outcomes)
    ]
    of = (rows, preset.l_train, preset.lengths)
    paper = results.read_cells(PAPER, table)
    text = tables.markdown(*of, f"{title}, preset {preset.name}", preset.corpus, paper, runs[0].subset)
    made_from = manifest(runs, outcomes, refused)
    kept = tables.stretches(rows, preset.lengths)
    results.write_table(folder, table, tables.wide(*of), tables.tidy(*of), text, made_from, kept)
    print(
        f"{text}\nwritten: {shown_path(folder)}/{', '.join(path.name for path in results.table_files(folder, table))}"
    )


def manifest(runs: List[Run], outcomes: List[Outcome], refused: Dict[str, str]) -> Dict[str, Any]:
    """How a table was made: the machine and, for each run, commit, versions, commands and seconds, or its failure."""
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


def _seconds_by_pieces(cells: List[Dict[str, Any]]) -> Dict[Tuple[int, Any], float]:
    """Seconds by length and pieces: up to L_train the paper's inferences are one evaluation, see `perplexity`."""
    seconds: Dict[Tuple[int, Any], float] = {}
    for cell in cells:
        length, inference = cell["sequence_length"], cell["inference"]
        piece_lengths = {"full": length, "non-overlapping": min(length, cell["l_train"])}
        seconds[length, piece_lengths.get(inference, inference)] = cell["seconds"]
    return seconds


def print_status(runs: List[Run]) -> None:
    """Prints a line for each run: its state, its updates, the time left and its perplexities.

    It reads only the runs' files. Training shows which rows do not fit the preset.
    """
    lines = []
    for run in runs:
        line = {"run": run.label, "state": "", "updates": "", "perplexity": "", "training": ""}
        lines.append(line)
        try:
            line["state"], result, last = run.state(), run.result(), run.max_update
            logged = run.trained.last_logged()
        except ValueError as error:
            line.update(state="broken" if isinstance(error, Broken) else "refused", training=str(error))
            continue
        updates = last if result else int(logged.get("num_updates", 0))
        line["updates"] = f"{updates} of {last}"
        if result:
            cells = {cell["sequence_length"]: cell for cell in result["cells"] if cell["inference"] == "full"}
            shown = [f"{shown_perplexity(cell):.2f} at {length}" for length, cell in cells.items()]
            line["perplexity"] = ", ".join(shown)
        elif updates >= last:
            line["training"] = "fully trained, not yet evaluated"
        elif updates:
            wall = float(logged["wall"])  # 0: fairseq lost it, as it may where it resumes
            left = f", {wall * (last / updates - 1) / 60:.0f} min left" if wall else ""
            line["training"] = f"loss {float(logged['loss']):.3f} bits{left}"
    print(tabulate(lines, headers="keys", tablefmt="pipe"))


def refusals(runs: List[Run]) -> Dict[str, str]:
    """The rows whose options the model refuses with this preset, by name, and the reasons."""
    refused = {}
    for run in runs:
        try:
            run.refuse_options()
        except ValueError as error:
            refused[run.row.name] = str(error)
    return refused


def head_dim_of(preset: Preset) -> int:
    """The width of the heads of the preset's architecture."""
    return run_of(preset, Row("", {}, {"name": "nope"}), ROOT, ROOT, preset.gpus, seed=1).head_dim()


def refuse_evaluation(run: Run) -> None:
    """Raises ValueError if the evaluation would later refuse its options or evaluate something else."""
    from ..evaluation.perplexity import refuse_stride

    parser = evaluate.parser()
    parser.allow_abbrev = False
    with prefixing_errors(f"preset {run.preset.name}, evaluate"):
        with commands.refusals_raise():
            args = parser.parse_args(run.evaluation_arguments())
        ours = parser.parse_args(run.evaluation_arguments(with_options=False))
        for name in ("path", "model", "text", "lengths", "l_train", "position_encoding", "output"):
            if getattr(args, name) != getattr(ours, name):
                raise ValueError(f"--{name.replace('_', '-')} cannot be given here")
        unknown = sorted({*args.model_overrides} - run.model_options())
        if unknown:
            raise ValueError(f"--model-overrides: {unknown[0]} is no option of the model of row {run.row.name}")
        if "sliding" in args.inference:
            refuse_stride(args.stride, args.lengths)


def with_head_dim(rows: List[Row], head_dim: int) -> List[Row]:
    """The rows with numbers for their labels ``d/N``, d being the width of a head.

    Raises ValueError if two rows become the same.
    """

    def number(label: str) -> str:
        divisor = label[2:] if label.startswith("d/") else ""
        return str(head_dim // int(divisor)) if divisor and head_dim % int(divisor) == 0 else label

    rows = [replace(row, labels={name: number(label) for name, label in row.labels.items()}) for row in rows]
    with prefixing_errors(f"heads of width {head_dim}"):
        refuse_alike(rows)
    return rows


def _prepared(data: Optional[Path], preset: Preset) -> Path:
    """The folder of what is trained on. A folder of text, or None, is prepared first (see `data`)."""
    is_llama = preset.framework == "transformers"
    if data is not None and not data.exists():
        raise ValueError(f"--data {data} does not exist")
    if data is None or not (data / ("provenance.json" if is_llama else "dict.txt")).is_file():
        data = prepare(preset.corpus, data, ROOT / "data", option="--data")
    if is_llama:
        prepare_tokens(data, preset.tokenizer)
    return data


def _refuse_other_corpus(data: Path, preset: Preset) -> None:
    """Raises ValueError if the data-bin was made from another corpus than the one that the table names."""
    provenance = read_json(data / "provenance.json", "name")
    if provenance and provenance["name"] != preset.corpus:
        raise ValueError(f"--data {data} holds {provenance['name']}, but preset {preset.name} is for {preset.corpus}")
    if not provenance and preset.corpus in WIKITEXT:
        check_counts(preset.corpus, count(data))


_count = functools.partial(parse_count, least=0)


def _seed(text: str) -> int:
    if _count(text) >= 2**32:  # NumPy's generator takes no larger seed
        raise argparse.ArgumentTypeError(f"{text} is not a seed: accepted are 0 to {2**32 - 1}")
    return int(text)


def _parser() -> argparse.ArgumentParser:
    parser = commands.parser(__doc__, prog="wavepos")
    added = parser.add_subparsers(dest="command", required=True)
    seed: Dict[str, Any] = {
        "type": _seed,
        "default": 1,
        "help": "seed of initialisation, batch order and dropout (default: 1)",
    }
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--data", type=Path, help="data-bin folder, or the corpus's text (default: data/CORPUS)")
    common.add_argument("--runs", type=Path, default=ROOT / "runs", help="folder of the runs (default: runs)")
    common.add_argument("--gpus", type=_count, help="GPUs to train on; 0: the CPU (default: the preset's)")
    common.add_argument("--processes", type=parse_count, default=1, help="processes per run on the CPU (default: 1)")
    many = argparse.ArgumentParser(add_help=False)
    seeds = many.add_mutually_exclusive_group()
    seeds.add_argument("--seeds", type=parse_count, metavar="N", help="run seeds 1 to N; the table shows their spread")
    seeds.add_argument("--seed", **seed)
    many.add_argument("--preset", required=True, help=", ".join(names("presets")))
    making = argparse.ArgumentParser(add_help=False)
    making.add_argument("--results", type=Path, default=ROOT / "results", help="tables' folder (default: results)")
    making.add_argument("--launcher", choices=("local", "slurm"), default="local", help="where to run (default: local)")
    jobs = "parallel runs, each with its own share of the threads and GPUs (default: 1)"
    making.add_argument("--jobs", type=parse_count, default=1, help=jobs)
    table = added.add_parser("reproduce", parents=[common, many, making], help="train and evaluate a table's rows")
    table.add_argument("table", help=", ".join(names("tables")))
    sweep = added.add_parser("sweep", parents=[common, many, making], help="train and evaluate a grid of wavelets")
    sweep.add_argument("--name", dest="table", default="sweep", help="the table's name (default: sweep)")
    status = added.add_parser("status", parents=[common, many], help="show the progress of a table or a sweep")
    status.add_argument("table", nargs="?", help=f"{', '.join(names('tables'))}; for a sweep, give its grid instead")
    for command in (sweep, status):
        for axis, option in AXES.items():
            flag = "position-encoding" if axis == "position" else option.replace("_", "-")
            text = f"one or more values of --{flag} ({EXAMPLES[axis]})"
            required = command is sweep and axis == "wavelet"
            command.add_argument(f"--{axis}", nargs="+", metavar="X", required=required, help=text)
    of_row = "ROW is a row of any table. Further options are those of fairseq-train, or of Trainer for a Llama."
    of_model = " With --model FOLDER --text FILE --lengths N,..., a model of transformers is evaluated instead."
    for name in ("train", "evaluate"):
        one = added.add_parser(name, parents=[common], help=f"{name} one row, or any options", allow_abbrev=False)
        one.epilog = of_row + (of_model if name == "evaluate" else "")
        one.usage = f"wavepos {name} PRESET [ROW] [OPTION ...]"
        one.add_argument("preset", metavar="PRESET", help=", ".join(names("presets")))
        one.add_argument("--seed", **seed)
        one.add_argument("--name", help="the run's name (default: the row's, or made from the options)")
        one.add_argument("--dry-run", action="store_true", help="print the command and stop")
    return parser


def main(arguments=None) -> int:
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words[:1] == ["evaluate"] and evaluate.names_a_model(words):
        return evaluate.main(words[1:], "wavepos evaluate")
    parser = _parser()
    args, options = parser.parse_known_args(words)
    if args.command in ("reproduce", "sweep", "status") and options:
        parser.exit(2, f"wavepos {args.command}: error: unrecognized arguments: {' '.join(options)}\n")
    if args.command != "status" or not args.table:  # a table's status needs files only
        _require_framework(args.preset)
    if getattr(args, "launcher", "local") == "slurm":
        commands.require_lab("submitit")
    only_prints = args.command == "status" or getattr(args, "dry_run", False)
    with contextlib.nullcontext() if only_prints else commands.progress_fails_nothing():
        try:
            return _one_run(args, options) if args.command in ("train", "evaluate") else _all_runs(args)
        except (ValueError, InUse, OSError, ImportError) as error:  # the last where transformers is broken
            print(f"error: {error}", file=sys.stderr)
            return 2
        except KeyboardInterrupt:
            print("interrupted: run the same command again to resume", file=sys.stderr)
            return 130


def _require_framework(preset: str) -> None:
    """Ends the command unless what trains the preset is installed; an invalid preset is refused later."""
    with contextlib.suppress(ValueError):
        if load_preset(preset).framework == "transformers":
            commands.require_hf()
            return
    commands.require_fairseq()


def _run(args: argparse.Namespace, preset: Preset, row: Row, seed: int) -> Run:
    gpus = preset.gpus if args.gpus is None else args.gpus
    batches(preset, gpus, args.processes)
    folder = args.runs / f"{preset.name}{folder_end(seed)}" / row.name
    data = args.data or ROOT / "data" / preset.corpus
    for option, path, marks in (("--data", data, (":", "${", "\\'")), ("--runs", folder, ("${", "\\'"))):
        read_otherwise = [mark for mark in marks if mark in shown_path(path)]
        if read_otherwise:
            raise ValueError(
                f"{option} {shown_path(path)}: fairseq refuses a folder with {read_otherwise[0]} in its path"
            )
    return run_of(preset, row, data, folder, gpus, seed, args.processes)


def _all_runs(args: argparse.Namespace) -> int:
    preset = load_preset(args.preset)
    if args.command == "sweep":
        _refuse_table_name(args.table)
    grid = {axis: getattr(args, axis) for axis in AXES if getattr(args, axis, None)}
    if bool(grid) == bool(args.table) and args.command == "status":
        tables = ", ".join(names("tables"))
        raise ValueError(f"give either a table or a sweep's grid (--wavelet ...); tables are {tables}")
    if grid:
        title, rows = f"Sweep {args.table}", sweep_rows(grid, head_dim_of(preset))
    else:
        title, rows = load_table(args.table)
        if args.command != "status":  # status shows no labels
            rows = with_head_dim(rows, head_dim_of(preset))
    refuse_too_many(f"{len(rows)} rows x {args.seeds or 1} seeds", len(rows), args.seeds or 1)
    seeds = range(1, args.seeds + 1) if args.seeds else [args.seed]
    runs = [_run(args, preset, row, seed) for seed in seeds for row in rows]
    if args.command == "status":
        print_status(runs)
        return 0
    of_each_kind = runs[: 1 if grid else len(rows)]
    refused = refusals(of_each_kind)
    fitting = [run for run in of_each_kind if run.row.name not in refused]
    for run in fitting:
        run.refuse_no_checkpoint()
        refuse_evaluation(run)
    if args.launcher == "slurm":
        from . import slurm

        slurm.refuse_resources(preset.slurm)
        slurm.refuse_without_cluster()
    folder = args.results / f"{preset.name}{folder_end(1 if args.seeds else args.seed)}"
    written = results.table_files(folder, args.table)
    for path in [*written, *(run.folder / "training.json" for run in runs)]:
        refuse_unwritable(path)
    data = _prepared(args.data, preset)
    _refuse_other_corpus(data, preset)
    runs = [replace(run, data=data) for run in runs]
    for run in fitting:
        replace(run, data=data).refuse_data()
    if args.launcher == "slurm":
        outcomes = make_on_slurm(runs, refused, args.runs / "slurm", f"wavepos-{preset.name}-{args.table}")
    else:
        outcomes = make_here(runs, refused, args.jobs)
    write_table(args.table, title, runs, outcomes, refused, folder)
    missing = sum(isinstance(outcome, str) for outcome in outcomes)
    if missing:
        print(f"error: {missing} of {len(runs)} rows have no numbers", file=sys.stderr)
    return 1 if missing else 0


def _one_run(args: argparse.Namespace, options: List[str]) -> int:
    preset = load_preset(args.preset)
    run = _run(args, preset, _chosen_row(args.name, options), args.seed)
    if args.command == "train":
        if run.row.trained and args.name is not None:
            of_other = f"row {options[0]} has the training of {run.row.trained}"
            raise ValueError(f"--name {args.name}: {of_other}; give that row")
        run = run.trained
        run.refuse_no_checkpoint()
    refuse_evaluation(run)
    if not args.dry_run:
        refuse_unwritable(run.folder / "training.json")
        run = replace(run, data=_prepared(args.data, preset))
        if (unit_of(str(run.data)) == "character") != preset.corpus.endswith(CHARACTERS):
            held = read_json(run.data / "provenance.json", "name") or {"name": "words"}
            raise ValueError(f"--data {run.data} holds {held['name']}, but preset {preset.name} is for {preset.corpus}")
        if args.command == "train":
            run.refuse_data()
        else:
            run.refuse_untrained()
    print(shlex.join(run.training_command() if args.command == "train" else run.evaluation_command()), flush=True)
    if args.dry_run:
        for line in run.counted() if args.command == "train" else []:
            print(line)
        return 0
    with run.locked() as lock:
        if args.command == "evaluate":
            status = _until_it_ends(run.evaluate(lock))
            if status == 0 and run.trained.is_trained():
                run.record()
            return status
        run.refuse_other_options()
        if run.is_trained():
            print(f"{shown_path(run.checkpoint)} is already fully trained")
            return 0
        return _until_it_ends(run.train(lock))


def _until_it_ends(process: "subprocess.Popen[bytes]") -> int:
    try:
        return process.wait()
    except KeyboardInterrupt:  # a process outside the terminal's group does not get Ctrl-C
        process.terminate()
        process.wait()
        raise


def _refuse_table_name(name: str) -> None:
    """Raises ValueError unless a sweep's table can have this name, which its files get, too."""
    if not re.fullmatch(r"\w[\w.-]*", name) or name in names("tables"):
        raise ValueError(
            f"--name {name!r}: accepted are letters, digits and . _ - (scales-1, for example), but not the tables "
            f"{', '.join(names('tables'))}"
        )
    results.refuse_table_name("--name", name)


def _chosen_row(run_name: Optional[str], words: List[str]) -> Row:
    """The row that the words begin with, and the options after it. Raises ValueError if there is neither."""
    if not words:
        raise ValueError("give a row or options: the position representation to train")
    row, arguments = (Row("", {}, {}), words) if words[0].startswith("-") else (find_row(words[0]), words[1:])
    name = "_".join(word.lstrip("-").replace("/", "-") for word in words) if run_name is None else run_name
    refuse_path("--name", name)
    if row.trained and arguments:
        raise ValueError(f"row {words[0]} has the training of {row.trained}: give that row with {arguments[0]}")
    return replace(row, name=name, arguments=tuple(arguments))
