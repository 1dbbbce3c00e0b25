"""Transformer-XL's relative positions in full (Dai et al., 2019, section 3.3): W_R, u and v, all learned.

    A[m, n] = q_m . k_n  +  q_m . W_R r(m - n)  +  u . k_n  +  v . W_R r(m - n),      divided by sqrt(d)

r is the sinusoid of the lag, as wide as the model. The memory of earlier segments is not a position representation and
no part of it. `trans-xl` is what the paper's table calls by that name.
"""

import math
from typing import Callable, Tuple

import torch
from torch import Tensor, nn

from .base import Position, cached_factors, cached_table, power_of_two, register_position
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
        self.table = (sine_waves, (num_heads * head_dim,))  # r
        self._kept = {}  # by name what a table of the lags depends on, and the table, while nothing is learned

    def train(self, mode: bool = True) -> "TransformerXLPosition":
        self._kept.clear()  # for weights exchanged by way of their data, as averages of them are
        return super().train(mode)

    def rotate(self, query: Tensor, key: Tensor) -> Tuple[Tensor, Tensor]:
        return query + self.content_bias.to(query), key

    def relative(self, num_lags: int, like: Tensor) -> Tensor:
        waves = self._waves(num_lags, like)
        return waves @ self.projection.to(like).transpose(1, 2)  # (T, H d) @ (H, H d, d) -> (H, T, d)

    def factors(self, num_lags: int, like: Tensor) -> Tuple[None, Tensor]:
        """`relative`, the waves being taken as a product of their rank, to their rounding: half of the work."""
        return None, self._while_fixed(self._rows, num_lags, like)

    def bias(self, num_lags: int, like: Tensor) -> Tensor:
        return self._while_fixed(self._biases, num_lags, like)

    def _rows(self, num_lags: int, like: Tensor) -> Tensor:
        columns, rows = cached_factors(num_lags, *self.table, like.dtype, like.device)
        projected = (self.projection.to(like) @ columns).flatten(0, 1)  # (H d, r)
        return (rows @ projected.T).unflatten(1, (self.num_heads, self.head_dim)).transpose(0, 1)

    def _biases(self, num_lags: int, like: Tensor) -> Tensor:
        projected = self.position_bias.to(like) @ self.projection.to(like)  # (H, 1, H d)
        return (projected @ self._waves(num_lags, like).T)[:, 0] / math.sqrt(self.head_dim)

    def _while_fixed(self, compute: Callable[[int, Tensor], Tensor], num_lags: int, like: Tensor) -> Tensor:
        """compute(num_lags, like), (H, num_lags, ...), kept for the next calls while nothing is learned."""
        weights = (self.projection, self.position_bias)
        if torch.is_grad_enabled() and any(weight.requires_grad for weight in weights):
            self._kept.clear()  # fairseq's optimizers write to weight.data, which leaves the key as it was
            return compute(num_lags, like)
        num_rows = power_of_two(num_lags)
        key = (num_rows, like.dtype, like.device, *((weight.data_ptr(), weight._version) for weight in weights))
        if self._kept.get(compute.__name__, (None,))[0] != key:
            with torch.inference_mode(False), torch.no_grad():
                self._kept[compute.__name__] = (key, compute(num_rows, like))
        return self._kept[compute.__name__][1][:, :num_lags]

    def _waves(self, num_lags: int, like: Tensor) -> Tensor:
        return cached_table(num_lags, *self.table, like.dtype, like.device)
