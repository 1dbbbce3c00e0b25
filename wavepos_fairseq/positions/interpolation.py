"""Positions beyond L_train by stretching what they are made of: position interpolation, NTK-aware, YaRN.

RoPE is made of waves of the lengths 2 pi / theta_i. The paper takes them for the scales of a wavelet transform (section
3.2) and expects that these methods carry over (section 7.2). A wavelet's wavelength is in proportion to its scale. Here
a scale a counts as 2 pi a, that of cos(t / a), and a wavelet is stretched around the lag 0: psi((t - b) / a) becomes
psi((t / s - b) / a). docs/theory.md, section 5, has the derivation.

A representation that has wavelengths overrides `Position.stretched`. Nothing is trained.
"""

import functools
import math
import numbers
from typing import List, Optional, Tuple

import torch
from torch import Tensor

from .base import Position
from .registry import position_class, position_names
from .tracing import is_traced, refuse_open_length, without_modes

INTERPOLATIONS = ("linear", "ntk", "yarn")
_TURNS = (32, 1)  # YaRN's beta and alpha: waves with more turns in L_train stay, those with fewer are stretched


def stretches(wavelengths: Tensor, method: str, factor: float, l_train: int) -> Tensor:
    """What each wavelength is multiplied by, for sequences of factor x l_train tokens: fp64, shape of `wavelengths`.

    linear: all by the factor (Chen et al., 2023). ntk: the longest by the factor, the shortest not at all, those
    between by its powers, as from RoPE's base theta factor^(d / (d - 2)) (bloc97, 2023). yarn: frequencies between
    those of no stretch and of linear, by a ramp over the logarithm of the wavelength from l_train / 32 to l_train (Peng
    et al., 2024, section 3.2, with the ramp of their code, which begins at the shortest wavelength if that is longer).
    """
    logarithm = wavelengths.double().log()
    shortest, longest = logarithm.min().item(), logarithm.max().item()
    if method == "linear" or (method == "ntk" and shortest == longest):
        return torch.full_like(logarithm, factor)
    if method == "ntk":
        return factor ** ((logarithm - shortest) / (longest - shortest))
    low, high = (math.log(l_train / turns) for turns in _TURNS)
    low = min(max(low, shortest), high)
    ramp = ((logarithm - low) / max(high - low, 1e-3)).clamp(0, 1)  # 0: the wave stays
    return 1 / (ramp / factor + 1 - ramp)


def stretchable() -> List[str]:
    """The representations that have wavelengths."""
    return [name for name in position_names() if position_class(name).overrides("stretched")]


def interpolated(position: Position, method: str, l_train: int, factor: Optional[float] = None) -> Position:
    """`position` by one of INTERPOLATIONS, or those parts of a combination that have wavelengths.

    l_train: the length of the training, in tokens. factor: of the stretch, 1e-9 to 1e9; by default S / l_train for S
    keys, padding among them, and 1 up to l_train. Raises ValueError if nothing has wavelengths, and for what is not
    accepted.
    """
    if method not in INTERPOLATIONS:
        raise ValueError(
            f"position_interpolation={method!r} is unknown; accepted are none, {', '.join(INTERPOLATIONS)}"
        )
    if not isinstance(l_train, numbers.Integral) or l_train < 1:
        raise ValueError(f"position_interpolation_from={l_train!r}: must be a whole number > 0")
    if factor is not None and not (isinstance(factor, numbers.Real) and 1e-9 <= factor <= 1e9):
        raise ValueError(f"position_interpolation_factor={factor!r}: must be > 0, from 1e-9 to 1e9")
    if not position.overrides("stretched"):
        raise ValueError(
            f"position_interpolation={method!r} stretches wavelengths, and this representation has none; accepted are "
            f"those with {', '.join(stretchable())}"
        )
    return _InterpolatedPosition(position, method, l_train, factor)


class _InterpolatedPosition(Position):
    """`position`, stretched by the factor or as the number of keys asks for."""

    def __init__(self, position: Position, method: str, l_train: int, factor: Optional[float]):
        super().__init__(position.head_dim, position.num_heads)
        self.position = position
        self.method, self.l_train, self.factor = method, l_train, factor

    def overrides(self, *methods: str) -> bool:  # type: ignore[override]
        """Whether `position` does, whose slots these are; it is not stretched again."""
        return methods != ("stretched",) and self.position.overrides(*methods)

    def _at(self, num_keys: int) -> Position:
        if self.factor is None:
            refuse_open_length(num_keys)
        factor = max(1.0, num_keys / self.l_train) if self.factor is None else self.factor
        if factor == 1:
            return self.position
        by = functools.partial(stretches, method=self.method, factor=factor, l_train=self.l_train)
        return without_modes(self.position.stretched, by) if is_traced() else self.position.stretched(by)

    def of_length(self, num_keys: int) -> Position:
        return self._at(num_keys)

    def rotate_query(self, query: Tensor, first: int) -> Tensor:
        return self._at(first + query.size(-2)).rotate_query(query, first)

    def rotate_key(self, key: Tensor, first: int) -> Tensor:
        num_keys = first + key.size(-2)
        if first and num_keys > self.l_train and self.factor is None and self.position.overrides("rotate_key"):
            raise ValueError(
                "position_interpolation_factor must be given where a cache keeps turned keys; the default, by the "
                "length, would turn all of them anew with each token"
            )
        return self._at(num_keys).rotate_key(key, first)

    def relative(self, num_lags: int, like: Tensor) -> Optional[Tensor]:
        return self._at(num_lags).relative(num_lags, like)

    def relative_query(self, query: Tensor) -> Tensor:
        return self.position.relative_query(query)

    def factors(self, num_lags: int, like: Tensor) -> Optional[Tuple[Optional[Tensor], Tensor]]:
        return self._at(num_lags).factors(num_lags, like)

    def bias(self, num_lags: int, like: Tensor) -> Optional[Tensor]:
        return self._at(num_lags).bias(num_lags, like)

    def gates(self, hidden: Tensor) -> Optional[Tensor]:
        return self.position.gates(hidden)

    def key_bias(self, gates: Optional[Tensor]) -> Optional[Tensor]:
        return self.position.key_bias(gates)
