"""Transformer-XL's relative positions in full (Dai et al., 2019, section 3.3): W_R, u and v, all learned.

    A[m, n] = q_m . k_n  +  q_m . W_R r(m - n)  +  u . k_n  +  v . W_R r(m - n),      divided by sqrt(d)

r is the sinusoid of the lag, as wide as the model. The memory of earlier segments is no position representation and not
part of this. The row that the paper's table calls Trans-XL is `trans-xl`.
"""

from typing import Any, Tuple

import torch
from torch import Tensor, nn

from . import Position, register_position
from .low_rank import cached_factors, cached_table, next_power_of_two
from .trans_xl import sine_waves


@register_position("transformer-xl")
class TransformerXLPosition(Position):
    """Slot R: u is added to the queries; slot p: p_h(t) = W_R,h r(t), v being added to the queries.

    Each layer has its own W_R, u and v, as with --untie_r in the release. All start at zero, which is NoPE (see `rpe`).
    """

    def __init__(self, head_dim: int, num_heads: int):
        super().__init__(head_dim, num_heads)
        self.projection = nn.Parameter(torch.empty(num_heads, head_dim, num_heads * head_dim))  # W_R
        self.content_bias = nn.Parameter(torch.empty(num_heads, 1, head_dim))  # u
        self.position_bias = nn.Parameter(torch.empty(num_heads, 1, head_dim))  # v
        self.reset_parameters()
        self.table = (sine_waves, (num_heads * head_dim,))  # r
        self._kept: Tuple[Any, ...] = (None, None, None)  # (lags, dtype, device), the W_R used, and W_R r(t)

    def reset_parameters(self) -> None:
        for parameter in (self.projection, self.content_bias, self.position_bias):
            nn.init.zeros_(parameter)

    def rotate_query(self, query: Tensor, first: int) -> Tensor:
        return query + self.content_bias.to(query)

    def relative(self, num_lags: int, like: Tensor) -> Tensor:
        waves = cached_table(num_lags, *self.table, like.dtype, like.device)
        return waves @ self.projection.to(like).transpose(1, 2)  # (T, H d) @ (H, H d, d) -> (H, T, d)

    def relative_query(self, query: Tensor) -> Tensor:
        return query + self.position_bias.to(query)

    def factors(self, num_lags: int, like: Tensor) -> Tuple[None, Tensor]:
        """`relative` with the waves as a product of low rank, exact to their rounding: half of the work.

        Without gradients the result is kept, together with a copy of its W_R. The copy is compared, because a parameter
        can change unseen: through its data, or replaced for one call (averages, `torch.func.functional_call`).
        """
        if like.is_meta or torch.is_grad_enabled() and self.projection.requires_grad:
            return None, self._rows(num_lags, like)
        size = next_power_of_two(num_lags), like.dtype, like.device
        kept_size, kept_projection, rows = self._kept
        if kept_size != size or not torch.equal(kept_projection, self.projection):
            with torch.inference_mode(False), torch.no_grad():
                rows = self._rows(size[0], like)
                self._kept = size, self.projection.detach().clone(), rows
        return None, rows[:, :num_lags]

    def _rows(self, num_lags: int, like: Tensor) -> Tensor:
        columns, rows = cached_factors(num_lags, *self.table, like.dtype, like.device)  # (H d, r), (T, r)
        projected = (self.projection.to(like) @ columns).flatten(0, 1)  # (H, d, H d) @ (H d, r) -> (H d, r)
        return (projected @ rows.T).unflatten(0, (self.num_heads, self.head_dim)).transpose(1, 2)  # -> (H, T, d)
