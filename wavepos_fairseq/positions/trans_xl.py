"""Trans-XL, a row of the paper's Table 1: relative positions as sine waves, with nothing learned.

The authors' Japanese paper (section 5.1) describes it as the relative positions of Shaw et al. (2018) with the sine
waves of Transformer-XL (Dai et al., 2019) in place of the learned embedding. It has neither Transformer-XL's projection
W_R nor its biases u and v.
"""

import copy
import math
from typing import Any, Callable, Dict, Tuple

import torch
from torch import Tensor

from . import FixedRelativePosition, register_position


def sine_waves(width: int, num_lags: int) -> Tensor:
    """sin(t / 10000^(2i / width)) in column 2i and its cosine in column 2i + 1: fp64 (num_lags, width) on the CPU."""
    return _stretched_waves(width, (1.0,), num_lags)


def _stretched_waves(width: int, stretches: Tuple[float, ...], num_lags: int) -> Tensor:
    fp64: Dict[str, Any] = {"dtype": torch.float64, "device": "cpu"}
    frequency = _frequencies(width) / torch.tensor(stretches, **fp64)
    angle = torch.arange(num_lags, **fp64)[:, None] * frequency  # (num_lags, width / 2)
    return torch.stack((angle.sin(), angle.cos()), dim=-1).flatten(-2)[:, :width]


def _frequencies(width: int) -> Tensor:
    """10000^(-2i / width): fp64 (width / 2,) on the CPU."""
    return 10000 ** (-torch.arange(0, width, 2, dtype=torch.float64, device="cpu") / width)


@register_position("trans-xl")
class SineWavePosition(FixedRelativePosition):
    """Slot p: the sinusoid of the lag."""

    def __init__(self, head_dim: int, num_heads: int):
        super().__init__(head_dim, num_heads)
        self.table = (sine_waves, (head_dim,))

    def stretched(self, by: Callable[[Tensor], Tensor]) -> "SineWavePosition":
        made = copy.copy(self)
        made.table = (_stretched_waves, (self.head_dim, tuple(by(2 * math.pi / _frequencies(self.head_dim)).tolist())))
        return made
