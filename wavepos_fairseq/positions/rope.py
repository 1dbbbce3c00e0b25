"""RoPE: queries and keys rotated by their absolute position (Su et al., 2021; Eq. 6 of Oka et al., 2025)."""

from typing import Any, Dict, Tuple

import torch
from torch import Tensor
from typing_extensions import Annotated

from . import Position, register_position
from .low_rank import cached_rows
from .tracing import is_traced


@cached_rows
def _rotations(num_positions: int, head_dim: int, theta: float, dtype: torch.dtype, device: torch.device) -> Tensor:
    """cos and sin of m theta_i, theta_i = theta^(-2(i-1)/d): (num_positions, d / 2, 2), rounded from fp64."""
    fp64: Dict[str, Any] = {"dtype": torch.float64, "device": "cpu"}
    frequency = theta ** (-torch.arange(0, head_dim, 2, **fp64) / head_dim)  # (d / 2,)
    angle = torch.arange(num_positions, **fp64)[:, None] * frequency  # (num_positions, d / 2)
    return torch.stack((angle.cos(), angle.sin()), dim=-1).to(device, dtype)


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
            raise ValueError(f"head_dim={head_dim}: must be even; rope and rope-wavelet turn pairs of dimensions")
        if not 0 < rope_theta < float("inf"):
            raise ValueError(f"rope_theta={rope_theta}: must be > 0 and finite")
        self.rope_theta = float(rope_theta)

    def rotate(self, query: Tensor, key: Tensor) -> Tuple[Tensor, Tensor]:
        dtype = torch.promote_types(query.dtype, torch.float32)  # half precision has no complex numbers
        rotations = _rotations(key.size(-2), self.head_dim, self.rope_theta, dtype, query.device)
        return _turn_pairs(query, rotations[key.size(-2) - query.size(-2) :]), _turn_pairs(key, rotations)


def _turn_pairs(x: Tensor, rotations: Tensor) -> Tensor:
    """The pairs of x (.., S, d), turned by rotations (S, d / 2, 2): (.., S, d)."""
    pairs = x.to(rotations.dtype).unflatten(-1, (-1, 2))  # (.., S, d) -> (.., S, d / 2, 2)
    if is_traced():  # ONNX has no complex numbers
        (first, second), (cos, sin) = pairs.unbind(-1), rotations.unbind(-1)
        turned = torch.stack((first * cos - second * sin, first * sin + second * cos), dim=-1)
    else:
        turned = torch.view_as_real(torch.view_as_complex(pairs) * torch.view_as_complex(rotations))
    return turned.flatten(-2).to(x)
