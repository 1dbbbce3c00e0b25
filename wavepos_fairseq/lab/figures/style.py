"""The style of all figures, and how they are written: SVG and PNG, the same bytes every time."""

import io
from pathlib import Path
from typing import Any, Dict, List

from matplotlib import cycler, style
from matplotlib.figure import Figure

from ...common.files import write_whole
from ..palette import COLOURS, DASHES, Look

WIDTH = 7.0  # inches; with 11 pt and more the text can still be read at half of it
_MARKERS = {"": "", "square": "s", "triangle": "^", "diamond": "D"}


def _line_style(dash: Any) -> Any:
    return (0, dash) if dash else "-"


_STYLE = {
    "font.size": 12,
    "axes.titlesize": 12,
    "figure.labelsize": 12,
    "xtick.labelsize": 11,
    "ytick.labelsize": 11,
    "legend.fontsize": 11,
    "legend.frameon": False,
    "legend.handlelength": 3.2,
    "lines.linewidth": 1.8,
    "axes.prop_cycle": cycler(color=COLOURS[::-1]) + cycler(linestyle=map(_line_style, DASHES[::-1])),
    "axes.spines.top": False,
    "axes.spines.right": False,
    "image.cmap": "RdBu_r",
    "savefig.dpi": 150,
    "svg.hashsalt": "wavepos_fairseq",
}
in_style = style.context(_STYLE, after_reset=True)
"""Decorator of everything that draws or saves: the style, whatever the user's matplotlibrc says."""


def line_of(look: Look) -> Dict[str, Any]:
    """matplotlib's words for a curve's look."""
    return {"color": look.colour, "linestyle": _line_style(look.dash), "marker": _MARKERS[look.marker], "markersize": 5}


@in_style
def save(figure: Figure, folder: Path, name: str) -> List[Path]:
    """Writes name.svg and name.png, without a date, into `folder`; returns their paths."""
    paths = [folder / f"{name}.svg", folder / f"{name}.png"]
    for path, metadata in zip(paths, ({"Date": None}, None)):
        image = io.BytesIO()
        figure.savefig(image, format=path.suffix[1:], metadata=metadata)
        write_whole(path, image.getvalue())
    return paths
