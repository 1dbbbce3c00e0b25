"""Draws trained models: perplexities from a preset's tables, and curves and attention maps from its checkpoints.

The figures go to RESULTS/PRESET/figures, as SVG and PNG, in the style of `style`:

- perplexity, perplexity-table3: perplexity over length, from RESULTS/PRESET/table1.tidy.csv and table3.tidy.csv. With
  several seeds, the curve is their mean, in a band of one standard deviation to either side, where it is in view.
- pairs: of each two rows of Table 1, which has the lower perplexity, from RESULTS/PRESET/pairs.csv.
- context: what longer windows gain in sliding-window inference, from RESULTS/PRESET/context.csv.
- positions: the loss over the position in sequences of 5 L_train, also written to RESULTS/PRESET/positions.csv.
- receptive-field: how far each head looks in such sequences, also written to RESULTS/PRESET/attention.csv.
- longbench: what one model scores above another on LongBench, from RESULTS/PRESET/longbench.csv.
- growth: the ratio of the perplexities at the longest length and at L_train over the tokens trained on, from the
  checkpoints that the runs kept, also written to RESULTS/PRESET/growth.csv.
- recall: how often a key's value is found, over the distance, where the corpus is recall, also written to
  RESULTS/PRESET/recall.csv.
- wavelets: the scales and shifts of wavelets by layer, where they are learned, also written to
  RESULTS/PRESET/wavelets.csv.
- attention-ROW: the attention weights of a row's first and last layer, in two colours as in the paper's Figures 2, 3
  and 8. They cover the first 2 L_train tokens of the validation set or, with ``--text``, a text; the axes of a short
  text show its tokens, as in Figure 7.

The preset ``paper`` means the paper's own tables, which have perplexities only. A checkpoint given by ``--path`` is one
row, named after its folder; its results folder is RESULTS/ROW.
"""

from __future__ import annotations

import argparse
import functools
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Callable, Collection, Iterator, List, Mapping, Optional, Tuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from ...common import commands
from ...common.files import PAPER, ROOT, refuse_unwritable
from ...data.characters import spelled_out
from ...data.tokens import subword_segmenter, wikitext_tokenizer
from ...evaluation import probes
from ...evaluation.longbench import TASKS
from ...evaluation.perplexity import inputs_of
from ...plugin.streams import unit_of
from .. import growth, learned, recall, results
from ..configs import LONGBENCH, Preset, load_table, preset_of
from ..palette import COLOURS, looks, looks_of_methods, methods, names_of_rows
from ..recall import Finished
from .command import GROWTH, MAP, RECALL, WAVELETS
from .style import WIDTH, in_style, line_of, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ...plugin.checkpoint import FairseqScorer

PERPLEXITY = {  # the table, the inference, and the columns of the panels and of the curves
    "perplexity": ("table1", None, "inference", "method"),
    "perplexity-table2": ("table2", None, "inference", "method"),
    "perplexity-table3": ("table3", "full", "wavelet", "scale_exponents"),
    "perplexity-combinations": ("combinations", "sliding", "first", "second"),
    "perplexity-beyond": ("beyond", None, "inference", "method"),
}
DEFAULT_MAPS = ("alibi", "ricker", "rope-10k", "nope")
NEAR_1 = 0.1  # nats by which a ratio of perplexities may differ from 1 and still be drawn on a linear scale
RATIOS = (0.5, 0.7, 0.8, 0.9, 0.95, 1, 1.05, 1.1, 1.2, 1.5, 2, 3, 10, 100, 10000)  # on the axis
BROKEN = 1.35  # a panel ends at this many times the best method's perplexity at its worst length
MOST_TOKENS = 64  # that are readable on an axis; a longer text has numbers there
L_TRAIN = "$L_{train}$"
COMBINED = "attention-combinations"  # the sheet


def _mark_l_train(axes, l_train: int) -> None:
    axes.axvline(l_train, color="0.6", linestyle="-", linewidth=0.8, zorder=0)


def _legend(figure: Figure, title: Optional[str] = None) -> None:
    """Adds a legend above all panels that lists each curve once."""
    curves = {label: handle for axes in figure.axes for handle, label in zip(*axes.get_legend_handles_labels())}
    for columns in (3, 2, 1):
        legend = figure.legend(curves.values(), curves.keys(), loc="outside upper center", ncols=columns, title=title)
        if columns == 1 or legend.get_window_extent().width <= figure.bbox.width:
            return
        legend.remove()


@in_style
def draw_perplexity(cells: pd.DataFrame, panel: str, curve: str) -> Figure:
    """Perplexity over the length of the sequence: a panel for each value of the column `panel` and L_train.

    cells: a table's tidy CSV, or lines of it. A panel ends at BROKEN times the best method's perplexity at its worst
    length; the curves of methods that break leave it at the top. Raises ValueError if two rows would share a curve.
    """
    from matplotlib.ticker import NullLocator

    cells = cells.dropna(subset=["perplexity"])
    alike = cells[cells.duplicated([panel, curve, "l_train", "sequence_length", *cells.columns.intersection(["seed"])])]
    if len(alike):
        raise ValueError(f"two rows have the {panel} {alike[panel].iloc[0]} and the {curve} {alike[curve].iloc[0]}")
    cells = results.of_common_seeds(cells, [panel, curve])
    panels = list(cells.groupby([panel, "l_train"], sort=False))
    shown = (looks_of_methods if curve == "method" else looks)(cells[curve])
    rows = -(-len(panels) // 2)
    figure = new_figure(3.6 * rows + 0.25 * -(-len(shown) // 3))
    grid = figure.subplots(rows, 2, squeeze=False).flat
    for axes, ((name, l_train), lines) in zip(grid, panels):
        over_seeds = results.over_seeds(lines.sort_values("sequence_length"), [curve, "sequence_length"])
        over_seeds = over_seeds.set_index([curve, "sequence_length"])
        mean, deviation = over_seeds["mean"], over_seeds["std"]
        best = mean.groupby("sequence_length").min()
        top = min(1.02 * mean.max(), BROKEN * best.max())
        for label in lines[curve].unique():
            axes.plot(mean[label], label=label, **line_of(shown[label]))
            if deviation[label].notna().any():
                low, high = mean[label] - deviation[label], mean[label] + deviation[label]
                band = dict(color=shown[label].colour, alpha=0.2, linewidth=0)
                axes.fill_between(mean[label].index, low, high, where=mean[label] <= top, **band)
        axes.set_xscale("log", base=2)
        axes.set_xticks(best.index, best.index, rotation=45)
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set(title=f"{name}, {L_TRAIN} = {l_train}")
        axes.set_ylim(0.98 * mean.min(), top)
        _mark_l_train(axes, l_train)
    for axes in grid[len(panels) :]:
        axes.remove()
    figure.supxlabel("length of the sequence (tokens)")
    figure.supylabel("perplexity")
    _legend(figure, title=curve.replace("_", " "))
    return figure


@in_style
def draw_pairs(pairs: pd.DataFrame) -> Figure:
    """Who is ahead, from Table 1's lines of pairs.csv, whole sequences: a panel for L_train and for the longest length.

    A square is the perplexity of its row over that of its column; a dot in it says that the two are not told apart.
    """
    pairs = pairs[(pairs.table == "table1") & (pairs.inference == "full")]
    rows = list(dict.fromkeys([*pairs.row, *pairs.other]))
    lengths = sorted(pairs.sequence_length.unique())
    figure = new_figure(1.6 + 0.28 * len(rows) * len(lengths), width=1.02 * WIDTH)
    panels = figure.subplots(len(lengths), 1, squeeze=False).ravel()
    for axes, length in zip(panels, lengths):
        percent = np.full((len(rows), len(rows)), np.nan)
        for line in pairs[pairs.sequence_length == length].itertuples():
            one, other = rows.index(line.row), rows.index(line.other)
            percent[one, other], percent[other, one] = 100 * (line.ratio - 1), 100 * (1 / line.ratio - 1)
            if not isinstance(line.ahead, str) or not line.ahead:
                axes.plot([one, other], [other, one], ".", color="0.2", markersize=6)
        image = axes.imshow(percent, vmin=-10, vmax=10, aspect="auto")
        names = [methods().get(row, row) for row in rows]
        last = length == lengths[-1]
        axes.set_xticks(range(len(rows)), names if last else [], rotation=45, ha="right", rotation_mode="anchor")
        axes.set_yticks(range(len(rows)), names)
        axes.tick_params(length=0)
        axes.set_title(f"{length} tokens" + (f" = {L_TRAIN}" if length == pairs.l_train.iloc[0] else ""))
    bar = figure.colorbar(image, ax=list(panels), extend="both", shrink=0.5)
    bar.set_label("perplexity of the row over the column's (%)\n• not told apart (95 %)")
    return figure


@in_style
def draw_context(gains: pd.DataFrame) -> Figure:
    """What longer windows gain, from Table 1's lines of context.csv: the mean over the seeds, in its 95% interval."""
    gains = gains[gains.table == "table1"]
    figure = new_figure(5.2)
    axes = figure.subplots()
    l_train = gains.l_train.iloc[0]
    windows = sorted(gains.window.unique())
    names = gains.row.map(methods()).fillna(gains.row)
    shown = looks_of_methods(names)
    for name, lines in gains.groupby(names, sort=False):
        mean = lines[lines.seed.isna()] if lines.seed.isna().any() else lines
        across, up = [l_train, *mean.window], [0.0, *mean.gain]
        axes.plot(across, up, label=name, **line_of(shown[name]))
        axes.fill_between(across, [0, *mean.low], [0, *mean.high], color=shown[name].colour, alpha=0.2, linewidth=0)
    axes.axhline(0, color="0.6", linestyle="-", linewidth=0.8, zorder=0)
    axes.set_yscale("symlog", linthresh=0.01)
    ticks = [-1, -0.1, -0.01, 0, 0.01, 0.1]
    axes.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.set_xticks([l_train, *windows], [f"{l_train}\n= {L_TRAIN}", *map(str, windows)])
    axes.set(xlabel="window (tokens)", ylabel=f"gain over windows of {L_TRAIN} (nats per token)")
    _legend(figure)
    return figure


@in_style
def draw_positions(losses: pd.DataFrame) -> Figure:
    """The loss over the position in a sequence, from the lines of positions.csv.

    Like those of `draw_perplexity`, the panel ends at log BROKEN above the best method's highest loss.
    """
    figure = new_figure(5.0)
    axes = figure.subplots()
    names = losses.row.map(methods()).fillna(losses.row)
    shown = looks_of_methods(names)
    for name, line in losses.groupby(names, sort=False):
        middle = (line.start + line.stop) / 2
        axes.plot(middle, line.nll, label=name, **line_of(shown[name]), markevery=3, linewidth=1.4)
    highest = min(losses.nll.max() + 0.05, losses.groupby("start").nll.min().max() + math.log(BROKEN))
    l_train, length = losses.l_train[0], losses.sequence_length[0]
    _mark_l_train(axes, l_train)
    ticks = range(0, length + 1, l_train)
    axes.set_xticks(ticks, [f"{tick}\n= {L_TRAIN}" if tick == l_train else str(tick) for tick in ticks])
    axes.set(xlabel="position in the sequence (tokens)", ylabel="loss (nats per token)")
    axes.set(xlim=(0, length), ylim=(losses.nll.min() - 0.05, highest))
    _legend(figure)
    return figure


@in_style
def draw_receptive_field(heads: pd.DataFrame) -> Figure:
    """How far each head looks, from the lines of attention.csv: a digit for each head, layers below one another.

    Of several seeds a row's first is drawn, because heads of the same number have nothing in common.
    """
    from matplotlib.ticker import NullLocator

    heads = heads[heads.seed == heads.groupby("row").seed.transform("min")]
    rows = {row: place for place, row in enumerate(heads.row.unique())}
    num_layers, num_heads, l_train = heads.layer.max(), heads["head"].max(), heads.l_train.iloc[0]
    height = min(0.3 * num_layers, 1.2, 18 / len(rows))  # inches of a row
    figure = new_figure(1.3 + height * len(rows))
    panels = figure.subplots(1, 2, sharey=True)
    for axes, column in zip(panels, ("lag95", "beyond")):
        for line in heads.itertuples():
            within_row = (line.layer - 1 + (line.head - 0.5) / num_heads) / num_layers - 0.5
            style = {"color": COLOURS[(line.layer - 1) % 7], "marker": f"${line.head}$", "linewidth": 0.4}
            place = rows[line.row] + 0.9 * within_row
            axes.scatter(getattr(line, column), place, s=min(45, 38 * height), clip_on=False, **style)
        for boundary in range(1, len(rows)):
            axes.axhline(boundary - 0.5, color="0.85", linestyle="-", linewidth=0.8)
        axes.tick_params(axis="y", length=0)
    lags, shares = panels
    lags.set_xscale("symlog", base=2, linthresh=1)
    ticks = [l_train * 4.0**power for power in range(-3, 2)]
    lags.set_xticks(ticks, [f"{tick:g}" for tick in ticks], rotation=45)
    lags.xaxis.set_minor_locator(NullLocator())
    lags.set(xlabel="smallest lag within which lie\n95 % of the attention (tokens)")
    lags.set_xlim(0.8 * min(heads.lag95.min(), l_train) - 0.2, heads.sequence_length.iloc[0])
    _mark_l_train(lags, l_train)
    names = names_of_rows(rows)
    lags.set_yticks(list(rows.values()), [names.get(row, row) for row in rows])
    lags.set_ylim(len(rows) - 0.5, -0.5)
    shares.set(xlabel=f"share of the attention beyond\n{L_TRAIN} = {l_train} tokens", xlim=(-0.03, 1))
    figure.suptitle(f"queries beyond {L_TRAIN}: heads by number, layers 1 to {num_layers} from above", fontsize=12)
    return figure


@in_style
def draw_growth(lines: pd.DataFrame) -> Figure:
    """The ratio of the perplexities at the longest length and at L_train, and the latter, over the tokens trained on.

    lines: of growth.csv, drawn with the 95% intervals of the ratios; each seed is a curve. The axis of the ratio is
    linear within NEAR_1 nats of 1, and logarithmic beyond.
    """
    from matplotlib.ticker import LogLocator, NullLocator

    figure = new_figure(7.4)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    l_train, longest = lines.l_train.iloc[0], lines.sequence_length.max()
    shown = looks_of_methods(lines.row.map(methods()).fillna(lines.row))
    for (row, _), run in lines.groupby(["row", "seed"], sort=False):
        name = methods().get(row, row)
        near, far = run[run.sequence_length == l_train], run[run.sequence_length == longest]
        above.plot(far.trained_tokens, np.log(far.ratio), label=name, **line_of(shown[name]))
        low, high, colour = np.log(far.low), np.log(far.high), shown[name].colour
        above.fill_between(far.trained_tokens, low, high, color=colour, alpha=0.2, linewidth=0)
        below.plot(near.trained_tokens, near.perplexity, label=name, **line_of(shown[name]))
    above.axhline(0, color="0.6", linestyle="-", linewidth=0.8, zorder=0)
    above.set_yscale("symlog", linthresh=NEAR_1)
    bottom, top = above.get_ylim()
    above.set_ylim(min(bottom, -NEAR_1 / 2), max(top, NEAR_1 / 2))  # early, all ratios are 1 to many digits
    inside = [ratio for ratio in RATIOS if above.get_ylim()[0] <= math.log(ratio) <= above.get_ylim()[1]]
    above.set_yticks(np.log(inside), [f"{ratio:g}" for ratio in inside])
    above.yaxis.set_minor_locator(NullLocator())
    below.set_xscale("log")
    below.set_yscale("log")
    for axis, unit in ((below.xaxis, 1e6), (below.yaxis, 1)):
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter(lambda value, _, unit=unit: f"{value / unit:,.6g}")
        axis.set_minor_locator(NullLocator())
    above.set(ylabel=f"perplexity at {longest} tokens\nover that at {L_TRAIN} = {l_train}")
    below.set(ylabel=f"perplexity\nat {L_TRAIN} = {l_train}", xlabel="tokens trained on (millions)")
    _legend(figure)
    return figure


@in_style
def draw_recall(lines: pd.DataFrame) -> Figure:
    """The share of right answers over the distance, from the lines of recall.csv, with its 95% interval.

    A panel has the sequences of L_train, another the longer ones. Each seed is a curve.
    """
    from matplotlib.ticker import NullLocator, PercentFormatter

    figure = new_figure(4.6)
    l_train = lines.l_train.iloc[0]
    panels = list(lines.groupby("sequence_length"))
    names = lines.row.map(methods()).fillna(lines.row)
    shown = looks_of_methods(names)
    every = figure.subplots(1, len(panels), sharey=True, squeeze=False, width_ratios=(2, 3)[: len(panels)])[0]
    for axes, (length, of_length) in zip(every, panels):
        for (row, _), run in of_length.groupby(["row", "seed"], sort=False):
            name = methods().get(row, row)
            middle = np.sqrt(run.start * (run.stop - 1))
            axes.plot(middle, run.accuracy, label=name, **line_of(shown[name]))
            axes.fill_between(middle, run.low, run.high, color=shown[name].colour, alpha=0.2, linewidth=0)
        if length > l_train:
            _mark_l_train(axes, l_train)
        axes.set_xscale("log", base=2)
        ticks = [2**power for power in range(1, int(length).bit_length()) if 2**power <= length]
        axes.set_xticks(ticks, ticks)
        axes.xaxis.set_minor_locator(NullLocator())
        of = f"sequences of {length} tokens"
        axes.set_title(f"{of} = {L_TRAIN}" if length == l_train else f"{of}, from {l_train} on")
    every[0].set(ylim=(0, 1.02), ylabel="right answers")
    every[0].yaxis.set_major_formatter(PercentFormatter(1))
    figure.supxlabel("distance to the key's last pair (tokens)")
    _legend(figure)
    return figure


@in_style
def draw_wavelets(lines: pd.DataFrame) -> Figure:
    """Scales and shifts by layer, from the lines of wavelets.csv: a curve for each one and seed.

    Dashed is what they were before training. A row has a panel for its scales, on a logarithmic axis, and one for its
    shifts, where it learns them.
    """
    from matplotlib.ticker import MaxNLocator, NullLocator

    rows = list(lines.row.unique())
    figure = new_figure(1.0 + 2.6 * len(rows))
    grid = figure.subplots(len(rows), 2, squeeze=False)
    for row, panels in zip(rows, grid):
        for kind, axes in zip(("scale", "shift"), panels):
            of_panel = lines[(lines.row == row) & (lines.kind == kind)]
            if of_panel.empty:
                axes.set_axis_off()
                continue
            if kind == "scale":
                axes.set_yscale("log", base=2)
                axes.yaxis.set_minor_locator(NullLocator())
            for (number, _), curve in of_panel.groupby(["number", "seed"]):
                colour = COLOURS[(number - 1) % 7]
                axes.axhline(curve.before.iloc[0], color=colour, linestyle="--", linewidth=0.8)
                axes.plot(curve.layer, curve.after, color=colour, linestyle="-", marker="o", markersize=4)
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            axes.set(title=row, xlabel="layer", ylabel=kind)
    return figure


@in_style
def draw_attention_map(
    weights: Mapping[int, np.ndarray], threshold: float, l_train: int, title: str, tokens: Optional[List[str]] = None
) -> Figure:
    """Weights of at least `threshold` (black) and below it (yellow), a panel for each head: queries by keys.

    weights: (H, L, L) by layer. tokens: the L texts on the axes, instead of positions.
    """
    from matplotlib.colors import ListedColormap

    heads, length, _ = next(iter(weights.values())).shape
    columns = min(heads, 4)
    rows = len(weights) * -(-heads // columns)
    side = (WIDTH - 0.8) / columns if tokens is None else max((WIDTH - 0.8) / columns, 0.18 * length)
    figure = new_figure(0.8 + (side + 0.3) * rows, width=0.8 + side * columns)
    panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).flat
    past = np.tri(length, dtype=bool)
    numbered = ((layer, head) for layer in weights for head in range(-(-heads // columns) * columns))
    for axes, (layer, head) in zip(panels, numbered):
        if head >= heads:
            axes.remove()
            continue
        seen = np.ma.masked_where(~past, weights[layer][head] >= threshold)
        colours = ListedColormap(["#F0E442", "black"])
        axes.imshow(seen, cmap=colours, vmin=0, vmax=1, interpolation_stage="rgba")
        axes.set_title(f"layer {layer}, head {head + 1}")
        if tokens is None:
            ticks = sorted({0, min(l_train, length), length})
            axes.set_xticks(ticks)
            axes.set_yticks(ticks)
            for line in (axes.axvline, axes.axhline) if l_train < length else ():
                line(l_train - 0.5, color=COLOURS[0], linestyle="-", linewidth=0.8)
        else:
            axes.set_xticks(range(length), tokens, rotation=90)
            axes.set_yticks(range(length), tokens)
    figure.suptitle(f"{title}: black where the weight is {threshold:.2g} or more", fontsize=12)
    figure.supxlabel("key" if tokens else "position of the key (tokens)")
    figure.supylabel("query" if tokens else "position of the query (tokens)")
    return figure


def encode(text: str, dictionary, data: Path) -> torch.Tensor:
    """``</s>`` and the tokens of a text, tokenised as the data-bin's corpus was: int64 (tokens,)."""
    words = wikitext_tokenizer()(text)
    codes = data / "bpe.codes"
    if codes.is_file():
        with codes.open(encoding="utf-8") as learned:
            words = subword_segmenter(learned)(words)
    if unit_of(str(data)) == "character":
        words = spelled_out(words)
    return torch.tensor([dictionary.eos(), *(dictionary.index(word) for word in words.split())])


def checkpoints_of(runs: Path, preset: Preset, name: str, rows: Collection[str]) -> Finished:
    """Those of the rows' `recall.finished_checkpoints`, in the rows' order; raises ValueError if there is none."""
    every, folder = recall.finished_checkpoints(runs, preset, name), runs / name
    found = {key: path for row in rows for key, path in every.items() if key[0] == row}
    missing = ", ".join(row for row in rows if row not in {row for row, _ in found})
    if not found:
        raise ValueError(f"{folder} has no finished run of {missing}; run scripts/reproduce.sh first")
    if missing:
        print(f"{folder} has no finished run of {missing}; they are left out", file=sys.stderr, flush=True)
    return found


def _of_first_seeds(found: Finished) -> Finished:
    first = dict(sorted(found, reverse=True))  # seeds by row; of several, the last one stays
    return {key: path for key, path in found.items() if key in first.items()}


MEASURED = {  # the sheet of the numbers, the table of the rows, what measures them and what draws them
    "positions": ("positions", "table1", probes.loss_by_position, draw_positions),
    "receptive-field": ("attention", "table1", probes.receptive_field, draw_receptive_field),
    "receptive-field-combinations": (COMBINED, "combinations", probes.receptive_field, draw_receptive_field),
}


@in_style
def draw_longbench(lines: pd.DataFrame) -> Figure:
    """What one model scores above another, from longbench.csv, with 95% intervals, as in Figure 11."""
    figure = new_figure(4.6)
    axes = figure.subplots()
    colours = [COLOURS[6] if difference >= 0 else COLOURS[1] for difference in lines.difference]
    axes.bar(range(len(lines)), lines.difference, color=colours, width=0.7)
    known = lines.assign(place=range(len(lines))).dropna(subset=["low"])
    spread = [known.difference - known.low, known.high - known.difference]
    axes.errorbar(known.place, known.difference, spread, color="0.2", linestyle="none", capsize=4, linewidth=1)
    axes.axhline(0, color="0.6", linestyle="-", linewidth=0.8)
    titles = [TASKS[task].title if task in TASKS else task for task in lines.task]
    axes.set_xticks(range(len(lines)), titles, rotation=45, ha="right", rotation_mode="anchor")
    axes.tick_params(axis="x", length=0)
    axes.set(ylabel="difference of the scores (points)")
    return figure


COMPARED = {"pairs": draw_pairs, "context": draw_context, LONGBENCH: draw_longbench}  # of the sheets with their names


def draw_figures(args: argparse.Namespace) -> Iterator[Tuple[str, Figure]]:
    """Yields the figures of args.names (default: all), with their names, each as soon as it is drawn.

    Raises ValueError if what a figure needs does not exist.
    """
    of_table1 = [name for name, (_, table, *_) in MEASURED.items() if table == "table1"]
    if args.path:
        row = args.folder.name
        names = args.names or [*of_table1, MAP + row]
        yield from draw_checkpoints(args, names, lambda rows: {(row, 1): args.path}, args.data)
        return
    from_runs = () if args.preset == PAPER.name else (*of_table1, *(MAP + row for row in DEFAULT_MAPS))
    kept = {"receptive-field-combinations": COMBINED, GROWTH: GROWTH, RECALL: RECALL, WAVELETS: WAVELETS}
    sheets = [name for name, sheet in kept.items() if results.sheet_file(args.folder, sheet).is_file()]
    names = args.names or [*PERPLEXITY, *COMPARED, *from_runs, *sheets]
    for name, (table, inference, panel, curve) in PERPLEXITY.items():
        cells = results.read_cells(args.folder, table) if name in names else None
        shown = cells if cells is None or inference is None else cells[cells.inference == inference]
        if shown is not None and shown.perplexity.notna().any():
            yield name, draw_perplexity(shown, panel, curve)
        elif name in args.names and cells is not None:
            of = f" in {inference} inference" if inference else ""
            raise ValueError(f"{args.folder}: {table}.tidy.csv has no perplexity{of}")
        elif name in args.names:
            raise ValueError(f"{args.folder} has no {table}.tidy.csv; run scripts/reproduce.sh {table} first")
    for name, draw in COMPARED.items():
        lines = results.read_sheet(args.folder, name) if name in names else None
        if name == "pairs" and lines is not None:
            lines = lines[lines.inference == "full"]
        if lines is not None and (name == LONGBENCH or (lines.table == "table1").any()):
            yield name, draw(lines)
        elif name in args.names:
            made = f"{name}.csv of Table 1; run scripts/claims.sh"
            losses = results.table_files(args.folder, "table1")[4]
            if name == LONGBENCH:
                made = f"{name}.csv; run scripts/longbench.sh --compare"
            elif not losses.is_file():
                made = f"{losses.name}, which versions before 0.4 did not write; run scripts/reproduce.sh table1"
            raise ValueError(f"{args.folder} has no {made} first")
    if set(names) <= {*PERPLEXITY, *COMPARED}:
        return
    preset = preset_of(args.preset)
    if preset.framework == "transformers":
        asked = [name for name in args.names if name not in (*PERPLEXITY, *COMPARED)]
        if asked:
            raise ValueError(f"{asked[0]} is drawn of fairseq's checkpoints, but preset {preset.name} trains a Llama")
        return
    data = args.data or ROOT / "data" / preset.corpus
    if GROWTH in names:
        yield GROWTH, draw_growth(growth.measure(args.folder, preset, args.runs, data, _reading(args)))
    if RECALL in names:
        yield RECALL, draw_recall(recall.measure(args.folder, preset, args.runs, _opener(args, data)))
    if WAVELETS in names:
        yield WAVELETS, draw_wavelets(learned.measure(args.folder, preset, args.runs, _opener(args, data)))
    if not set(names) <= {*PERPLEXITY, *COMPARED, GROWTH, RECALL, WAVELETS}:
        runs = functools.partial(checkpoints_of, args.runs, preset, args.preset)
        yield from draw_checkpoints(args, names, runs, data)


def _reading(args: argparse.Namespace) -> List[str]:
    """How checkpoints are read, in options of the evaluation."""
    named = ["--position-encoding", args.position_encoding] if args.position_encoding else []
    return [*named, *(["--trust-checkpoint"] if args.trust_checkpoint else [])]


def _opener(args: argparse.Namespace, data: Path) -> Callable[[Path], Tuple[FairseqScorer, Tensor]]:
    """Opens a checkpoint and the validation set."""

    def opened(path: Path) -> Tuple[FairseqScorer, Tensor]:
        from ...plugin.checkpoint import open_checkpoint  # here, because the other figures need no fairseq

        return open_checkpoint(path, data, args.position_encoding, args.trust_checkpoint)

    return opened


def draw_checkpoints(
    args: argparse.Namespace, names: Collection[str], runs: Callable[[Collection[str]], Finished], data: Path
) -> Iterator[Tuple[str, Figure]]:
    """Yields those of the figures `names` that need checkpoints, which `runs` finds of rows.

    Sheets without a seed are of each row's first one.
    """
    commands.require_fairseq()
    opened = _opener(args, data)
    for name in [name for name in MEASURED if name in names]:
        sheet, table, measure, draw_lines = MEASURED[name]
        refuse_unwritable(results.sheet_file(args.folder, sheet))
        rows = [row.name for row in load_table(table)[1]]
        found, known = runs(rows), results.read_sheet(args.folder, sheet)
        key = [column for column in ("row", "seed") if column in results.SHEETS[sheet]]
        lines = probes.table(measure, found if "seed" in key else _of_first_seeds(found), opened)
        if known is not None:  # a run that is gone keeps its lines
            places = {row: place for place, row in enumerate(rows)}
            gone = ~known.set_index(key).index.isin(lines.set_index(key).index)
            lines = pd.concat([lines, known[gone]]).sort_values(
                key, key=lambda of: of.map(places) if of.name == "row" else of, kind="stable", ignore_index=True
            )
        results.write_sheet(args.folder, sheet, lines)
        yield name, draw_lines(lines)
    rows = [name[len(MAP) :] for name in names if name.startswith(MAP)]
    if rows:
        for (row, _), path in _of_first_seeds(runs(rows)).items():
            figure = draw_map_of_row(row, *opened(path), data, args.text, args.threshold)
            yield MAP + row + ("-text" if args.text else ""), figure


def draw_map_of_row(
    row: str, scorer: FairseqScorer, stream: Tensor, data: Path, text: Optional[str], threshold: Optional[float]
) -> Figure:
    """`draw_attention_map` of a checkpoint's first and last layer, over `text` or the start of the validation set."""
    dictionary = scorer.task.dictionary
    tokens = encode(text, dictionary, data) if text else inputs_of(stream, scorer.bos)[: 2 * scorer.l_train]
    layers = scorer.attention_inputs(tokens)
    weights = {
        number + 1: probes.attention_map(*layers[number]).cpu().numpy() for number in sorted({0, len(layers) - 1})
    }
    names = [dictionary[token] for token in tokens] if text and len(tokens) <= MOST_TOKENS else None
    return draw_attention_map(weights, threshold or 1 / len(tokens), scorer.l_train, methods().get(row, row), names)
