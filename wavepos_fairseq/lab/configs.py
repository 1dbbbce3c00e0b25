"""Presets (configs/presets) and the rows of tables (configs/tables), checked as they are read.

A preset says what is trained, on what and for how long. A row names a position representation, in the words of
`positions.build_position`. This module does not know how training works.
"""

import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Dict, List, Mapping, Tuple, Union

import yaml

from ..common.errors import first_line, prefixing_errors
from ..common.files import CONFIGS, shown_path
from ..common.schema import COUNT, MAPPING, OPTIONS, TEXT, WHOLE, Accepted, are_options, check, is_count
from ..evaluation.longbench import TASKS
from .results import RESERVED_COLUMN, refuse_table_name

ATTENTION = "attention"  # the share of the attention beyond L_train, a sheet of the results
RECALL = "recall"  # the share of keys whose value is found, over the distance, a sheet of the results
LONGBENCH = "longbench"  # a model's scores minus another's, a sheet of the results
JUDGED_SHEETS = (ATTENTION, RECALL, LONGBENCH)
_OTHER_SEED = r"-seed\d+$"  # at the end of a folder's name


@dataclass(frozen=True)
class Preset:
    """configs/presets/NAME.yaml.

    train holds fairseq-train's options without their dashes (``true`` for a switch, ``{run}`` for the run's folder,
    ``{seed}`` for the end of its parent's name: nothing, or ``-seed2``) or, where framework is transformers, those of
    its Trainer. Such a preset has no checkpoint, but the shape of a Llama and a tokenizer (see
    `hf.tokens.write_tokens`). tokens_per_update counts all devices; tokens_per_device is the most that one device takes
    at a time (fairseq's --max-tokens). slurm: the resources of a run on a cluster, besides its GPUs (see
    `slurm.submit`).
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
    slurm: Dict[str, Any]
    framework: str = "fairseq"
    shape: Mapping[str, Any] = field(default_factory=dict)
    tokenizer: Union[int, str] = ""


@dataclass(frozen=True)
class Row:
    """A row of configs/tables/NAME.yaml: its labels, in the paper's columns, and its position representation.

    position: ``name`` and the options of `positions.build_position`. arguments: further arguments of fairseq-train,
    from the command line. Rows with the same name, position and options are one run, even in different tables.

    train: options of the training in place of the preset's. trained: the row whose training this one evaluates, with
    its position; empty: its own. evaluate: options of the evaluation in place of the preset's, the table's or its own.
    """

    name: str
    labels: Dict[str, str]
    position: Mapping[str, Any]
    arguments: Tuple[str, ...] = ()
    train: Mapping[str, Any] = field(default_factory=dict)
    trained: str = ""
    evaluate: Mapping[str, Any] = field(default_factory=dict)


class _Loader(yaml.SafeLoader):
    """Refuses aliases, a few lines of which can exceed any memory, and keys that are repeated or not text."""

    def compose_node(self, parent, index):
        if self.check_event(yaml.AliasEvent):
            raise yaml.MarkedYAMLError(problem="aliases are not accepted", problem_mark=self.peek_event().start_mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node, deep=False):
        seen = set()
        for key, _ in node.value:
            if key.tag != "tag:yaml.org,2002:str":
                raise yaml.MarkedYAMLError(problem="a key is not text", problem_mark=key.start_mark)
            if key.value in seen:
                raise yaml.MarkedYAMLError(problem=f"key {key.value!r} appears twice", problem_mark=key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def read_yaml(path: Path) -> Dict[str, Any]:
    """The mapping in a YAML file. Raises ValueError with the line if it is invalid or has aliases."""
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        mark, problem = (getattr(error, name, None) for name in ("problem_mark", "problem"))
        why = f"line {mark.line + 1}: {problem}" if mark else first_line(error)
        raise ValueError(f"{shown_path(path)} cannot be read: {why}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{shown_path(path)}: expected a mapping, not {type(content).__name__}")
    return content


def _are_lengths(value: Any) -> bool:
    return isinstance(value, list) and all(map(is_count, value)) and len(set(value)) == len(value)


def _is_checkpoint(value: Any) -> bool:
    return isinstance(value, str) and bool(re.fullmatch(r"checkpoint(_last|_best|\d+|_\d+_\d+)\.pt", value))


def _is_position(value: Any) -> bool:
    texts = value if isinstance(value, dict) else {}
    return isinstance(texts.get("name"), str) and all(type(text) in (str, int, float) for text in texts.values())


_PRESET: Dict[str, Accepted] = {
    "corpus": TEXT,
    "l_train": COUNT,
    "lengths": ("a list of distinct whole numbers > 0", _are_lengths),
    "gpus": WHOLE,
    "tokens_per_update": COUNT,
    "tokens_per_device": COUNT,
    "checkpoint": ("checkpoint_last.pt, checkpoint_best.pt or another of fairseq's names", _is_checkpoint),
    "train": OPTIONS,
    "evaluate": OPTIONS,
    "slurm": MAPPING,
}
_LLAMA_PRESET: Dict[str, Accepted] = {
    **{key: accepted for key, accepted in _PRESET.items() if key != "checkpoint"},
    "framework": ("transformers, or be left out for fairseq", lambda value: value == "transformers"),
    "shape": ("a mapping of a LlamaConfig's options to text or numbers", are_options),
    "tokenizer": ("a number of types or a tokenizer's folder", lambda value: is_count(value) or TEXT[1](value)),
}
_TABLE: Dict[str, Accepted] = {
    "title": TEXT,
    "rows": ("a mapping of rows", lambda value: isinstance(value, dict) and value != {}),
}
_EVALUATED_TABLE: Dict[str, Accepted] = {**_TABLE, "evaluate": OPTIONS}
_LABELS: Dict[str, Accepted] = {
    "labels": ("a mapping of columns to text", lambda value: isinstance(value, dict) and value != {}),
}
_ROW: Dict[str, Accepted] = {**_LABELS, "position": ("a mapping of name and options to text or numbers", _is_position)}
_EVALUATED_ROW: Dict[str, Accepted] = {**_LABELS, "trained": TEXT, "evaluate": OPTIONS}


def load_preset(name: str) -> Preset:
    """The preset `name`. Raises ValueError if it does not exist, is invalid or does not evaluate at L_train."""
    if name not in names("presets"):
        raise ValueError(f"preset {name!r} is unknown; accepted are {', '.join(names('presets'))}")
    if re.search(_OTHER_SEED, name):
        raise ValueError(f"preset {name!r}: a name that ends with a seed is taken by another preset's folder")
    path = CONFIGS / "presets" / f"{name}.yaml"
    content = read_yaml(path)
    is_llama = "framework" in content
    with prefixing_errors(shown_path(path)):
        check(content, _LLAMA_PRESET if is_llama else _PRESET)
    with prefixing_errors(f"{shown_path(path)}, train"):  # the framework checks the rest
        check(content["train"], {"max_steps" if is_llama else "max-update": COUNT}, others=True)
    with prefixing_errors(shown_path(path)):
        preset = Preset(name=name, **{"checkpoint": "model", **content})
        if preset.l_train not in preset.lengths:
            raise ValueError(f"lengths {preset.lengths} must contain l_train {preset.l_train}")
        if preset.tokens_per_update % preset.l_train:
            raise ValueError(f"tokens_per_update {preset.tokens_per_update} is no multiple of l_train {preset.l_train}")
        if preset.tokens_per_device < preset.l_train:
            raise ValueError(f"tokens_per_device {preset.tokens_per_device} is less than l_train {preset.l_train}")
    return preset


def preset_of(folder: str) -> Preset:
    """The preset of a folder of runs or results: PRESET, or PRESET-seed2 for a single other seed."""
    return load_preset(re.sub(_OTHER_SEED, "", folder))


def load_table(name: str) -> Tuple[str, List[Row]]:
    """Title and rows of the table `name`. Raises ValueError if it does not exist or is invalid."""
    if name not in names("tables"):
        raise ValueError(f"table {name!r} is unknown; accepted are {', '.join(names('tables'))}")
    refuse_table_name("table", name)
    path = CONFIGS / "tables" / f"{name}.yaml"
    content = read_yaml(path)
    with prefixing_errors(shown_path(path)):
        check(content, _EVALUATED_TABLE if "evaluate" in content else _TABLE)
    evaluate = content.get("evaluate", {})
    columns: List[str] = []
    rows: List[Row] = []
    for row, entry in content["rows"].items():
        with prefixing_errors(f"{shown_path(path)}, row {row}"):
            refuse_path("the name", row)
            if re.search(r" seed \d+$", row):
                raise ValueError("a name that ends with a seed is taken by another row's run")
            evaluated_only = isinstance(entry, dict) and "trained" in entry
            is_other = isinstance(entry, dict) and "train" in entry
            check(entry, _EVALUATED_ROW if evaluated_only else {**_ROW, "train": OPTIONS} if is_other else _ROW)
            labels = entry["labels"]
            columns = columns or list(labels)
            check(labels, dict.fromkeys(columns, TEXT))
            for label, text in labels.items():
                if RESERVED_COLUMN.fullmatch(label):
                    raise ValueError(f"the label {label} has the name of another column")
                if text.startswith("d/") and not re.fullmatch("[1-9][0-9]{0,8}", text[2:]):
                    raise ValueError(f"{label} {text!r}: accepted after d/ is a whole number > 0")
            shown = {column: labels[column] for column in columns}
            added = Row(row, shown, entry.get("position", {}), train=entry.get("train", {}), evaluate=evaluate)
            if evaluated_only:
                of = [other for other in rows if other.name == entry["trained"] and not other.trained]
                if not of:
                    raise ValueError(f"trained {entry['trained']!r}: accepted are rows above it that are trained")
                added = replace(of[0], name=row, labels=shown, trained=of[0].name)
                added = replace(added, evaluate={**evaluate, **entry["evaluate"]})
            rows.append(added)
    with prefixing_errors(shown_path(path)):
        refuse_alike(rows)
    return content["title"], rows


def rows_of(table: str) -> List[Row]:
    """The rows of a table, or of one of `JUDGED_SHEETS`: ``longbench`` has tasks, the others Table 1's rows."""
    if table == LONGBENCH:
        return [Row(task, {"task": task}, {}) for task in TASKS]
    return load_table("table1" if table in JUDGED_SHEETS else table)[1]


def refuse_alike(rows: List[Row]) -> None:
    """Raises ValueError if two rows have the same labels."""
    seen: Dict[Tuple[str, ...], str] = {}
    for row in rows:
        first = seen.setdefault(tuple(row.labels.values()), row.name)
        if first != row.name:
            raise ValueError(f"rows {first} and {row.name} have the same labels ({', '.join(row.labels.values())})")


def refuse_path(what: str, name: str) -> None:
    """Raises ValueError unless the name can be a folder's name; a path could leave its parent folder."""
    if name in ("", "..") or Path(name).name != name:
        raise ValueError(f"{what} {name!r} names a folder: it must not be empty, '.' or '..', or contain /")


def find_row(name: str) -> Row:
    """The row `name` of any table, first of those that evaluate as presets say. Raises ValueError if there is none."""
    rows: Dict[str, Row] = {}
    for row in [row for table in names("tables") for row in load_table(table)[1]]:
        rows[row.name] = rows.get(row.name, row) if row.evaluate else row
    if name not in rows:
        raise ValueError(f"row {name!r} is unknown; accepted are {', '.join(rows)}, or options beginning with --")
    return rows[name]


def names(folder: str) -> List[str]:
    return sorted(path.stem for path in (CONFIGS / folder).glob("*.yaml"))
