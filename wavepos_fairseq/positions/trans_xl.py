"""Trans-XL, as the row of the paper's Table 1 is named: relative positions as sine waves, with nothing learned.

The authors describe it (in their Japanese paper, section 5.1) as the relative positions of Shaw et al. (2018) with the
sine waves of Transformer-XL (Dai et al., 2019) in place of the learned embedding. Transformer-XL's projection W_R and
biases u and v are not part of it.
"""

import torch
from torch import Tensor

from .base import FixedRelativePosition, register_position


def sine_waves(width: int, num_lags: int) -> Tensor:
    """sin(t / 10000^(2i / width)) in column 2i and its cosine in column 2i + 1: fp64 (num_lags, width)."""
    frequency = 10000 ** (-torch.arange(0, width, 2, dtype=torch.float64) / width)
    angle = torch.arange(num_lags, dtype=torch.float64)[:, None] * frequency
    return torch.stack((angle.sin(), angle.cos()), dim=-1).flatten(-2)[:, :width]


@register_position("trans-xl")
class SineWavePosition(FixedRelativePosition):
    """Slot p: the sinusoid of the lag."""

    def __init__(self, head_dim: int, num_heads: int):
        super().__init__(head_dim, num_heads)
        self.table = (sine_waves, (head_dim,))
