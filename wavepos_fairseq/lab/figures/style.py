"""The style of all figures, and their output: SVG and PNG, the same bytes every time."""

from __future__ import annotations

import functools
import io
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable, Dict, List, TypeVar, cast

from ...common.files import write_whole
from ..palette import COLOURS, DASHES, Look

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# matplotlib is imported where it is used, because it comes with the extra `lab` only.

WIDTH = 7.0  # inches; text of 11 pt or more is still readable at half the width
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
    "axes.spines.top": False,
    "axes.spines.right": False,
    "image.cmap": "RdBu_r",
    "savefig.dpi": 150,
    "svg.hashsalt": "wavepos_fairseq",
}
_Draws = TypeVar("_Draws", bound=Callable[..., Any])


def in_style(draws: _Draws) -> _Draws:
    """Decorates everything that draws or saves: applies the style and ignores the user's matplotlibrc."""

    @functools.wraps(draws)
    def styled(*args: Any, **kwargs: Any) -> Any:
        from matplotlib import style
        from matplotlib.rcsetup import cycler

        cycle = cycler(color=COLOURS[::-1]) + cycler(linestyle=map(_line_style, DASHES[::-1]))
        with style.context({**_STYLE, "axes.prop_cycle": cycle}, after_reset=True):
            return draws(*args, **kwargs)

    return cast(_Draws, styled)


def new_figure(height: float, width: float = WIDTH) -> Figure:
    """An empty figure of this size (inches)."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def line_of(look: Look) -> Dict[str, Any]:
    """A curve's look in matplotlib's terms."""
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
