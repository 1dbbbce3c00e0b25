"""The paper's representation: a head's dimensions are wavelets of the lag, one for each pair of scale and shift.

The paper fixes scales and shifts. `LearnedWaveletPosition` begins at them.
"""

import copy
import math
from typing import Any, Callable, List, Optional, Tuple

import torch
from torch import Tensor, nn
from typing_extensions import Annotated

from ..wavelets import (
    DISCRETE_WAVELETS,
    MAX_LEVEL,
    MOTHER_WAVELETS,
    SHIFT_DIRECTIONS,
    closed_wavelets,
    parse_numbers,
    stretched_basis,
    wavelet_basis,
    wavelets_at,
)
from . import FixedRelativePosition, register_position
from .low_rank import cached_factors, reach
from .tracing import without_modes

Head = Tuple[str, Tuple[float, ...], Tuple[float, ...], str]  # mother wavelet, scales, shifts and their direction

_DEFAULT_NUM_SCALES = 8
_FARTHEST_LAGS = (0, 2**24)  # |x| is largest at one of them, since x is linear in the lag; no lag is larger
_LEARNED = {"none": (), "scales": ("scales",), "shifts": ("shifts",), "both": ("scales", "shifts")}
_SMOOTH = tuple(name for name in MOTHER_WAVELETS if name != "haar")
_MOST_OCTAVES, _MOST_TOKENS = 8, 2**24  # that learning moves a scale and a shift by


@register_position("wavelet")
class WaveletPosition(FixedRelativePosition):
    """Slot p: p_j(t) = psi((t - b_j) / a_j), Eq. 10 to 14, for all pairs (a_j, b_j) of scales and shifts.

    Other readings of the shift are options: `wavelets.SHIFT_DIRECTIONS`. With wavelet_learn it is a
    `LearnedWaveletPosition`.
    """

    def __new__(cls, *_: Any, wavelet_learn: str = "none", **__: Any) -> "WaveletPosition":
        learns = cls is WaveletPosition and wavelet_learn != "none"
        return super().__new__(LearnedWaveletPosition if learns else cls)

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
            "(default: 2^0..2^7 or the levels 1..8, as the paper's; beside given shifts as many as fit)",
        ] = None,
        wavelet_shifts: Annotated[
            Optional[str],
            "shifts b as a list (0,2,4) or a range (0..15) (default: 0..d/8-1, as the paper's 0..15 at d = 128; "
            "with other scales as many as d leaves)",
        ] = None,
        wavelet_shift_direction: Annotated[
            str,
            "where a shift moves a wavelet's centre. past: b tokens into the past, (t - b) / a, Eq. 14 as printed and "
            "the nearest to Table 3 at L_train (docs/shift-direction.md); future: b tokens ahead, (t + b) / a; scaled: "
            "a times b tokens into the past, t / a - b (for a discrete wavelet a is 2^level)",
        ] = "past",
        *,
        wavelet_learn: Annotated[
            str,
            "what each layer learns of its wavelets, beginning at the scales and shifts given: none, scales, shifts or "
            "both; a scale stays within a factor of 2^8 of its beginning, a shift within 2^24 "
            f"({', '.join(_SMOOTH)} alone: the others are steps, which have no gradient)",
        ] = "none",
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
        if wavelet_learn not in _LEARNED:
            raise ValueError(f"wavelet_learn={wavelet_learn!r} is unknown; accepted are {', '.join(_LEARNED)}")
        if wavelet_learn != "none" and not isinstance(self, LearnedWaveletPosition):
            raise ValueError(
                f"wavelet_learn={wavelet_learn!r}: {type(self).__name__} learns nothing; accepted is none, or a class "
                "derived from LearnedWaveletPosition"
            )
        if wavelet_learn != "none" and wavelet not in _SMOOTH:
            raise ValueError(
                f"wavelet_learn={wavelet_learn!r} needs gradients, and wavelet={wavelet!r} is a function of steps, "
                f"which has none; accepted are {', '.join(_SMOOTH)}"
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
        self.head: Head = (wavelet, tuple(scales), tuple(shifts), wavelet_shift_direction)
        if not without_modes(self._is_finite):
            raise ValueError(f"{as_given}: too extreme for double precision")
        self.table = (wavelet_basis, self.head)

    def stretched(self, by: Callable[[Tensor], Tensor]) -> "WaveletPosition":
        wavelet, scales, _, _ = self.head
        tokens = [2.0**level for level in scales] if wavelet in DISCRETE_WAVELETS else scales
        made = copy.copy(self)
        waves = 2 * math.pi * torch.tensor(tokens, dtype=torch.float64, device="cpu")  # whatever the default is
        made.table = (stretched_basis, (*self.head, tuple(by(waves).tolist())))
        return made

    def _is_finite(self) -> bool:
        lags, heads = torch.tensor(_FARTHEST_LAGS, device="cpu"), self._extremes()
        finite = all(math.isfinite(scale) for _, scales, *_ in heads for scale in scales)
        return finite and all(bool(wavelets_at(lags, *head).isfinite().all()) for head in heads)

    def _extremes(self) -> List[Head]:
        return [self.head]


class LearnedWaveletPosition(WaveletPosition):
    """Slot p, its scales or its shifts or both learned in each layer; the heads of a layer share them.

        a = a_0 2^(8 tanh(u / 8)),      b = b_0 + 2^24 tanh(v / 2^24)

    What is learned, u in octaves and v in the unit of a shift, is 0 at first; there a and b are the given a_0 and b_0,
    to the last bit. However far u and v run, a stays between a_0 / 256 and 256 a_0, and b within 2^24 of b_0.
    """

    stretches: Optional[Tuple[float, ...]] = None

    def __init__(self, *arguments: Any, wavelet_learn: str, **options: Any):
        super().__init__(*arguments, wavelet_learn=wavelet_learn, **options)
        _, scales, shifts, _ = self.head
        learned = _LEARNED[wavelet_learn]
        self.scale_octaves = nn.Parameter(torch.empty(len(scales))) if "scales" in learned else None  # u
        self.shift_tokens = nn.Parameter(torch.empty(len(shifts))) if "shifts" in learned else None  # v
        self.reset_parameters()

    def reset_parameters(self) -> None:
        for parameter in self.parameters(recurse=False):
            nn.init.zeros_(parameter)

    def scales_and_shifts(self, device: torch.device) -> Tuple[Tensor, Tensor]:
        """a, (scales,), and b, (shifts,), as they are now: fp64, with their gradients."""
        _, *given, _ = self.head
        scales, shifts = (torch.tensor(numbers, dtype=torch.float64, device=device) for numbers in given)
        if self.scale_octaves is not None:
            scales = scales * torch.exp2(_bounded(self.scale_octaves.to(scales), _MOST_OCTAVES))
        if self.shift_tokens is not None:
            shifts = shifts + _bounded(self.shift_tokens.to(shifts), _MOST_TOKENS)
        return scales, shifts

    def relative(self, num_lags: int, like: Tensor) -> Tensor:
        wavelet, _, _, direction = self.head
        lags = torch.arange(num_lags, dtype=torch.float64, device=like.device)[:, None]
        if self.stretches is not None:
            lags = lags / torch.tensor(self.stretches, dtype=lags.dtype, device=lags.device)  # (num_lags, scales)
        return closed_wavelets(lags, wavelet, *self.scales_and_shifts(like.device), direction).to(like)

    def factors(  # type: ignore[override]
        self, num_lags: int, like: Tensor
    ) -> Tuple[Optional[Tensor], Tensor]:
        """p up to its reach. Without gradients, those of the fixed wavelets that it is now, which are kept."""
        if like.is_meta:  # no value is known
            return None, self.relative(num_lags, like)
        learned = (self.scale_octaves, self.shift_tokens)  # nn.DataParallel's replicas have no parameters()
        if not (torch.is_grad_enabled() and any(of is not None and of.requires_grad for of in learned)):
            return cached_factors(num_lags, *self._table_now(), like.dtype, like.device)
        rows, eps = self.relative(num_lags, like), torch.finfo(like.dtype).eps
        rows = rows[: max(1, reach(rows.detach(), eps / 100))]  # dp/du is up to x^2 times as long as p
        # Its tails are denormal, which CPUs multiply slowly. Their slopes stay, as do those of its zeros.
        return None, rows - rows.detach().masked_fill(rows.abs() >= eps**2, 0.0)

    def stretched(self, by: Callable[[Tensor], Tensor]) -> "LearnedWaveletPosition":
        """As for fixed ones; the wavelengths are those of the present scales, and `by` of them has no gradient."""
        made = copy.copy(self)
        scales = torch.tensor(self.head[1], dtype=torch.float64, device="cpu")
        if self.scale_octaves is not None and not self.scale_octaves.is_meta:  # which has no values
            scales, _ = self.scales_and_shifts(torch.device("cpu"))
        made.stretches = tuple(by(2 * math.pi * scales.detach()).tolist())
        return made

    def _table_now(self) -> Tuple[Callable[..., Tensor], Tuple]:
        wavelet, _, _, direction = self.head
        scales, shifts = (tuple(numbers.tolist()) for numbers in self.scales_and_shifts(torch.device("cpu")))
        head = wavelet, scales, shifts, direction
        return (wavelet_basis, head) if self.stretches is None else (stretched_basis, (*head, self.stretches))

    def _extremes(self) -> List[Head]:
        wavelet, scales, shifts, direction = self.head
        return [
            (wavelet, tuple(a * 2.0**octaves for a in scales), tuple(b + tokens for b in shifts), direction)
            for octaves in (-_MOST_OCTAVES, 0, _MOST_OCTAVES)
            for tokens in (-_MOST_TOKENS, 0, _MOST_TOKENS)
        ]


def _bounded(learned: Tensor, most: float) -> Tensor:
    """About as much while that is small, and never more than `most`: most tanh(learned / most)."""
    return most * torch.tanh(learned / most)


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
