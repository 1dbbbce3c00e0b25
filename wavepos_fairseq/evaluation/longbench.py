"""The nine English tasks of LongBench (Bai et al., 2024) in Figure 11: samples, prompts, scores, Table 5's statistics.

Samples are read in LongBench's own format. Prompts and metrics are lm-eval's (extra longbench), in which LongBench's
own code is the same; where it is not, this does as LongBench does. No model is known here: `hf.longbench` asks one.
"""

import functools
import io
import json
import warnings
import zipfile
from pathlib import Path
from typing import IO, Any, Dict, Iterable, List, Mapping, NamedTuple, Optional

from ..common.errors import prefixing_errors
from ..common.files import shown_path
from ..common.schema import TEXT, Accepted, check, is_number, or_none


class Task(NamedTuple):
    """A line of the paper's Table 5 (A.15): length is the average in words; examples: whether the prompt has some."""

    title: str
    length: int
    metric: str
    samples: int
    examples: bool = False


F1, ROUGE_L = "F1", "Rouge-L"
TASKS = {
    "narrativeqa": Task("NarrativeQA", 18409, F1, 200),
    "qasper": Task("Qasper", 3619, F1, 200),
    "multifieldqa_en": Task("MultiFieldQA-en", 4559, F1, 150),
    "hotpotqa": Task("HotpotQA", 9151, F1, 200),
    "2wikimqa": Task("2WikiMQA", 4887, F1, 200),
    "musique": Task("MuSiQue", 11214, F1, 200),
    "triviaqa": Task("TriviaQA", 8209, F1, 200, examples=True),
    "samsum": Task("SAMSum", 6258, ROUGE_L, 200, examples=True),
    "qmsum": Task("QMSum", 10614, ROUGE_L, 200),
}
RULER = "niah_single_1"
"""A task of RULER (Hsieh et al., 2024), which makes its own texts; it is lm-eval's, unchanged."""
_TEXTS: Accepted = (
    "a list of one or more texts",
    lambda value: isinstance(value, list) and value != [] and all(isinstance(text, str) for text in value),
)
_SAMPLE: Dict[str, Accepted] = {
    "_id": TEXT,
    "dataset": TEXT,
    "input": ("text", lambda value: isinstance(value, str)),  # empty where the task is the same for all samples
    "context": TEXT,
    "answers": _TEXTS,
    "length": ("a number of words >= 0", is_number),
    "all_classes": or_none(("a list", lambda value: isinstance(value, list))),
}

Sample = Dict[str, Any]


def read_samples(data: Path, task: str, limit: Optional[int] = None) -> List[Sample]:
    """The samples of a task, the first `limit` of them: from data/TASK.jsonl or, of LongBench's data.zip, from there.

    A sample has _id, input, context, answers, length (in words), dataset and all_classes. Raises ValueError with the
    line where the file is of another format.
    """
    name = f"{task}.jsonl"
    with prefixing_errors(f"--data {shown_path(data)}/{name}"):
        if zipfile.is_zipfile(data):
            with zipfile.ZipFile(data) as packed:
                found = [member for member in packed.namelist() if member.split("/")[-1] == name]
                if not found:
                    raise ValueError("there is no such file in the archive; accepted is LongBench's data.zip")
                with packed.open(found[0]) as file:
                    return _parsed(file, task, limit)
        if not (data / name).is_file():
            raise ValueError("there is no such file; accepted are LongBench's data.zip and a folder of its files")
        with (data / name).open("rb") as file:
            return _parsed(file, task, limit)


def _parsed(file: IO[bytes], task: str, limit: Optional[int]) -> List[Sample]:
    samples: Dict[str, Sample] = {}
    for number, line in enumerate(io.TextIOWrapper(file, encoding="utf-8"), 1):
        with prefixing_errors(f"line {number}"):
            sample = json.loads(line) if line.strip() else None
            if sample is None:
                raise ValueError("expected a JSON object, not an empty line")
            check(sample, _SAMPLE, others=True)
            if sample["dataset"] != task:
                raise ValueError(f"dataset must be {task}, not {sample['dataset']}")
            if samples.setdefault(sample["_id"], sample) is not sample:
                raise ValueError(f"_id {sample['_id']} appears twice")
        if len(samples) == limit:
            break
    if not samples:
        raise ValueError("there are no samples in it")
    return list(samples.values())


def statistics(task: str, samples: List[Sample]) -> Dict[str, Any]:
    """A line of Table 5 (A.15) for these samples, and beside it the paper's numbers, which the whole data have.

    The average length is that of the samples' own ``length``, which LongBench counts in words (Python's ``split``).
    """
    paper = TASKS[task]
    return {
        "dataset": paper.title,
        "avg len": round(sum(sample["length"] for sample in samples) / len(samples)),
        "metric": paper.metric,
        "samples": len(samples),
        "paper's avg len": paper.length,
        "paper's samples": paper.samples,
    }


def prompt_of(task: str, sample: Mapping[str, Any]) -> str:
    """What the model is asked. Two tasks, which have examples, have an empty line more than in lm-eval."""
    from lm_eval.utils import apply_template

    template = _definition(task)["doc_to_text"]
    if TASKS[task].examples:
        template = template.replace("{{context}}\n{{question}}", "{{context}}\n\n{{question}}")
    return apply_template(template, {"context": sample["context"], "question": sample["input"]})


def most_tokens(task: str) -> int:
    """The most tokens of an answer."""
    return int(_definition(task)["generation_kwargs"]["max_gen_toks"])


def score(task: str, answer: str, answers: Iterable[str]) -> float:
    """0 to 100: the best over the true answers. Of a task with examples, the answer's first line that is not empty."""
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore"
        )  # fuzzywuzzy, which none of the nine needs, would be faster with another package
        from lm_eval.tasks.longbench.metrics import qa_f1_score, rouge_score

    if TASKS[task].examples:
        answer = answer.lstrip("\n").split("\n")[0]
    metric = {F1: qa_f1_score, ROUGE_L: rouge_score}[TASKS[task].metric]
    return 100 * max(float(metric(answer, true)) for true in answers)


def _definition(task: str) -> Dict[str, Any]:
    return _definitions()[f"longbench_{task}"].cfg


@functools.lru_cache(maxsize=None)
def _definitions() -> Mapping[str, Any]:
    import lm_eval.tasks

    folder = Path(lm_eval.tasks.__file__).parent / "longbench"
    return lm_eval.tasks.TaskManager(include_path=str(folder), include_defaults=False).task_index
