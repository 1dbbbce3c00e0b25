"""Judges the paper's statements (configs/claims.yaml) on the tables of a results folder.

    wavepos claims --preset wikitext2-cpu

A claim is one inequality: for each of its rows and lengths, the ratio of the row's perplexity to another one is at
most, or at least, a number. It holds, does not hold, or lies within the spread: then the ratio's 95% interval holds the
number (see `comparisons`; without an interval the ratio alone decides). A claim whose table or row is missing is not
judged. Nothing is trained or evaluated here, and nothing is compared with the paper's numbers: the paper is a results
folder, too (``--preset paper``). The comparison of each two rows is written to pairs.csv, and what longer windows gain
to context.csv.
"""

from __future__ import annotations

import math
import statistics
import sys
from collections import Counter
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Dict, Iterable, List, Mapping, Sequence

from ..common import commands
from ..common.errors import prefixing_errors
from ..common.files import CONFIGS, PAPER, ROOT, shown_path
from ..evaluation.inferences import INFERENCES
from . import results
from .configs import JUDGED_SHEETS, names, read_yaml, rows_of

if TYPE_CHECKING:  # imports PyTorch, which help does not need
    from .comparisons import Cell, Cells

VERDICTS = ("does not hold", "within the spread", "holds")  # with several comparisons, the first of these decides
LENGTHS = {
    "within": lambda lengths, l_train: [length for length in lengths if length <= l_train],
    "l_train": lambda lengths, l_train: [length for length in lengths if length == l_train],
    "beyond": lambda lengths, l_train: [length for length in lengths if length > l_train],
    "longest": lambda lengths, l_train: [length for length in lengths if length > l_train][-1:],
    "every": lambda lengths, l_train: lengths,
}


@dataclass(frozen=True)
class Claim:
    """An entry of configs/claims.yaml; the head of that file explains the keys."""

    id: str
    statement: str
    source: str
    table: str
    rows: List[str]
    at: str
    labels: Dict[str, List[str]] = field(default_factory=dict)
    inference: str = "full"
    over: Dict[str, Any] = field(default_factory=dict)
    at_least: float = -math.inf
    at_most: float = math.inf

    @property
    def bounds(self) -> str:
        words = {"at least": self.at_least, "at most": self.at_most}
        return ", ".join(f"{word} {bound:g}" for word, bound in words.items() if math.isfinite(bound))


def load_claims(path: Path) -> List[Claim]:
    """The claims of a YAML file. Raises ValueError if it is invalid or names something that does not exist."""
    claims = []
    for name, entry in read_yaml(path).items():
        with prefixing_errors(f"{shown_path(path)}, claim {name}"):
            claims.append(_claim(name, entry))
    return claims


def _claim(name: str, entry: Any) -> Claim:
    if not isinstance(entry, dict):
        raise ValueError(f"expected a mapping, not {entry!r}")
    accepted = [key.name for key in fields(Claim) if key.name != "id"]
    _accept("key", entry, accepted)
    missing = [key for key in ("statement", "source", "table", "rows", "at") if key not in entry]
    if missing:
        raise ValueError(f"missing: {', '.join(missing)}")
    kinds = {"statement": str, "source": str, "table": str, "rows": list, "labels": dict, "over": dict}
    _are("", entry, kinds)
    over, labels = entry.get("over", {}), entry.get("labels", {})
    _accept("key of over", over, ["rows", "at", "inference"])
    _are("over: ", over, {"rows": list})
    _are("labels: ", labels, dict.fromkeys(labels, list))
    bounds = [entry[key] for key in ("at_least", "at_most") if key in entry]
    if not bounds or not all(isinstance(bound, (int, float)) and math.isfinite(bound) for bound in bounds):
        raise ValueError("at_least, at_most or both must be given, as numbers")
    _accept("length", [entry["at"], *([over["at"]] if "at" in over else [])], list(LENGTHS))
    _accept("inference", [of["inference"] for of in (entry, over) if "inference" in of], INFERENCES)
    rows = rows_of(entry["table"])
    _accept("row", [*entry["rows"], *over.get("rows", [])], [row.name for row in rows])
    _accept("label", labels, list(rows[0].labels))
    for listed in (entry["rows"], over.get("rows", [])):
        if len(set(listed)) < len(listed):
            raise ValueError(f"rows: a row appears twice in {', '.join(listed)}")
    return Claim(name, **entry)


def _are(where: str, given: Mapping[str, Any], kinds: Mapping[str, type]) -> None:
    for key, kind in kinds.items():
        if not isinstance(given.get(key, kind()), kind):
            raise ValueError(f"{where}{key}: expected a {kind.__name__}, not {given[key]!r}")


def _accept(what: str, given: Iterable[str], accepted: Sequence[str]) -> None:
    unknown = [word for word in given if word not in accepted]
    if unknown:
        raise ValueError(f"{what} {unknown[0]!r} is unknown; accepted are {', '.join(accepted)}")


def judge(claim: Claim, cells: Cells, l_train: int) -> Dict[str, Any]:
    """The verdict and its numbers, the deciding comparison first; or the reason why the claim is not judged."""
    lengths = sorted({length for trained, _, _, length in cells if trained == l_train})
    over, inferences = claim.over, (claim.inference, claim.over.get("inference", claim.inference))
    pairs = [
        ((l_train, inferences[0], row, length), (l_train, inferences[1], other, other_length))
        for row in claim.rows
        for length in LENGTHS[claim.at](lengths, l_train)
        for other in over.get("rows", [row])
        for other_length in (LENGTHS[over["at"]](lengths, l_train) if "at" in over else [length])
    ]
    found = {where: cells.get(where, {}) for pair in pairs for where in pair}
    missing = dict.fromkeys(row for (_, _, row, _), seeds in found.items() if not seeds)
    apart = [f"{of[2]} and {to[2]} with one seed" for of, to in pairs if not found[of].keys() & found[to].keys()]
    if apart or not pairs:
        labels = " and ".join(f"{name} {' or '.join(texts)}" for name, texts in claim.labels.items())
        nothing = f"any length that is {claim.at}" if claim.rows else f"any row with {labels}"
        what = ", ".join(missing) or next(iter(apart), nothing)
        where = f"{' and '.join(dict.fromkeys(inferences))}, L_train {l_train}"
        return {"verdict": "not judged", "reason": f"{claim.table} has no numbers ({where}) of {what}"}
    numbers = []
    for of, to in pairs:
        beside = {"over_row": to[2], "over_length": to[3]} if over else {}
        told = _compare(claim, found[of], found[to] if over else {})
        numbers.append({"row": of[2], "sequence_length": of[3], **beside, **told})
    numbers.sort(key=lambda number: (VERDICTS.index(number["verdict"]), number["margin"]))
    return {"verdict": numbers[0]["verdict"], "numbers": numbers}


def _compare(claim: Claim, of: Dict[int, Cell], over: Dict[int, Cell]) -> Dict[str, Any]:
    """The ratio over the seeds, its interval, its margin to the claim's bounds, and the verdict."""
    from .comparisons import compare

    told = compare(of, over)
    several = over and len(told.seeds) > 1  # their ratio is one of geometric means
    mean = statistics.geometric_mean if several else statistics.mean
    if claim.at_least <= told.low and told.high <= claim.at_most:
        verdict = "holds"
    else:
        outside = told.high < claim.at_least or told.low > claim.at_most
        verdict = "does not hold" if outside else "within the spread"
    values = {}
    for prefix, cells in (("", of), ("over_", over)):
        if cells:
            losses = [cells[seed].losses for seed in told.seeds]
            bits = [found.bits_per_character for found in losses if found and found.bits_per_character]
            values[f"{prefix}value"] = mean(cells[seed].value for seed in told.seeds)
            values.update({f"{prefix}bits_per_character": statistics.mean(bits)} if bits else {})
    return {
        **values,
        **told._asdict(),
        "margin": min(claim.at_most - told.ratio, told.ratio - claim.at_least),
        "verdict": verdict,
    }


def with_labels(claim: Claim, folder: Path) -> Claim:
    """The claim on those of its rows that have its labels in a results folder."""
    from .comparisons import load_labels

    if not claim.labels:
        return claim
    of, wanted = load_labels(folder, claim.table), claim.labels.items()
    rows = [row for row in claim.rows if row in of and all(of[row][name] in texts for name, texts in wanted)]
    return replace(claim, rows=rows)


def judge_all(claims: List[Claim], folder: Path) -> List[Dict[str, Any]]:
    """The claims, judged on a results folder once for each L_train of their table (the paper's have two).

    Of a row that TABLE-seeds has, too, the numbers there are taken, which are of more seeds.
    """
    from .comparisons import load_cells

    cells = {table: load_cells(folder, table) for table in {claim.table for claim in claims}}
    for table, of_table in cells.items():
        if f"{table}-seeds" in names("tables"):
            of_table.update(load_cells(folder, f"{table}-seeds"))
    judged = []
    for claim in claims:
        about = {key: getattr(claim, key) for key in ("id", "statement", "source", "table", "bounds")}
        fitting = with_labels(claim, folder)
        for l_train in sorted({l_train for l_train, *_ in cells[claim.table]}):
            judged.append({**about, "l_train": l_train, **judge(fitting, cells[claim.table], l_train)})
        if not cells[claim.table]:
            reason = f"there is no {claim.table}.csv in this results folder"
            judged.append({**about, "l_train": None, "verdict": "not judged", "reason": reason})
    return judged


def markdown(judged: List[Dict[str, Any]], title: str, without: List[str]) -> str:
    """A line for each judgement, with the deciding numbers. without: the tables that lack the losses of stretches."""
    counts = Counter(judgement["verdict"] for judgement in judged)
    deciding = [(judgement["verdict"], number) for judgement in judged for number in judgement.get("numbers", [])[:1]]
    unknown = Counter(verdict for verdict, number in deciding if number["known_by"] == results.UNKNOWN)
    shown = [
        f"{verdict}: {counts[verdict]}" + (f" ({unknown[verdict]} without an interval)" if unknown[verdict] else "")
        for verdict in (*reversed(VERDICTS), "not judged")
    ]
    lines = [
        f"# {title}",
        "",
        ", ".join(shown) + ".",
        "A line has the numbers of the comparison that decides: the one nearest to the bound or, if the claim does not",
        "hold, farthest on the wrong side of it; of several seeds the geometric means and their ratio. It ends with",
        "how many of the comparisons agree (claims.json lists all). Of characters, perplexity is per word, with bits",
        "per character beside it. In square brackets is the 95% interval of the ratio, and after it what it is of: the",
        "text and the seeds, paired; the text alone, with one seed; the seeds alone, or the two texts as if they were",
        "different ones, where the losses of stretches are not kept. If none is known, the two numbers decide, however",
        "close they are.",
        *(f"{table} has no stretches.npz: it is published, or was made before 0.4." for table in without),
        "",
        "| claim | L_train | verdict | numbers |",
        "|---|---|---|---|",
    ]
    for judgement in judged:
        about = f"{judgement['statement']} ({judgement['source']})"
        why = judgement.get("reason") or _deciding(judgement["numbers"], judgement["bounds"])
        lines.append(f"| {about} | {judgement['l_train'] or '-'} | **{judgement['verdict']}** | {why} |")
    return "\n".join(lines) + "\n"


def _deciding(numbers: List[Dict[str, Any]], bounds: str) -> str:
    number, agree = numbers[0], sum(number["verdict"] == numbers[0]["verdict"] for number in numbers)
    known_by = number["known_by"] + (f", {len(number['seeds'])} seeds" if len(number["seeds"]) > 1 else "")
    interval = (
        "(no interval)" if known_by == results.UNKNOWN else f"[{number['low']:.4f}, {number['high']:.4f}] ({known_by})"
    )
    text = f"{number['row']} at {number['sequence_length']}: "
    if "over_row" in number:
        shown = [
            f"{number[f'{of}value']:.2f}" + (f" ({number[bits]:.3f} bits)" if bits in number else "")
            for of, bits in (("", "bits_per_character"), ("over_", "over_bits_per_character"))
        ]
        text = f"{number['row']} {shown[0]} at {number['sequence_length']}, "
        text += f"{number['over_row']} {shown[1]} at {number['over_length']}: "
    text += f"{number['ratio']:.4f} {interval}, claimed {bounds}"
    return f"{text}; {agree} of {len(numbers)}"


def main(arguments=None) -> int:
    parser = commands.parser(__doc__, prog="wavepos claims")
    parser.add_argument("--preset", required=True, help="the results folder in --results, or paper")
    parser.add_argument("--results", type=Path, default=ROOT / "results", help="tables' folder (default: results)")
    args = parser.parse_args(arguments)
    folder = args.results / args.preset
    from .comparisons import context, pairs

    try:
        if not folder.is_dir() and args.preset != PAPER.name:
            raise ValueError(f"--preset {args.preset}: {folder} does not exist; run scripts/reproduce.sh first")
        judged = judge_all(load_claims(CONFIGS / "claims.yaml"), folder)
        about = dict.fromkeys(judgement["table"] for judgement in judged if judgement["verdict"] != "not judged")
        tables = [table for table in about if table not in JUDGED_SHEETS]
        kept = {table for table in names("tables") if results.table_files(folder, table)[4].is_file()}
        from_seeds = {table for table in tables if f"{table}-seeds" in kept} - {*results.table_names(folder)}
        without = [table for table in tables if table not in kept | from_seeds]
        text = markdown(judged, f"The paper's statements, judged on {args.preset}", without)
        results.write_claims(folder, judged, text)
        for sheet, made in (("pairs", pairs(folder)), ("context", context(folder))):
            if len(made):
                results.write_sheet(folder, sheet, made)
            else:  # an older sheet would be of other tables
                results.sheet_file(folder, sheet).unlink(missing_ok=True)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(text)
    return 0
