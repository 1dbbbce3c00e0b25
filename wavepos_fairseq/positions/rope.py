"""RoPE: queries and keys rotated by their absolute position (Su et al., 2021; Eq. 6 of Oka et al., 2025)."""

import copy
import math
from typing import Any, Callable, Dict, Tuple

import torch
from torch import Tensor
from typing_extensions import Annotated

from . import Position, register_position
from .low_rank import cached_rows
from .tracing import is_traced

ROPE_PAIRS = {"adjacent": ((-1, 2), -1), "halves": ((2, -1), -2)}  # how a head is unflattened; the axis of a pair

Theta = Annotated[float, "base of the rotation's wavelengths: 10000 (Su et al.) or 500000 (Xiong et al.)"]


def _frequencies(head_dim: int, theta: float) -> Tensor:
    """theta_i: fp64 (d / 2,) on the CPU."""
    return theta ** (-torch.arange(0, head_dim, 2, dtype=torch.float64, device="cpu") / head_dim)


@cached_rows
def _rotations(
    num_positions: int,
    head_dim: int,
    theta: float,
    dtype: torch.dtype,
    device: torch.device,
    stretches: Tuple[float, ...] = (1.0,),
) -> Tensor:
    """cos and sin of m theta_i, theta_i = theta^(-2(i-1)/d) / stretch_i: (num_positions, d / 2, 2), from fp64."""
    fp64: Dict[str, Any] = {"dtype": torch.float64, "device": "cpu"}
    frequency = _frequencies(head_dim, theta) / torch.tensor(stretches, **fp64)
    angle = torch.arange(num_positions, **fp64)[:, None] * frequency  # (num_positions, d / 2)
    return torch.stack((angle.cos(), angle.sin()), dim=-1).to(device, dtype)


def _as_complex(pairs: Tensor) -> Tensor:
    """(.., 2) -> (..), of a copy where the layout in memory does not allow a view."""
    *strides, of_pair = pairs.stride()
    if of_pair != 1 or any(number % 2 for number in (pairs.storage_offset(), *strides)):
        pairs = pairs.clone(memory_format=torch.contiguous_format)
    return torch.view_as_complex(pairs)


@register_position("rope")
class RotaryPosition(Position):
    """Slot R: pair i of the dimensions of position m is turned by the angle m theta_i, in queries as in keys."""

    def __init__(
        self,
        head_dim: int,
        num_heads: int,
        rope_theta: Theta = 10000.0,
        rope_pairs: Annotated[
            str,
            "pairs of dimensions that turn together. adjacent: 2i and 2i + 1 (Su et al.); halves: i and i + d/2, as in "
            "GPT-NeoX and in Hugging Face's Llama",
        ] = "adjacent",
    ):
        super().__init__(head_dim, num_heads)
        if head_dim % 2:
            raise ValueError(f"head_dim={head_dim}: must be even, because pairs of dimensions turn")
        if not 0 < rope_theta < float("inf"):
            raise ValueError(f"rope_theta={rope_theta}: must be > 0 and finite")
        if rope_pairs not in ROPE_PAIRS:
            raise ValueError(f"rope_pairs={rope_pairs!r} is unknown; accepted are {', '.join(ROPE_PAIRS)}")
        self.rope_theta = float(rope_theta)
        self.shape, self.axis = ROPE_PAIRS[rope_pairs]
        self.stretches: Tuple[float, ...] = (1.0,)

    def stretched(self, by: Callable[[Tensor], Tensor]) -> "RotaryPosition":
        made = copy.copy(self)
        made.stretches = tuple(by(2 * math.pi / _frequencies(self.head_dim, self.rope_theta)).tolist())
        return made

    def rotate_query(self, query: Tensor, first: int) -> Tensor:
        return self.rotate_key(query, first)

    def rotate_key(self, key: Tensor, first: int) -> Tensor:
        dtype = torch.promote_types(key.dtype, torch.float32)  # half precision has no complex numbers
        table = (self.head_dim, self.rope_theta, dtype, key.device, self.stretches)
        rotations = _rotations(first + key.size(-2), *table)[first:]
        pairs = key.to(dtype).unflatten(-1, self.shape)  # (.., S, d) -> (.., S, d / 2, 2) or (.., S, 2, d / 2)
        if self.axis == -1 and not is_traced():  # ONNX has no complex numbers
            turned = torch.view_as_real(_as_complex(pairs) * torch.view_as_complex(rotations))
        else:
            (one, other), (cos, sin) = pairs.unbind(self.axis), rotations.unbind(-1)  # each (.., S, d / 2)
            turned = torch.stack((one * cos - other * sin, one * sin + other * cos), dim=self.axis)
        return turned.flatten(-2).to(key)
