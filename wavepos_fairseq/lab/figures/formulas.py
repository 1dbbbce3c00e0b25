"""The figures of Oka et al. (2025) that show formulas, and two kinds that the paper lacks, as SVG and PNG.

Figures 4, 5, 6, 9 and 10; the basis of a whole head as a heat map; the singular values of such bases, which say how
many of a head's 128 dimensions differ. Needs matplotlib, draws the same bytes every time, and shows nothing that was
trained: `trained` draws that.
"""

from __future__ import annotations

import functools
import math
from typing import TYPE_CHECKING, Callable, Dict, Mapping, Sequence, Tuple

import numpy as np
import torch

from ...positions import FixedRelativePosition
from ...positions.trans_xl import SineWavePosition
from ...positions.wavelet import WaveletPosition
from ...wavelets import DISCRETE_WAVELETS, MOTHER_WAVELETS, discrete_wavelet
from .style import in_style, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FIGURE_9 = "db2 db4 db8 db16 db32 sym2 sym4 sym8 coif1 coif2 coif4 coif8 coif16 dmey".split()
FIGURE_10 = "bior1.3 bior2.2 bior2.6 bior3.1 bior3.5 bior3.9 bior4.4 bior5.5 bior6.8".split()
FIGURE_10 += "rbio1.1 rbio1.3 rbio2.2 rbio2.6".split()
LEVEL = 10  # of Figures 9 and 10: samples to the unit of time, as a power of two
BASES = ("ricker", "gaussian", "morlet", "haar", "db4")

LAG = "lag t (tokens)"
STEPS = (1, 2, 2.5, 5, 10)  # that ticks may make, times powers of ten
Curve = Tuple[np.ndarray, np.ndarray]  # x and y


def _closed_form(wavelet: str, exponent: int, reach: float) -> Curve:
    """The lags from -reach to reach, and psi(t / a) there, of the scale a = 2^exponent."""
    lag = torch.linspace(-reach, reach, 4097, dtype=torch.float64)
    scale = torch.tensor(2.0**exponent, dtype=torch.float64)
    return lag.numpy(), MOTHER_WAVELETS[wavelet](lag / scale, scale).numpy()


@in_style
def wavelet_at_scales(wavelet: str, exponents: Sequence[int]) -> Figure:
    """Figures 4 and 5: psi(t / a) of the scales a = 2^exponent, four of the largest to either side."""
    from matplotlib.ticker import MaxNLocator

    figure = new_figure(3.6)
    axes = figure.subplots()
    for exponent in exponents:
        axes.plot(*_closed_form(wavelet, exponent, 4 * 2.0 ** max(exponents)), label=f"$a = 2^{{{exponent}}}$")
    axes.xaxis.set_major_locator(MaxNLocator(7, steps=STEPS))
    axes.set(xlabel=LAG, ylabel="ψ(t / a)", xmargin=0)
    axes.legend()
    return figure


def _panels(curves: Mapping[str, Curve], columns: int, share: bool) -> Figure:
    """A panel for each (x, y), with its name above."""
    from matplotlib.ticker import MaxNLocator

    rows = -(-len(curves) // columns)
    figure = new_figure(1.7 * rows + 0.3)
    panels = figure.subplots(rows, columns, sharex=share, sharey=share, squeeze=False).flat
    for axes, (name, (x, y)) in zip(panels, curves.items()):
        axes.plot(x, y, linewidth=1.2)
        axes.set_title(name)
        axes.xaxis.set_major_locator(MaxNLocator(6, steps=STEPS, integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(4, steps=STEPS))
    for axes in panels[len(curves) :]:
        axes.remove()
    return figure


@in_style
def closed_forms(wavelets: Sequence[str], exponent: int) -> Figure:
    """Figure 6: psi(t / a) of several wavelets at the scale a = 2^exponent and the shift 0, a panel each.

    The lags are m - n, so Haar is Eq. 15 mirrored: its support lies at t >= 0.
    """
    curves = {name: _closed_form(name, exponent, 4 * 2.0**exponent) for name in wavelets}
    figure = _panels(
        {f"{name} (Eq. 15 mirrored)" if name == "haar" else name: curves[name] for name in curves}, 2, share=True
    )
    figure.supxlabel(LAG)
    figure.supylabel("ψ(t / a)")
    return figure


@in_style
def discrete_families(wavelets: Sequence[str]) -> Figure:
    """Figures 9 and 10: discrete wavelets of PyWavelets over their whole support, a panel each."""
    psi = {name: discrete_wavelet(name, LEVEL).numpy() for name in wavelets}
    figure = _panels({name: (np.arange(len(y)) / 2**LEVEL, y) for name, y in psi.items()}, 3, share=False)
    figure.supxlabel("time (units of the mother wavelet)")
    figure.supylabel("ψ(time)")
    return figure


def _position(name: str) -> FixedRelativePosition:
    """The representation of a head as in Table 1; a wavelet goes by its own name."""
    return SineWavePosition(128, 8) if name == "trans-xl" else WaveletPosition(128, 8, name)


def _basis(position: FixedRelativePosition, num_lags: int) -> torch.Tensor:
    """What the dimensions of a head are at each lag: fp64 (num_lags, d)."""
    return position.relative(num_lags, like=torch.empty(0, dtype=torch.float64))


@in_style
def basis(wavelet: str, num_lags: int) -> Figure:
    """The basis of a head as a heat map over the lags, its dimensions sorted by scale and then by shift.

    In the basis itself the scales run fastest (Eq. 4): dimension j has scale j mod 8 and shift j // 8.
    """
    position = WaveletPosition(128, 8, wavelet)
    _, scales, shifts, _ = position.head
    rows = _basis(position, num_lags).T.unflatten(0, (len(shifts), len(scales))).transpose(0, 1).flatten(0, 1).numpy()
    figure = new_figure(4.4)
    axes = figure.subplots()
    largest = abs(rows).max()
    edges = [np.arange(count + 1) - 0.5 for count in rows.shape]
    image = axes.pcolormesh(edges[1], edges[0], rows, vmin=-largest, vmax=largest, rasterized=True)
    figure.colorbar(image, label="ψ((t − b) / a)", pad=0.02)
    group = len(shifts) * np.arange(len(scales))
    axes.hlines(group[1:] - 0.5, -0.5, num_lags - 0.5, color="0.6", linewidth=0.6)
    axes.set_xscale("symlog", base=2, linthresh=len(shifts), linscale=0.5 / math.log(2))  # no kink at the threshold
    powers = [2**exponent for exponent in range(3, (num_lags - 1).bit_length())]
    axes.set_xticks([0, *powers], list(map(str, [0, *powers])))
    axes.set_yticks(group + (len(shifts) - 1) / 2, [f"{scale:g}" for scale in scales])
    axes.tick_params(axis="y", length=0)
    axes.set(title=wavelet, xlim=(-0.5, num_lags - 0.5), ylim=(rows.shape[0] - 0.5, -0.5))
    axes.set_xlabel(f"{LAG}, linear to {len(shifts)}, then logarithmic")
    groups = "level $l$ (a = $2^l$ tokens)" if wavelet in DISCRETE_WAVELETS else "scale a (tokens)"
    axes.set_ylabel(f"{groups}, and in each\nshift b = {shifts[0]:g} to {shifts[-1]:g} (tokens), downwards")
    return figure


@in_style
def singular_values(names: Sequence[str], num_lags: int) -> Figure:
    """The singular values of each representation's basis over the lags 0 .. num_lags - 1, as parts of the largest."""
    figure = new_figure(4.4)
    axes = figure.subplots()
    for name in names:
        values = torch.linalg.svdvals(_basis(_position(name), num_lags)).numpy()
        axes.semilogy(range(1, len(values) + 1), values / values[0], label=name)
    for guide in (1e-3, 1e-5, 1e-7):
        axes.axhline(guide, color="0.6", linestyle="-", linewidth=0.8, zorder=0)
    axes.set(xlabel="index, from the largest", ylabel="singular value / the largest")
    axes.set(xlim=(1, len(values)), ylim=(1e-9, 2), yticks=(1, 1e-1, 1e-3, 1e-5, 1e-7, 1e-9))
    figure.legend(loc="outside upper center", ncols=3)
    return figure


FIGURES: Dict[str, Callable[[], Figure]] = {
    "figure4": functools.partial(wavelet_at_scales, "ricker", range(5)),
    "figure5": functools.partial(wavelet_at_scales, "ricker", range(5, 10)),
    "figure6": functools.partial(closed_forms, tuple(MOTHER_WAVELETS), 4),
    "figure9": functools.partial(discrete_families, FIGURE_9),
    "figure10": functools.partial(discrete_families, FIGURE_10),
    **{f"basis-{wavelet}": functools.partial(basis, wavelet, 2048) for wavelet in BASES},
    "singular-values": functools.partial(singular_values, (*BASES, "trans-xl"), 2512),
}
