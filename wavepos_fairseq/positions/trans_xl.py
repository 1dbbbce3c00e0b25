"""Trans-XL, as the row of the paper's Table 1 is named: relative positions as sine waves, with nothing learned.

The authors describe it (in their Japanese paper, section 5.1) as the relative positions of Shaw et al. (2018) with the
sine waves of Transformer-XL (Dai et al., 2019) in place of the learned embedding. Transformer-XL's projection W_R and
biases u and v are not part of it.
"""

import torch
from torch import Tensor

from .base import Position, cached_rows, register_position


@cached_rows
def sine_waves(num_lags: int, head_dim: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """sin(t / 10000^(2i/d)) in column 2i and its cosine in column 2i + 1, (num_lags, d), rounded from fp64."""
    frequency = 10000 ** (-torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim)
    angle = torch.arange(num_lags, dtype=torch.float64)[:, None] * frequency
    return torch.stack((angle.sin(), angle.cos()), dim=-1).flatten(-2)[:, :head_dim].to(device, dtype)


@register_position("trans-xl")
class SineWavePosition(Position):
    """Slot p: the sinusoid of the lag."""

    def relative(self, num_lags: int, like: Tensor) -> Tensor:
        return sine_waves(num_lags, self.head_dim, like.dtype, like.device)
