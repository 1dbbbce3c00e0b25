"""ALiBi: attention with linear biases (Press et al., 2022; Eq. 9 of Oka et al., 2025)."""

import math
from typing import Any, Dict, List

import torch
from torch import Tensor

from . import Position, register_position
from .low_rank import cached_rows


def alibi_slopes(num_heads: int) -> List[float]:
    """The slopes of H heads: 2^(-8/H), 2^(-16/H) ... 2^-8 for H a power of two, so 1/2 ... 1/256 for 8 heads.

    Any other H has the slopes of the next lower power of two, then every second one of the next higher (Press et al.,
    `get_slopes` of the release).
    """
    power = 2 ** int(math.log2(num_heads))
    slopes = [2 ** (-8 * head / power) for head in range(1, power + 1)]
    return slopes if power == num_heads else slopes + alibi_slopes(2 * power)[0::2][: num_heads - power]


@cached_rows
def _biases(num_lags: int, num_heads: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    fp64: Dict[str, Any] = {"dtype": torch.float64, "device": "cpu"}
    lag, slopes = torch.arange(num_lags, **fp64), torch.tensor(alibi_slopes(num_heads), **fp64)
    return (-lag[:, None] * slopes).to(device, dtype)  # (num_lags, 1) * (H,) -> (num_lags, H)


@register_position("alibi")
class LinearBias(Position):
    """Slot b: b_h(t) = -slope_h t, not divided by sqrt(d)."""

    def bias(self, num_lags: int, like: Tensor) -> Tensor:
        return _biases(num_lags, self.num_heads, like.dtype, like.device).T  # (num_lags, H) -> (H, num_lags)
