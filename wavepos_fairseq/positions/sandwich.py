"""Sandwich: the product of sinusoidal embeddings with each other as a bias (Chi et al., 2023, section 5)."""

from typing import Any, Dict

import torch
from torch import Tensor
from typing_extensions import Annotated

from . import Position, register_position
from .low_rank import cached_rows


@cached_rows
def _products(num_lags: int, num_dims: int, num_heads: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Of the sinusoids at distance t, less that at 0, divided by 8 h / H: (num_lags, H)."""
    fp64: Dict[str, Any] = {"dtype": torch.float64, "device": "cpu"}
    frequency = 10000 ** (-torch.arange(0, num_dims, 2, **fp64) / num_dims)  # (num_dims / 2,)
    product = ((torch.arange(num_lags, **fp64)[:, None] * frequency).cos() - 1).sum(1)  # (num_lags,)
    ratio = 8 * torch.arange(1, num_heads + 1, **fp64) / num_heads
    return (product[:, None] / ratio).to(device, dtype)


@register_position("sandwich")
class Sandwich(Position):
    """Slot b: b_h(t) = (sum_i cos(t / 10000^(2i/D)) - D / 2) H / (8 h), i from 0 to D / 2 - 1, h from 1 to H.

    D has nothing to do with the model's width. The constant D / 2, which no softmax sees, makes b_h(0) zero.
    """

    def __init__(
        self,
        head_dim: int,
        num_heads: int,
        sandwich_dims: Annotated[int, "dimensions D of the sinusoids whose products are the biases"] = 128,
    ):
        super().__init__(head_dim, num_heads)
        if sandwich_dims < 2 or sandwich_dims % 2:
            raise ValueError(f"sandwich_dims={sandwich_dims}: must be even and >= 2")
        self.num_dims = sandwich_dims

    def bias(self, num_lags: int, like: Tensor) -> Tensor:
        return _products(num_lags, self.num_dims, self.num_heads, like.dtype, like.device).T.clone()  # -> (H, num_lags)
