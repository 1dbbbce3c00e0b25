"""Transformer-XL's relative positions in full (Dai et al., 2019, section 3.3): W_R, u and v, all learned.

    A[m, n] = q_m . k_n  +  q_m . W_R r(m - n)  +  u . k_n  +  v . W_R r(m - n),      divided by sqrt(d)

r is the sinusoid of the lag, as wide as the model. The memory of earlier segments is not a position representation and
no part of it. `trans-xl` is what the paper's table calls by that name.
"""

import math
from typing import Tuple

import torch
from torch import Tensor, nn

from .base import Position, cached_table, power_of_two, register_position
from .trans_xl import sine_waves


@register_position("transformer-xl")
class TransformerXLPosition(Position):
    """Slot R: u is added to the queries; slot p: p_h(t) = W_R,h r(t); slot b: v_h . p_h(t) / sqrt(d).

    Every layer has a W_R, a u and a v of its own, as with the release's --untie_r. All start at zero, which is NoPE
    (see `rpe`).
    """

    def __init__(self, head_dim: int, num_heads: int):
        super().__init__(head_dim, num_heads)
        self.projection = nn.Parameter(torch.zeros(num_heads, head_dim, num_heads * head_dim))  # W_R
        self.content_bias = nn.Parameter(torch.zeros(num_heads, 1, head_dim))  # u
        self.position_bias = nn.Parameter(torch.zeros(num_heads, 1, head_dim))  # v
        self._kept = (None, None)  # what the vectors depend on, and the vectors, while nothing is learned

    def rotate(self, query: Tensor, key: Tensor) -> Tuple[Tensor, Tensor]:
        return query + self.content_bias.to(query), key

    def relative(self, num_lags: int, like: Tensor) -> Tensor:
        if torch.is_grad_enabled() and self.projection.requires_grad:
            return self._projected(num_lags, like)
        num_rows, weight = power_of_two(num_lags), self.projection
        key = (num_rows, like.dtype, like.device, weight.data_ptr(), weight._version)
        if self._kept[0] != key:
            with torch.inference_mode(False), torch.no_grad():
                self._kept = (key, self._projected(num_rows, like))
        return self._kept[1][:, :num_lags]

    def _projected(self, num_lags: int, like: Tensor) -> Tensor:
        waves = self._waves(num_lags, like)
        return waves @ self.projection.to(like).transpose(1, 2)  # (T, H d) @ (H, H d, d) -> (H, T, d)

    def bias(self, num_lags: int, like: Tensor) -> Tensor:
        projected = self.position_bias.to(like) @ self.projection.to(like)  # (H, 1, H d)
        return (projected @ self._waves(num_lags, like).T)[:, 0] / math.sqrt(self.head_dim)

    def _waves(self, num_lags: int, like: Tensor) -> Tensor:
        return cached_table(num_lags, sine_waves, (self.num_heads * self.head_dim,), like.dtype, like.device)
