"""Scores a model of transformers on LongBench's nine English tasks (section A.15), or compares the scores of two.

    wavepos longbench --data FOLDER
    wavepos longbench --data FOLDER --model MODEL --results SCORES
    wavepos longbench --compare WAVELET_SCORES ROPE_SCORES --results RESULTS/PRESET

The first prints Table 5's statistics of the data. The second writes SCORES/TASK.json, the answers to each task, and
SCORES/scores.csv, a line for each task in this folder. The third writes the sheet longbench.csv, from which `wavepos
figures` draws Figure 11 and `wavepos claims` judges its signs.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Dict, List, Optional

from ..common import commands
from ..common.errors import prefixing_errors
from ..common.files import read_json, refuse_unwritable, shown_path, write_json, write_whole
from ..common.schema import Accepted, check, is_number
from ..evaluation.longbench import RULER, TASKS, Sample, read_samples
from ..evaluation.longbench import statistics as statistics_of
from . import results
from .configs import LONGBENCH

if TYPE_CHECKING:
    import pandas as pd

SCORES = "scores.csv"
_METRICS = {**{name: task.metric for name, task in TASKS.items()}, RULER: "match"}
_ANSWERS: Accepted = (
    "a list of one or more answers with _id and score",
    lambda value: (
        isinstance(value, list)
        and value != []
        and all(isinstance(of, dict) and "_id" in of and is_number(of.get("score")) for of in value)
    ),
)
_RECORD = ("task", "metric", "l_train", "max_length", "words", "answers")


def score(args: argparse.Namespace, samples: Dict[str, List[Sample]]) -> pd.DataFrame:
    """Asks the model all tasks, writes TASK.json after each and then SCORES, and returns that file's lines."""
    from ..hf import longbench

    model, tokenizer = longbench.load(args.model)
    trained = getattr(model.config, "max_position_embeddings", None)
    for task in args.tasks:
        room = 0 if task == RULER else longbench.LONGEST_ANSWER
        max_length = args.max_length or (trained or 0) - room
        if max_length < 2:
            raise ValueError(
                f"--max-length must be given: the default, the model's max_position_embeddings less {room} for the "
                f"answer, is {trained} - {room}"
            )
        record: Dict[str, Any] = {"task": task, "metric": _METRICS[task], "max_length": max_length}
        record["model"] = str(args.model.resolve())
        record["l_train"] = trained or max_length
        if task == RULER:
            record["answers"] = longbench.needles(model, tokenizer, args.model, max_length, args.limit)
            record["words"] = None
        else:
            record["answers"] = longbench.answers(model, tokenizer, task, samples[task], max_length)
            record["words"] = statistics_of(task, samples[task])["avg len"]
        write_json(args.results / f"{task}.json", record)
        print(f"{task}: {_mean(record):.2f}", file=sys.stderr, flush=True)
    return write_scores(args.results)


def write_scores(folder: Path) -> pd.DataFrame:
    """Writes SCORES from all answers in the folder: a line for each task, its mean score 0 to 100, and returns it."""
    import pandas as pd

    lines = [
        {
            "task": record["task"],
            "metric": record["metric"],
            "score": round(_mean(record), 2),
            "count": len(record["answers"]),
            **{key: record[key] for key in ("words", "l_train", "max_length")},
        }
        for record in _records(folder).values()
    ]
    scores = pd.DataFrame(lines).astype({"words": "Int64"})
    write_whole(folder / SCORES, scores.to_csv(index=False))
    return scores


def _records(folder: Path) -> Dict[str, Dict[str, Any]]:
    """The answers in a folder, by task. Raises ValueError if there are none."""
    records = {}
    for task in _METRICS:
        path = folder / f"{task}.json"
        record = read_json(path, *_RECORD)
        if record is not None:
            with prefixing_errors(shown_path(path)):
                check({"answers": record["answers"]}, {"answers": _ANSWERS})
            records[task] = record
    if not records:
        raise ValueError(f"{shown_path(folder)} has no answers of LongBench; run scripts/longbench.sh --model first")
    return records


def _refuse_other_model(folder: Path, model: Path) -> None:
    """Raises ValueError if the folder has answers of another model. Before 0.5 they do not say whose they are."""
    for task in _METRICS:
        record = read_json(folder / f"{task}.json") or {}
        if record.get("model", str(model.resolve())) != str(model.resolve()):
            raise ValueError(
                f"--results {shown_path(folder)} has {task} of {record['model']}: each model needs its own"
            )


def _mean(record: Dict[str, Any]) -> float:
    return statistics.mean(answer["score"] for answer in record["answers"])


def compare(folder: Path, over: Path) -> pd.DataFrame:
    """The sheet ``longbench``: for each task that both folders have, the scores of both and their difference.

    The difference has the 95% interval that other samples would give; both models answered the same ones, so it is
    paired. Raises ValueError if they did not, or if prompts were cut at different lengths.
    """
    import numpy as np
    import pandas as pd

    from ..evaluation.statistics import paired_difference

    ours, theirs = _records(folder), _records(over)
    lines = []
    for task in (task for task in ours if task in theirs):
        pair = ours[task], theirs[task]
        for what in ("l_train", "max_length"):
            if pair[0][what] != pair[1][what]:
                raise ValueError(
                    f"--compare: the {what} of {task} is {pair[0][what]} in one and {pair[1][what]} in the other"
                )
        if [answer["_id"] for answer in pair[0]["answers"]] != [answer["_id"] for answer in pair[1]["answers"]]:
            raise ValueError(f"--compare: the two folders have answers to different samples of {task}")
        scores = np.array([[answer["score"] for answer in record["answers"]] for record in pair])
        told = paired_difference(scores[:1] - scores[1:], np.ones(scores.shape[1]))
        lines.append(
            {
                "task": task,
                "metric": pair[0]["metric"],
                "l_train": pair[0]["l_train"],
                "sequence_length": pair[0]["max_length"],
                "score": round(_mean(pair[0]), 2),
                "over_score": round(_mean(pair[1]), 2),
                "difference": told.mean,
                "low": told.low,
                "high": told.high,
                "count": scores.shape[1],
            }
        )
    if not lines:
        raise ValueError(f"--compare: {shown_path(folder)} and {shown_path(over)} have no task in common")
    return pd.DataFrame(lines)


def main(arguments: Optional[List[str]] = None) -> int:
    parser = commands.parser(__doc__, prog="wavepos longbench")
    of = parser.add_mutually_exclusive_group()
    of.add_argument("--model", type=Path, metavar="FOLDER", help="a model of transformers; needs --results")
    of.add_argument(
        "--compare",
        type=Path,
        nargs=2,
        metavar="SCORES",
        help="two folders of scores, the wavelet's first; needs --results",
    )
    parser.add_argument(
        "--data", type=Path, help="LongBench's data.zip or a folder of its files (default: from the hub)"
    )
    parser.add_argument(
        "--tasks",
        help=f"some of {', '.join(TASKS)}, {RULER}, joined by commas (default: the nine)",
    )
    parser.add_argument("--limit", type=commands.parse_count, help="the first samples of each task (default: all)")
    parser.add_argument(
        "--max-length",
        type=commands.parse_count,
        help="tokens of a prompt, which loses its middle (default: the model's max_position_embeddings - 512)",
    )
    parser.add_argument("--results", type=Path, metavar="FOLDER", help="where scores, or the sheet longbench.csv, go")
    args = parser.parse_args(arguments)
    if args.compare and (args.data or args.tasks or args.limit or args.max_length):
        parser.error("--compare reads answers; --data, --tasks, --limit and --max-length belong to --model")
    args.tasks = list(dict.fromkeys(args.tasks.split(","))) if args.tasks is not None else list(TASKS)
    for task in args.tasks:
        if task not in _METRICS:
            parser.error(f"--tasks {task!r}: accepted are {', '.join(_METRICS)}")
    if args.max_length == 1:
        parser.error("--max-length 1: accepted are whole numbers > 1")
    if (args.results is None) == bool(args.model or args.compare):
        parser.error("--model and --compare need --results, a folder, and it needs one of them")
    if RULER in args.tasks and not args.model:
        parser.error(f"--tasks {RULER} makes its own texts for a --model")
    try:
        print(_run(args).to_markdown(index=False))
    except (ValueError, OSError, ImportError) as error:  # the last where transformers is installed, and broken
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _run(args: argparse.Namespace) -> pd.DataFrame:
    if args.compare:
        refuse_unwritable(results.sheet_file(args.results, LONGBENCH))
        lines = compare(*args.compare)
        results.write_sheet(args.results, LONGBENCH, lines)
        return lines
    if args.model:
        commands.require_longbench()
        refuse_unwritable(args.results / SCORES)
        _refuse_other_model(args.results, args.model)
    asked = [task for task in args.tasks if task != RULER]
    data = args.data
    if asked and data is None:
        commands.require_longbench()
        from ..hf import longbench

        data = longbench.download()
    samples = {task: read_samples(data, task, args.limit) for task in asked}
    if args.model:
        return score(args, samples)
    import pandas as pd

    return pd.DataFrame([statistics_of(task, of_task) for task, of_task in samples.items()])
