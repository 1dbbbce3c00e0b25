"""xPos: RoPE whose pairs of dimensions also decay over the lag (Sun et al., 2023, section 3)."""

import math
from typing import Any, Dict, Tuple

import torch
from torch import Tensor
from typing_extensions import Annotated

from . import register_position
from .low_rank import cached_rows
from .rope import RotaryPosition, Theta

GAMMA = 0.4  # Sun et al.'s: the pair that turns fastest decays by 0.4 / 1.4 in `xpos_scale` tokens
_MOST_OF_A_KEY = 2**12  # what the factor of a key leaves room for; in fp16, which ends at 2^16, 2^4


@cached_rows
def _decays(
    num_positions: int, head_dim: int, scales: Tuple[float, ...], dtype: torch.dtype, device: torch.device
) -> Tensor:
    """zeta_i^(m / scale_i), zeta_i = (2i / d + gamma) / (1 + gamma): (num_positions, d / 2), from fp64."""
    fp64: Dict[str, Any] = {"dtype": torch.float64, "device": "cpu"}
    zeta = (torch.arange(0, head_dim, 2, **fp64) / head_dim + GAMMA) / (1 + GAMMA)
    position = torch.arange(num_positions, **fp64)[:, None]
    return (zeta ** (position / torch.tensor(scales, **fp64))).to(device, dtype)


@register_position("xpos")
class DecayingRotaryPosition(RotaryPosition):
    """Slot R: as `rope`; pair i of a query at m is also multiplied by zeta_i^(m / scale), a key's at n divided by it.

    So their product decays as zeta_i^((m - n) / scale). Each factor alone grows with the position: 512 tokens multiply
    the fastest pair of a key by 3.5. So keys in fp16 end at 3,400 tokens, in fp32 and bf16 at 32,000; beyond that
    ValueError is raised. A pair that is stretched decays as slowly as it turns.
    """

    def __init__(
        self,
        head_dim: int,
        num_heads: int,
        rope_theta: Theta = 10000.0,
        xpos_scale: Annotated[float, "tokens over which the fastest pair decays to 0.29"] = 512.0,
    ):
        super().__init__(head_dim, num_heads, rope_theta)
        if not 0 < xpos_scale < float("inf"):
            raise ValueError(f"xpos_scale={xpos_scale}: must be > 0 and finite")
        self.xpos_scale = float(xpos_scale)

    def rotate_query(self, query: Tensor, first: int) -> Tensor:
        return super().rotate_key(query * self._decay(query, first), first).to(query)

    def rotate_key(self, key: Tensor, first: int) -> Tensor:
        return super().rotate_key(key / self._decay(key, first), first).to(key)

    def _decay(self, like: Tensor, first: int) -> Tensor:
        dtype = torch.promote_types(like.dtype, torch.float32)
        scales = tuple(self.xpos_scale * stretch for stretch in self.stretches)
        length = first + like.size(-2)
        most = torch.finfo(like.dtype).max / (2**4 if like.dtype == torch.float16 else _MOST_OF_A_KEY)
        if length * math.log((1 + GAMMA) / GAMMA) / min(scales) > math.log(most):
            raise ValueError(
                f"xpos_scale={self.xpos_scale}: at {length} tokens its factors, which grow with the position, are "
                f"beyond {like.dtype}; accepted is a greater one"
            )
        decays = _decays(length, self.head_dim, scales, dtype, like.device)[first:]
        return decays[..., None].expand(-1, -1, 2).flatten(1)  # (S, d / 2) -> (S, d), both of a pair
