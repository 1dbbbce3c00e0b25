"""The paper's representation: a head's dimensions are wavelets of the lag, one for each pair of scale and shift."""

import copy
import math
from typing import Callable, List, Optional

import torch
from torch import Tensor
from typing_extensions import Annotated

from ..wavelets import (
    DISCRETE_WAVELETS,
    MAX_LEVEL,
    MOTHER_WAVELETS,
    SHIFT_DIRECTIONS,
    parse_numbers,
    stretched_basis,
    wavelet_basis,
    wavelets_at,
)
from . import FixedRelativePosition, register_position
from .tracing import without_modes

_DEFAULT_NUM_SCALES = 8
_FARTHEST_LAGS = (0, 2**24)  # |x| is largest at one of them, since x is linear in the lag; no lag is larger


@register_position("wavelet")
class WaveletPosition(FixedRelativePosition):
    """Slot p: p_j(t) = psi((t - b_j) / a_j), Eq. 10 to 14, for all pairs (a_j, b_j) of scales and shifts.

    Other readings of the shift are options: `wavelets.SHIFT_DIRECTIONS`.
    """

    def __init__(
        self,
        head_dim: int,
        num_heads: int,
        wavelet: Annotated[
            str,
            "mother wavelet: "
            + ", ".join(MOTHER_WAVELETS)
            + ", or a discrete one of PyWavelets (db4, sym8, coif2, dmey, bior6.8, rbio1.1 and so on)",
        ] = "ricker",
        wavelet_scales: Annotated[
            Optional[str],
            "scales a as a list (1,2,4), a range of powers (2^0..2^7) or a repetition (2^0*8); scales x shifts must be "
            "the width d of a head; the levels of a discrete wavelet (1..8) "
            "(default: 2^0..2^7 or the levels 1..8, 8 of them, as the paper's)",
        ] = None,
        wavelet_shifts: Annotated[
            Optional[str],
            "shifts b as a list (0,2,4) or a range (0..15) (default: 0..d/8-1, as the paper's 0..15 at d = 128; "
            "with other scales as many as d leaves)",
        ] = None,
        wavelet_shift_direction: Annotated[
            str,
            "where a shift moves a wavelet's centre. past: b tokens into the past, (t - b) / a, Eq. 14 as printed; "
            "future: b tokens ahead, (t + b) / a; scaled: a times b tokens into the past, t / a - b (for a discrete "
            "wavelet a is 2^level)",
        ] = "past",
    ):
        super().__init__(head_dim, num_heads)
        discrete = wavelet in DISCRETE_WAVELETS
        if not discrete and wavelet not in MOTHER_WAVELETS:
            raise ValueError(
                f"wavelet={wavelet!r} is unknown; accepted are {', '.join(MOTHER_WAVELETS)} and PyWavelets' discrete "
                "wavelets (not its continuous or complex ones), db4 for example: pywt.wavelist(kind='discrete')"
            )
        if wavelet_shift_direction not in SHIFT_DIRECTIONS:
            raise ValueError(
                f"wavelet_shift_direction={wavelet_shift_direction!r} is unknown; accepted are "
                + ", ".join(SHIFT_DIRECTIONS)
            )
        scales = None if wavelet_scales is None else parse_numbers(wavelet_scales, "wavelet_scales")
        shifts = None if wavelet_shifts is None else parse_numbers(wavelet_shifts, "wavelet_shifts")
        if scales is None:
            count = max(1, head_dim // len(shifts)) if shifts else _DEFAULT_NUM_SCALES
            scales = [1.0 + e for e in range(min(count, MAX_LEVEL))] if discrete else [2.0**e for e in range(count)]
        if shifts is None:
            shifts = [float(b) for b in range(max(1, head_dim // len(scales)))]
        given = {"wavelet_scales": wavelet_scales, "wavelet_shifts": wavelet_shifts}
        as_given = ", ".join(f"{option}={text!r}" for option, text in given.items() if text is not None)
        if discrete:
            _check_levels_and_shifts(wavelet, scales, shifts, as_given)
        if 0 in scales:
            raise ValueError(f"{as_given}: a scale must be > 0, 2^0..2^7 for example")
        if len(scales) * len(shifts) != head_dim:
            num_scales = math.gcd(_DEFAULT_NUM_SCALES, head_dim)
            default = f"wavelet_scales={('1..8' if discrete else '2^0..2^7')!r} by default"
            fitting = f"1..{num_scales}" if discrete else f"2^0..2^{num_scales - 1}"
            raise ValueError(
                f"{as_given or default}: {len(scales)} scales x {len(shifts)} shifts = "
                f"{len(shifts) * len(scales)} wavelets, but a head has {head_dim} dimensions; "
                f"{num_scales} x {head_dim // num_scales} fit, for example wavelet_scales={fitting!r} and "
                f"wavelet_shifts='0..{head_dim // num_scales - 1}'"
            )
        self.head = (wavelet, tuple(scales), tuple(shifts), wavelet_shift_direction)
        if not without_modes(self._is_finite):
            raise ValueError(f"{as_given}: too extreme for double precision")
        self.table = (wavelet_basis, self.head)

    def stretched(self, by: Callable[[Tensor], Tensor]) -> "WaveletPosition":
        wavelet, scales, _, _ = self.head
        tokens = [2.0**level for level in scales] if wavelet in DISCRETE_WAVELETS else scales
        made = copy.copy(self)
        made.table = (stretched_basis, (*self.head, tuple(by(2 * math.pi * torch.tensor(tokens).double()).tolist())))
        return made

    def _is_finite(self) -> bool:
        return bool(wavelets_at(torch.tensor(_FARTHEST_LAGS, device="cpu"), *self.head).isfinite().all())


def _check_levels_and_shifts(wavelet: str, levels: List[float], shifts: List[float], as_given: str) -> None:
    for level in levels:
        if level not in range(1, MAX_LEVEL + 1):
            raise ValueError(
                f"{as_given}: {level:g} is not a level of the discrete wavelet {wavelet}; accepted are whole numbers "
                f"from 1 to {MAX_LEVEL}, 1..8 for example"
            )
    for shift in shifts:
        if shift != int(shift):
            raise ValueError(
                f"{as_given}: {shift:g} is not a whole number, but {wavelet} is sampled once per token; accepted is "
                "0..15 for example"
            )
