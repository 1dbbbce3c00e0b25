"""One HTML page of what a preset's results folder holds: curves, tables, figures, claims, and how they were made.

    python -m wavepos_fairseq.lab.report --preset wikitext2-cpu

Beside a number stands the paper's, of the row with the same labels at the same length in units of L_train. The page
loads nothing from a network: plotly's JavaScript, which draws the curves, and the figures are inside. The same folder
gives the same bytes. What the page looks like is report.html, a Jinja template.
"""

import base64
import collections
import csv
import html
import itertools
import math
import re
import statistics
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, Iterable, List, NamedTuple, Optional, Set, Tuple

import jinja2
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from ..common import commands
from ..common.files import PAPER, ROOT, read_json, write_whole
from ..evaluation.inferences import INFERENCES
from .runs import load_table, names, preset_of

_CELL = ("inference", "l_train", "sequence_length", "perplexity")
_POSITION = ("row", "l_train", "sequence_length", "start", "stop", "nll")
_NUMBERS = {*_CELL[1:], "seed", "low", "high", *_POSITION[1:]}
# Okabe and Ito's colours, but those that cannot be seen on white or on black.
_COLOURS = ("#8C8C8C", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#0072B2")
_STYLES = [
    {"line": {"color": colour, "dash": dash, "width": 2}, "marker": {"size": 5}}
    for dash in ("solid", "dash", "dot")
    for colour in _COLOURS
]
_PLOTTED = ("perplexity", "positions")  # figures of what the page has curves of
_FIGURES = {".png": "image/png", ".svg": "image/svg+xml"}

Labels = Tuple[str, ...]
Line = Dict[str, Any]
Plot = Dict[str, Any]  # what Plotly.newPlot takes
Styles = Dict[str, Dict[str, Any]]  # of a name's curves, the same in all plots of a page


class Cell(NamedTuple):
    """Mean perplexity of the seeds, their standard deviation and the paper's number (NaN: none), and more in words."""

    mean: float
    spread: float
    paper: float
    words: str

    @property
    def printed(self) -> str:
        return "–" if math.isnan(self.mean) else f"{self.mean:.2f}"


@dataclass
class Table:
    """blocks: by inference and a row's labels, a cell for each length. runs: a row's name, and what came of it."""

    name: str
    title: str
    label_names: List[str]
    l_train: int
    lengths: List[int]
    blocks: Dict[str, Dict[Labels, List[Cell]]]
    paper_l_train: Optional[int]
    manifest: Dict[str, Any]
    runs: Dict[Labels, Tuple[str, Any]]

    def lowest(self, inference: str) -> List[float]:
        """The lowest perplexity of each length."""
        columns = zip(*self.blocks[inference].values())
        return [
            min((cell.mean for cell in column if not math.isnan(cell.mean)), default=math.nan) for column in columns
        ]


def _read(path: Path, required: Iterable[str]) -> List[Line]:
    """The lines of a CSV, their numbers as numbers; ValueError where there are none, or a column is missing."""
    with path.open(newline="", encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    if not lines or not set(required) <= set(lines[0]):
        raise ValueError(f"{path} must have lines with the columns {', '.join(required)}")
    return [{name: float(text or "nan") if name in _NUMBERS else text for name, text in line.items()} for line in lines]


def _paper(name: str, multiples: Set[float]) -> List[Line]:
    """The paper's cells of that table, of the L_train at which most of its lengths are these multiples of it."""
    path = PAPER / f"{name}.csv"
    published: Dict[float, List[Line]] = collections.defaultdict(list)
    for line in _read(path, _CELL) if path.is_file() else []:
        published[line["l_train"]].append(line)
    return max(published.values(), key=lambda lines: len(multiples & _multiples(lines)), default=[])


def _multiples(lines: List[Line]) -> Set[float]:
    return {line["sequence_length"] / line["l_train"] for line in lines}


def _key(labels: Iterable[Tuple[str, str]], inference: str, multiple: float) -> tuple:
    """What a cell shares with the paper's; the number of shifts follows from the scales and the width of a head."""
    return (*(label for label in labels if label[0] != "num_shifts"), inference, multiple)


def _cell(seeds: List[Line], paper: float) -> Cell:
    values = [line["perplexity"] for line in seeds if not math.isnan(line["perplexity"])]
    words = []
    for line in seeds:
        one = [f"seed {line['seed']:g}: {line['perplexity']:.2f}"] if len(seeds) > 1 else []
        if not math.isnan(line.get("low", math.nan)):
            one.append(f"95% interval {line['low']:.2f} to {line['high']:.2f}")
        words.append(", ".join(one))
    spread = statistics.stdev(values) if len(values) > 1 else math.nan
    return Cell(statistics.mean(values) if values else math.nan, spread, paper, "; ".join(filter(None, words)))


def make_table(name: str, title: str, lines: List[Line], paper: List[Line], manifest: Dict[str, Any]) -> Table:
    """A table of tidy cells, its rows in their order; ValueError if it has a cell twice, or the manifest other rows."""
    label_names = [column for column in lines[0] if column not in (*_CELL, *_NUMBERS)]
    lengths = sorted({int(line["sequence_length"]) for line in lines})
    l_train = int(lines[0]["l_train"])
    beside = {}
    for line in paper:
        labels = [(label, line[label]) for label in label_names]
        beside[_key(labels, line["inference"], line["sequence_length"] / line["l_train"])] = line["perplexity"]
    rows: Dict[Labels, Dict[Tuple[str, int], List[Line]]] = {}
    for line in lines:
        labels = tuple(line[label] for label in label_names)
        seeds = rows.setdefault(labels, {}).setdefault((line["inference"], int(line["sequence_length"])), [])
        if line.get("seed") in [other.get("seed") for other in seeds]:
            raise ValueError(f"{name}.tidy.csv has two numbers of {', '.join(labels)} at {line['sequence_length']:g}")
        seeds.append(line)

    def cell(labels: Labels, inference: str, length: int) -> Cell:
        key = _key(zip(label_names, labels), inference, length / l_train)
        return _cell(rows[labels].get((inference, length), []), beside.get(key, math.nan))

    blocks = {
        inference: {
            labels: [cell(labels, inference, length) for length in lengths]
            for labels, row in rows.items()
            if any(inference == of for of, _ in row)
        }
        for inference in INFERENCES
    }
    by_label = {tuple(label.partition(" seed ")[::2]): run for label, run in manifest.get("rows", {}).items()}
    first_seed = next((seed for _, seed in by_label), "")
    runs = {name: run for (name, seed), run in by_label.items() if seed == first_seed}
    if runs and len(runs) != len(rows):
        raise ValueError(
            f"{name}.manifest.json has {len(runs)} rows and {name}.tidy.csv {len(rows)}: make the table again"
        )
    return Table(
        name=name,
        title=title,
        label_names=label_names,
        l_train=l_train,
        lengths=lengths,
        blocks={inference: block for inference, block in blocks.items() if block},
        paper_l_train=int(paper[0]["l_train"]) if paper else None,
        manifest=manifest,
        runs=dict(zip(rows, runs.items())),
    )


def known_tables() -> Dict[str, str]:
    """The titles of configs/tables by name."""
    return {name: load_table(name)[0] for name in names("tables")}


def read_tables(folder: Path) -> List[Table]:
    """Every table of the folder, those of configs/tables first; ValueError where one cannot be read."""
    titles = known_tables()
    found = {path.name[: -len(".tidy.csv")]: path for path in sorted(folder.glob("*.tidy.csv"))}
    tables = []
    for name in sorted(found, key=lambda name: (name not in titles, titles.get(name, name))):
        lines = _read(found[name], _CELL)
        manifest = read_json(folder / f"{name}.manifest.json") or {}
        tables.append(
            make_table(name, titles.get(name, f"Sweep {name}"), lines, _paper(name, _multiples(lines)), manifest)
        )
    return tables


def _about(run: Any) -> str:
    """A run in a line: its row's options, seed and commit, or why there is none."""
    if isinstance(run, str):
        return run
    options = re.sub(r"^.* --seed \d+ ", "", run["training_command"])  # Run.training_command: the row's come last
    return f"{options}; seed {run['seed']}, commit {run['commit'][:12]}"


def _plot(traces: List[Dict[str, Any]], x_axis: Dict[str, Any], y_axes: List[Dict[str, Any]], l_train: int) -> Plot:
    """Panels under one another over one x axis, L_train marked; report.html adds what they look like."""
    numbers = [str(number) if number > 1 else "" for number in range(1, len(y_axes) + 1)]
    layout = {
        "height": 200 + 240 * len(y_axes),
        "grid": {"rows": len(y_axes), "columns": 1, "subplots": [[f"xy{number}"] for number in numbers], "ygap": 0.1},
        "xaxis": x_axis,
        **{f"yaxis{number}": axis for number, axis in zip(numbers, y_axes)},
        "shapes": [
            {"type": "line", "x0": l_train, "x1": l_train, "yref": "paper", "y0": 0, "y1": 1, "line": {"dash": "dot"}}
        ],
    }
    return {"data": traces, "layout": layout}


def perplexity_plot(table: Table, styles: Styles) -> Plot:
    """Perplexity over length, a panel for each inference; what is twice the highest at L_train lies outside."""
    traces = []
    for number, block in enumerate(table.blocks.values(), 1):
        for labels, cells in block.items():
            spread = [0 if math.isnan(cell.spread) else cell.spread for cell in cells]
            traces.append(
                {
                    "name": html.escape(labels[0]),
                    "legendgroup": labels[0],
                    "showlegend": number == 1,
                    "mode": "lines+markers",
                    "x": table.lengths,
                    "y": [cell.mean if math.isfinite(cell.mean) else None for cell in cells],
                    "yaxis": f"y{number}" if number > 1 else "y",
                    "error_y": {"array": spread, "visible": any(spread), "thickness": 1, "width": 3},
                    "text": [" ".join((cell.printed, cell.words)) for cell in cells],
                    "hovertemplate": "%{x} tokens: %{text}",
                    **styles[labels[0]],
                }
            )
    finite = [
        (length, cell.mean)
        for block in table.blocks.values()
        for cells in block.values()
        for length, cell in zip(table.lengths, cells)
        if math.isfinite(cell.mean)
    ]
    means = [mean for _, mean in finite] or [1]
    highest = min(max(means), 2 * max((mean for length, mean in finite if length == table.l_train), default=math.inf))
    y_range = [math.log10(min(means) / 1.02), math.log10(highest * 1.02)]
    ticks = {"tickvals": table.lengths, "ticktext": [str(length) for length in table.lengths]}
    return _plot(
        traces,
        {"type": "log", **ticks},
        [
            {"type": "log", "range": y_range, "nticks": 6, "title": {"text": f"perplexity, {name}"}}
            for name in table.blocks
        ],
        table.l_train,
    )


def positions_plot(lines: List[Line], names: Dict[str, str], styles: Styles) -> Plot:
    """The loss over the position in the sequence; `names` of rows in words."""
    traces = []
    for row in dict.fromkeys(line["row"] for line in lines):
        bins = [line for line in lines if line["row"] == row]
        name = names.get(row, row)
        traces.append(
            {
                "name": html.escape(name),
                "mode": "lines",
                "x": [(line["start"] + line["stop"]) / 2 for line in bins],
                "y": [line["nll"] for line in bins],
                "hovertemplate": "position %{x:.0f}: %{y:.3f} nats",
                **styles[name],
            }
        )
    title = f"loss (nats), sequences of {lines[0]['sequence_length']:g}"
    return _plot(traces, {}, [{"title": {"text": title}}], int(lines[0]["l_train"]))


def _figures(folder: Path) -> Dict[str, str]:
    """The folder's figures by name as data URIs, of each the smaller of PNG and SVG; not what the page plots."""
    smallest: Dict[str, Path] = {}
    for path in sorted(folder.glob("*"), key=lambda path: (path.stem, path.stat().st_size)):
        if path.suffix in _FIGURES and path.stem not in _PLOTTED:
            smallest.setdefault(path.stem, path)
    return {
        name: f"data:{_FIGURES[path.suffix]};base64,{base64.b64encode(path.read_bytes()).decode()}"
        for name, path in smallest.items()
    }


def render(preset_name: str, results: Path) -> str:
    """The page of results/PRESET; ValueError where there is no such preset or folder, or a file in it is not sound."""
    preset, folder = preset_of(preset_name), results / preset_name
    if not folder.is_dir():
        raise ValueError(f"--preset {preset_name}: there is no folder {folder}; scripts/reproduce.sh makes it")
    tables = read_tables(folder)
    styles: Styles = collections.defaultdict(itertools.cycle(_STYLES).__next__)
    plots: Dict[str, Plot] = {}
    table1 = next((table for table in tables if table.name == "table1"), None)
    if table1:
        plots["ours"] = perplexity_plot(table1, styles)
        paper = _paper("table1", {length / table1.l_train for length in table1.lengths})
        plots["paper"] = perplexity_plot(make_table("table1", "Table 1", paper, [], {}), styles)
    if (folder / "positions.csv").is_file():
        names = {row: labels[0] for labels, (row, _) in table1.runs.items()} if table1 else {}
        plots["positions"] = positions_plot(_read(folder / "positions.csv", _POSITION), names, styles)
    figures = _figures(folder / "figures")
    claims = read_json(folder / "claims.json")
    made = {table.name for table in tables}
    parts = {(title, f"scripts/reproduce.sh {name}"): name in made for name, title in known_tables().items()}
    parts["The paper's claims", "scripts/claims.sh"] = bool(claims)
    parts["Loss over the position", "scripts/figures.sh"] = "positions" in plots
    parts["Figures", "scripts/figures.sh"] = bool(figures)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(str(Path(__file__).parent)),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["about"] = _about
    return environment.get_template("report.html").render(
        preset=preset,
        tables=tables,
        plots=plots,
        figures=figures,
        claims=claims,
        missing=[part for part, there in parts.items() if not there],
        plotly=Markup(get_plotlyjs()) if plots else "",
    )


def main(arguments=None) -> int:
    parser = commands.parser(__doc__, prog="python -m wavepos_fairseq.lab.report")
    parser.add_argument("--preset", required=True, metavar="P", help="whose results")
    parser.add_argument("--results", type=Path, default=ROOT / "results", metavar="DIR", help="default: results")
    parser.add_argument("--output", type=Path, metavar="FILE", help="default: report.html in the preset's results")
    args = parser.parse_args(arguments)
    output = args.output or args.results / args.preset / "report.html"
    try:
        write_whole(output, render(args.preset, args.results))
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
