"""One HTML page of a preset's results: curves, tables, figures, claims, and how they were made.

    wavepos report --preset wikitext2-cpu

Beside each number is the paper's, from the row with the same labels at the same multiple of L_train, and Press et al.'s
(2022) for that method. The page needs no network: plotly's JavaScript and the figures are inside. The same folder gives
the same bytes. The template is report.html (Jinja).
"""

from __future__ import annotations

import base64
import html
import math
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Dict, Hashable, List, NamedTuple, Optional, Set, Tuple

from ..common import commands
from ..common.files import PAPER, ROOT, write_whole
from ..evaluation.inferences import INFERENCES
from . import results
from .configs import load_table, names, preset_of
from .palette import Look, looks_of_methods, methods

if TYPE_CHECKING:
    import pandas as pd

_PLOTTED = ("perplexity", "positions")  # figures that the page replaces by curves
_FIGURES = {".png": "image/png", ".svg": "image/svg+xml"}

Labels = Tuple[str, ...]
Plot = Dict[str, Any]  # what Plotly.newPlot takes


class Cell(NamedTuple):
    """Mean perplexity of the seeds, their standard deviation, published numbers (NaN: none), and details in words.

    lowest: whether it is the lowest of its column, over the seeds that all rows have.
    """

    mean: float
    spread: float
    paper: float
    press: float
    words: str
    lowest: bool

    @property
    def printed(self) -> str:
        return "–" if math.isnan(self.mean) else f"{self.mean:.2f}"


_NO_CELL = Cell(math.nan, math.nan, math.nan, math.nan, "", False)


@dataclass
class Table:
    """blocks: by inference and labels, a cell for each length. runs: by labels, the row's name and its outcome."""

    name: str
    title: str
    label_names: List[str]
    l_train: int
    lengths: List[int]
    blocks: Dict[str, Dict[Labels, List[Cell]]]
    paper_l_train: Optional[int]
    manifest: Dict[str, Any]
    runs: Dict[Labels, Tuple[str, Any]]

    @property
    def has_press(self) -> bool:
        cells = [cell for rows in self.blocks.values() for row in rows.values() for cell in row]
        return not all(math.isnan(cell.press) for cell in cells)


def _paper(name: str, multiples: Set[float]) -> Optional[pd.DataFrame]:
    """The paper's cells of that table, at the L_train for which most of its lengths are these multiples."""
    cells = results.read_cells(PAPER, name)
    if cells is None:
        return None
    published = [cells[cells.l_train == l_train] for l_train in cells.l_train.unique()]
    return max(published, key=lambda of: len(multiples & _multiples(of)))


def _multiples(cells: pd.DataFrame) -> Set[float]:
    return set(cells.sequence_length / cells.l_train)


def _key(cell: Dict[Hashable, Any], label_names: List[str]) -> Tuple[Any, ...]:
    """What a cell shares with the paper's. The number of shifts follows from the scales and the head's width."""
    shared = [cell[label] for label in label_names if label != "num_shifts"]
    return (*shared, cell["inference"], cell["sequence_length"] / cell["l_train"])


def _press(multiples: Set[float]) -> Dict[Tuple[Any, ...], float]:
    """Press et al.'s numbers (see `results.read_press`) at the L_train of `_paper`'s Table 1.

    They are by method, inference and multiples of L_train: the length and the stride.
    """
    table1 = _paper("table1", multiples)
    here = set() if table1 is None else set(table1.l_train)
    return {
        (name, inference, length / l_train, stride / l_train): perplexity
        for (name, inference, l_train, length, stride), perplexity in results.read_press().items()
        if l_train in here
    }


def _words(seeds: pd.DataFrame) -> str:
    """A cell's numbers by seed, and their intervals."""
    words, seeds = [], seeds.dropna(subset=["perplexity"])
    for line in seeds.itertuples():
        one = [f"seed {line.seed}: {line.perplexity:.2f}"] if len(seeds) > 1 else []
        if not math.isnan(line.low):
            one.append(f"95% interval {line.low:.2f} to {line.high:.2f}")
        words.append(", ".join(one))
    return "; ".join(filter(None, words))


def make_table(
    name: str, title: str, cells: pd.DataFrame, paper: Optional[pd.DataFrame], manifest: Dict[str, Any]
) -> Table:
    """A table of cells (see `results.read_cells`). Raises ValueError if the manifest has other rows."""
    label_names = results.labels_of(cells)
    published = [] if paper is None else paper.to_dict("records")
    beside = {_key(cell, label_names): cell["perplexity"] for cell in published}
    of_inference = cells.groupby("inference").stride.transform("max")  # a seed without numbers has no stride
    cells = cells.assign(stride=cells.stride.fillna(of_inference).fillna(0))
    press = _press(_multiples(cells))
    seeds = dict(list(cells.groupby([*label_names, "inference", "sequence_length"], sort=False)))
    blocks: Dict[str, Dict[Labels, List[Cell]]] = {}
    lengths = sorted(int(length) for length in cells.sequence_length.unique())
    rows = list(dict.fromkeys(cells[label_names].itertuples(index=False, name=None)))
    column, keys = ["inference", "sequence_length"], [*label_names, "inference", "sequence_length", "l_train", "stride"]
    alike = results.over_seeds(results.of_common_seeds(cells, label_names), keys)
    lowest = alike[alike["mean"] == alike.groupby(column)["mean"].transform("min")]
    bold = set(lowest[[*label_names, *column]].itertuples(index=False, name=None))
    numbers = results.over_seeds(cells, keys)
    for number in numbers.to_dict("records"):
        labels = tuple(number[label] for label in label_names)
        inference, length = number["inference"], number["sequence_length"]
        row = blocks.setdefault(inference, {}).setdefault(labels, len(lengths) * [_NO_CELL])
        words = _words(seeds[(*labels, inference, length)])
        beside_it = beside.get(_key(number, label_names), math.nan)
        of_press = press.get((number.get("method"), *_key(number, []), number["stride"] / number["l_train"]), math.nan)
        is_lowest = (*labels, inference, length) in bold
        row[lengths.index(length)] = Cell(number["mean"], number["std"], beside_it, of_press, words, is_lowest)
    by_label = {tuple(label.partition(" seed ")[::2]): run for label, run in manifest.get("rows", {}).items()}
    first_seed = next((seed for _, seed in by_label), "")
    runs = {name: run for (name, seed), run in by_label.items() if seed == first_seed}
    if runs and len(runs) != len(rows):
        raise ValueError(
            f"{name}.manifest.json has {len(runs)} rows and {name}.tidy.csv has {len(rows)}: make the table again"
        )
    return Table(
        name=name,
        title=title,
        label_names=label_names,
        l_train=int(cells.l_train.iloc[0]),
        lengths=lengths,
        blocks={inference: blocks[inference] for inference in INFERENCES if inference in blocks},
        paper_l_train=None if paper is None else int(paper.l_train.iloc[0]),
        manifest=manifest,
        runs=dict(zip(rows, runs.items())),
    )


def known_tables() -> Dict[str, str]:
    """The titles of configs/tables by name."""
    return {name: load_table(name)[0] for name in names("tables")}


def read_tables(folder: Path) -> List[Table]:
    """The folder's tables: those that the paper has, others of configs/tables, sweeps.

    Raises ValueError if one cannot be read.
    """
    titles = known_tables()

    def place(name: str) -> Tuple[bool, bool, str]:
        return name not in titles, results.read_cells(PAPER, name) is None, titles.get(name, name)

    tables = []
    for name in sorted(results.table_names(folder), key=place):
        cells, title = results.read_cells(folder, name), titles.get(name, f"Sweep {name}")
        paper = _paper(name, _multiples(cells))
        tables.append(make_table(name, title, cells, paper, results.read_manifest(folder, name)))
    return tables


def _about(run: Any) -> str:
    """A run in one line: its row's options, seed and commit, or why it has no numbers."""
    if isinstance(run, str):
        return run
    options = re.sub(r"^.* --seed \d+ ", "", run["training_command"])  # Run.training_command: the row's come last
    return f"{options}; seed {run['seed']}, commit {run['commit'][:12]}"


def _plot(traces: List[Dict[str, Any]], x_axis: Dict[str, Any], y_axes: List[Dict[str, Any]], l_train: int) -> Plot:
    """Panels below one another over one x axis, with L_train marked. report.html styles them."""
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


def perplexity_plot(table: Table, shown: Dict[str, Look]) -> Plot:
    """Perplexity over length, a panel for each inference, up to twice the highest at L_train."""
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
                    **_line_of(shown[labels[0]]),
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


def positions_plot(losses: pd.DataFrame, shown: Dict[str, Look]) -> Plot:
    """The loss over the position in the sequence, a curve for each row."""
    traces = []
    for name, bins in losses.groupby(losses.row.map(methods()).fillna(losses.row), sort=False):
        traces.append(
            {
                "name": html.escape(name),
                "mode": "lines",
                "x": ((bins.start + bins.stop) / 2).tolist(),
                "y": bins.nll.tolist(),
                "hovertemplate": "position %{x:.0f}: %{y:.3f} nats",
                **_line_of(shown[name]),
            }
        )
    title = f"loss (nats), sequences of {losses.sequence_length.iloc[0]}"
    return _plot(traces, {}, [{"title": {"text": title}}], int(losses.l_train.iloc[0]))


def _line_of(look: Look) -> Dict[str, Any]:
    """A curve's look in plotly's terms."""
    dash = ",".join(f"{length}px" for length in look.dash) or "solid"
    marker = {"size": 5, "symbol": {"triangle": "triangle-up"}.get(look.marker, look.marker or "circle")}
    return {"line": {"color": look.colour, "dash": dash, "width": 2}, "marker": marker}


def _figures(folder: Path) -> Dict[str, str]:
    """The folder's figures by name as data URIs, the smaller of PNG and SVG, without those that the page plots."""
    smallest: Dict[str, Path] = {}
    for path in sorted(folder.glob("*"), key=lambda path: (path.stem, path.stat().st_size)):
        if path.suffix in _FIGURES and path.stem not in _PLOTTED:
            smallest.setdefault(path.stem, path)
    return {
        name: f"data:{_FIGURES[path.suffix]};base64,{base64.b64encode(path.read_bytes()).decode()}"
        for name, path in smallest.items()
    }


def render(preset_name: str, where: Path) -> str:
    """The page of the folder `where`/PRESET; raises ValueError if it or the preset does not exist or is invalid."""
    preset, folder = preset_of(preset_name), where / preset_name
    if not folder.is_dir():
        raise ValueError(f"--preset {preset_name}: {folder} does not exist; run scripts/reproduce.sh first")
    tables = read_tables(folder)
    plots: Dict[str, Plot] = {}
    table1 = next((table for table in tables if table.name == "table1"), None)
    losses = results.read_sheet(folder, "positions")
    others = [] if losses is None else [row for row in losses.row if row not in methods()]
    labels = [label for block in (table1.blocks.values() if table1 else ()) for label, *_ in block]
    shown = looks_of_methods([*labels, *others])
    if table1:
        plots["ours"] = perplexity_plot(table1, shown)
        paper = _paper("table1", {length / table1.l_train for length in table1.lengths})
        plots["paper"] = perplexity_plot(make_table("table1", "Table 1", paper, None, {}), shown)
    if losses is not None:
        plots["positions"] = positions_plot(losses, shown)
    figures = _figures(folder / "figures")
    claims = results.read_claims(folder)
    made = {table.name for table in tables}
    parts = {(title, f"scripts/reproduce.sh {name}"): name in made for name, title in known_tables().items()}
    parts["The paper's claims", "scripts/claims.sh"] = bool(claims)
    parts["Loss over the position", "scripts/figures.sh"] = "positions" in plots
    parts["Figures", "scripts/figures.sh"] = bool(figures)
    import jinja2
    from markupsafe import Markup
    from plotly.offline import get_plotlyjs

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
    parser = commands.parser(__doc__, prog="wavepos report")
    parser.add_argument("--preset", required=True, metavar="P", help="the preset of the results")
    parser.add_argument("--results", type=Path, default=ROOT / "results", metavar="DIR", help="default: results")
    parser.add_argument("--output", type=Path, metavar="FILE", help="default: report.html in the preset's results")
    args = parser.parse_args(arguments)
    commands.require_lab("jinja2", "plotly")
    output = args.output or args.results / args.preset / "report.html"
    try:
        write_whole(output, render(args.preset, args.results))
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(output)
    return 0
