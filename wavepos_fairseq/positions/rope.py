"""RoPE: queries and keys rotated by their absolute position (Su et al., 2021; Eq. 6 of Oka et al., 2025)."""

from typing import Tuple

import torch
from torch import Tensor
from typing_extensions import Annotated

from .base import Position, cached_rows, register_position


@cached_rows
def _rotations(num_positions: int, head_dim: int, theta: float, dtype: torch.dtype, device: torch.device) -> Tensor:
    """exp(i m theta_i), theta_i = theta^(-2(i-1)/d): complex (num_positions, d / 2), rounded from fp64."""
    frequency = theta ** (-torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim)
    angle = torch.arange(num_positions, dtype=torch.float64)[:, None] * frequency
    return torch.polar(torch.ones_like(angle), angle).to(device, dtype)


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
            raise ValueError(
                "--position-encoding rope and rope-wavelet need an even head width, but a head has "
                f"{head_dim} dimensions"
            )
        if not 0 < rope_theta < float("inf"):
            raise ValueError(f"--rope-theta {rope_theta}: must be > 0 and finite")
        self.rope_theta = float(rope_theta)

    def rotate(self, query: Tensor, key: Tensor) -> Tuple[Tensor, Tensor]:
        dtype = torch.complex128 if query.dtype == torch.float64 else torch.complex64
        rotations = _rotations(key.size(-2), self.head_dim, self.rope_theta, dtype, query.device)
        return _turn(query, rotations[-query.size(-2) :]), _turn(key, rotations)


def _turn(x: Tensor, rotations: Tensor) -> Tensor:
    pairs = x.to(rotations.real.dtype).unflatten(-1, (-1, 2))  # half precision has no complex numbers
    return torch.view_as_real(torch.view_as_complex(pairs) * rotations).flatten(-2).to(x)
