"""RoPE: queries and keys rotated by their absolute position (Su et al., 2021; Eq. 6 of Oka et al., 2025)."""

from functools import lru_cache
from typing import Tuple

import torch
from torch import Tensor
from typing_extensions import Annotated

from .base import Position, capacity, register_position


@lru_cache(maxsize=8)
def _rotations(num_positions: int, head_dim: int, theta: float, dtype: torch.dtype, device: torch.device):
    """cos and sin of m theta_i, theta_i = theta^(-2(i-1)/d), each (num_positions, d / 2), rounded from fp64."""
    frequency = theta ** (-torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim)
    angle = torch.arange(num_positions, dtype=torch.float64)[:, None] * frequency
    return angle.cos().to(device, dtype), angle.sin().to(device, dtype)


@register_position("rope")
class RotaryPosition(Position):
    """Slot R: the pair of dimensions (2i - 2, 2i - 1) of position m is turned by the angle m theta_i."""

    def __init__(
        self,
        head_dim: int,
        num_heads: int,
        rope_theta: Annotated[
            float, "base of the rotation's wavelengths: 10000 (Su et al.) or 500000 (Xiong et al.)"
        ] = 10000.0,
    ):
        super().__init__(head_dim, num_heads)
        if head_dim % 2:
            raise ValueError(f"--position-encoding rope needs an even head width, but a head has {head_dim} dimensions")
        if not rope_theta > 0:
            raise ValueError(f"--rope-theta {rope_theta}: must be > 0")
        self.rope_theta = float(rope_theta)

    def rotate(self, query: Tensor, key: Tensor) -> Tuple[Tensor, Tensor]:
        num_keys = key.size(-2)
        cos, sin = _rotations(capacity(num_keys), self.head_dim, self.rope_theta, query.dtype, query.device)
        first = num_keys - query.size(-2)
        return (
            _turn(query, cos[first:num_keys], sin[first:num_keys]),
            _turn(key, cos[:num_keys], sin[:num_keys]),
        )


def _turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    even, odd = x[..., 0::2], x[..., 1::2]
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1).flatten(-2)
