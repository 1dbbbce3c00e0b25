"""Mother wavelets and the basis of a head: p_j(t) = psi((t - b_j) / a_j), Eq. 11 to 15 of Oka et al. (2025).

All functions are pure and compute in fp64; callers round. The amplitude does not depend on the scale (Eq. 11, unlike
Eq. 2).

Four mother wavelets are closed forms. The others are PyWavelets' discrete families, which are sampled (appendix A.14)
and have levels in place of scales: level l acts as the scale 2^l.
"""

import functools
import math
import re
from typing import Any, Callable, Dict, List, NoReturn, Sequence

import numpy as np
import pywt
import torch
from torch import Tensor


def ricker(x: Tensor, scale: Tensor) -> Tensor:
    """(1 - x^2) exp(-x^2 / 2), Eq. 12, also known as the Mexican hat."""
    return (1 - x**2) * torch.exp(-(x**2) / 2)


def gaussian(x: Tensor, scale: Tensor) -> Tensor:
    """exp(-x^2), section 6.3.1."""
    return torch.exp(-(x**2))


def morlet(x: Tensor, scale: Tensor) -> Tensor:
    """exp(-x^2) cos(a x), section 6.3.1: at x = (t - b) / a the cosine is cos(t - b), at every scale a."""
    return torch.exp(-(x**2)) * torch.cos(scale * x)


def haar(x: Tensor, scale: Tensor) -> Tensor:
    """+1 on (0, 1/2], -1 on (1/2, 1], 0 elsewhere: Eq. 15 mirrored, because x is a lag m - n and not n - m."""
    return ((x > 0) & (x <= 0.5)).to(x.dtype) - ((x > 0.5) & (x <= 1)).to(x.dtype)


MOTHER_WAVELETS: Dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "ricker": ricker,
    "gaussian": gaussian,
    "morlet": morlet,
    "haar": haar,
}
DISCRETE_WAVELETS = tuple(name for name in pywt.wavelist(kind="discrete") if name not in MOTHER_WAVELETS)
MAX_LEVEL = 16  # there coif17 has 6.6 million samples

SHIFT_DIRECTIONS: Dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {  # where psi is read: x(t, a, b)
    "past": lambda t, a, b: (t - b) / a,
    "future": lambda t, a, b: (t + b) / a,
    "scaled": lambda t, a, b: t / a - b,
}

_MAX_NUMBERS = 65536
_NUMBER = r"\d{1,308}(?:\.\d+)?(?:\^\d{1,9})?"
_ITEM = re.compile(rf"(?P<first>{_NUMBER})(?:\.\.(?P<last>{_NUMBER})|\*(?P<times>\d{{1,9}}))?")
_GRAMMAR = "numbers separated by commas (1,2,4), ranges (0..15), powers (2^0..2^7), repetitions (2^0*8)"


def parse_numbers(text: str, name: str) -> List[float]:
    """The numbers that `text` stands for, in its order.

    ``1,2,4`` is a list; ``0..15`` counts by one, ``2^0..2^7`` by one in the exponent; ``2^0*8`` repeats a number.

    Raises ValueError for anything else; `name` is the parameter that the message names.
    """

    def refuse(reason: str) -> NoReturn:
        raise ValueError(f"{name}={text!r}: {reason}; accepted are {_GRAMMAR}")

    numbers: List[float] = []
    for item in str(text).split(","):
        match = _ITEM.fullmatch(item.strip())
        if not match:
            refuse(f"{item.strip()!r} is not a number >= 0, a range or a repetition")
        first, last, times = match.group("first", "last", "times")
        base, _, start = first.rpartition("^")
        last_base, _, stop = (last or first).rpartition("^")
        if last and (base != last_base or not (start + stop).isdigit()):
            refuse(f"{item.strip()!r} must run between two whole numbers, or between two powers of one base")
        count = int(stop) - int(start) + 1 if last else int(times or 1)
        if count < 1:
            refuse(f"{item.strip()!r} stands for no number")
        if len(numbers) + count > _MAX_NUMBERS:
            refuse(f"stands for more than {_MAX_NUMBERS} numbers")
        steps = [int(start) + step for step in range(count)] if last else [start] * count
        try:
            numbers += [float(base) ** int(step) if base else float(step) for step in steps]
        except OverflowError:
            numbers += [math.inf]
    if math.inf in numbers:
        refuse("exceeds what a double holds")
    return numbers


@functools.lru_cache(maxsize=64)
def _samples(name: str, level: int) -> np.ndarray:
    return pywt.Wavelet(name).wavefun(level=level)[1].copy()


def discrete_wavelet(name: str, level: int) -> Tensor:
    """The decomposition wavelet psi of PyWavelets' discrete wavelet `name`, 2^level samples to its unit of time.

    Returns fp64 (samples,), the whole support from its start: `pywt.Wavelet.wavefun` without its time axis.
    """
    return torch.from_numpy(_samples(name, level))


def wavelet_basis(
    wavelet: str, scales: Sequence[float], shifts: Sequence[float], direction: str, num_lags: int
) -> Tensor:
    """The wavelets of a head, sampled once per lag (Eq. 13 and 14): `wavelets_at` the lags 0 .. num_lags - 1.

    Returns fp64 (num_lags, len(scales) * len(shifts)) on the CPU. Row t is the lag t = m - n.
    """
    return wavelets_at(torch.arange(num_lags, device="cpu"), wavelet, scales, shifts, direction)


def stretched_basis(
    wavelet: str,
    scales: Sequence[float],
    shifts: Sequence[float],
    direction: str,
    stretches: Sequence[float],
    num_lags: int,
) -> Tensor:
    """`wavelet_basis` of the lags t / s, s being the stretch of each scale. A discrete wavelet's samples are steps."""
    fp64: Dict[str, Any] = {"dtype": torch.float64, "device": "cpu"}
    lags = torch.arange(num_lags, **fp64)[:, None] / torch.tensor(stretches, **fp64)  # (num_lags, scales)
    return wavelets_at(lags, wavelet, scales, shifts, direction)


def wavelets_at(lags: Tensor, wavelet: str, scales: Sequence[float], shifts: Sequence[float], direction: str) -> Tensor:
    """The wavelets of a head at any lags (Eq. 13 and 14).

    lags: (T,) on the CPU, or (T, len(scales)) where each scale has its own. wavelet: one of MOTHER_WAVELETS or
    DISCRETE_WAVELETS. The discrete ones are zero outside their support and take levels, 1 to MAX_LEVEL, as scales and
    whole numbers as shifts. direction: one of SHIFT_DIRECTIONS, where a shift moves the wavelet. ``past`` is psi((t -
    b) / a), Eq. 14 as printed, with the centre b tokens in the past; ``future`` is psi((t + b) / a), which follows from
    (n - m - b) / a with the decoder's n - m <= 0 (footnote 8); ``scaled`` is psi(t / a - b), with the centre a b tokens
    in the past, as in a wavelet transform with dyadic shifts. For a discrete wavelet that is b units of its own time, b
    2^level tokens.

    Returns fp64 (T, len(scales) * len(shifts)) on the CPU. Column j is a pair (a, b) of scale and shift, the scales
    running fastest, as in Eq. 4.
    """
    if direction not in SHIFT_DIRECTIONS:
        raise ValueError(f"direction={direction!r} is unknown; accepted are {', '.join(SHIFT_DIRECTIONS)}")
    fp64: Dict[str, Any] = {"dtype": torch.float64, "device": "cpu"}
    of_scales = (lags if lags.dim() == 2 else lags[:, None]).double()  # (T, scales or 1)
    shift = torch.tensor(shifts, **fp64)
    if wavelet in MOTHER_WAVELETS:
        return closed_wavelets(of_scales, wavelet, torch.tensor(scales, **fp64), shift, direction)
    scale = torch.tensor([2.0**level for level in scales], **fp64)
    x = SHIFT_DIRECTIONS[direction](of_scales[:, None], scale, shift[:, None])  # (T, shifts, scales)
    index = (x * scale).floor().long()  # of whole lags it is whole: powers of two round nothing
    samples = [discrete_wavelet(wavelet, int(level)) for level in scales]
    columns = [_samples_at(index[..., i], psi) for i, psi in enumerate(samples)]
    return torch.stack(columns, dim=-1).flatten(1)  # (T, shifts, scales) -> (T, shifts x scales)


def closed_wavelets(lags: Tensor, wavelet: str, scale: Tensor, shift: Tensor, direction: str) -> Tensor:
    """`wavelets_at` of one of MOTHER_WAVELETS, whose scales and shifts are tensors, which may want gradients.

    lags: (T, scales), or (T, 1) where all scales have the same; scale: (scales,); shift: (shifts,); all fp64 and on one
    device. Returns (T, scales x shifts) there.
    """
    x = SHIFT_DIRECTIONS[direction](lags[:, None], scale, shift[:, None])  # (T, shifts, scales)
    return MOTHER_WAVELETS[wavelet](x, scale).flatten(1)


def _samples_at(index: Tensor, samples: Tensor) -> Tensor:
    inside = (index >= 0) & (index < len(samples))
    return torch.where(inside, samples[index.clamp(0, len(samples) - 1)], 0.0)
