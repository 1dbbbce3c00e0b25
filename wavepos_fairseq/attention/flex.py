"""Slots p, b and c for PyTorch's FlexAttention, in models that call it themselves."""

import math
from typing import Callable, Optional

import torch
import torch.nn.functional as F
from torch import Tensor

from ..positions import Position
from .reference import bias_of_keys


def score_mod(position: Position, query: Tensor, gates: Optional[Tensor] = None) -> Optional[Callable[..., Tensor]]:
    """The score_mod that adds q_m . p(t) / sqrt(d) + b_h(t) + c_h(n), or None where these slots are empty.

    query: (B, H, L, d) before R, of all L positions; gates: (B, H, L), as in `causal_attention`. R is applied to what
    FlexAttention gets::

        causal = create_block_mask(lambda b, h, m, n: m >= n, None, None, L, L)
        rotated_query, rotated_key = position.rotate(query, key)
        flex_attention(rotated_query, rotated_key, value, score_mod=score_mod(position, query), block_mask=causal)

    Slot p takes B H L (T + 1) numbers, T being the lag from which on it is zero. A vector that p has at all lags may be
    left out, which the softmax does not see (`Position.factors`). Raises RuntimeError before PyTorch 2.5.
    """
    try:
        from torch.nn.attention import flex_attention  # noqa: F401
    except ImportError:
        why = f"score_mod is for FlexAttention, which PyTorch has from 2.5 on; this is {torch.__version__}"
        raise RuntimeError(why) from None
    num_lags = query.size(-2)
    factors, bias = position.factors(num_lags, like=query), position.bias(num_lags, like=query)
    key_bias = bias_of_keys(position, gates, query, num_lags)
    if factors is None and bias is None and key_bias is None:
        return None
    if factors is not None:
        projection, rows = factors  # (d, r), and (T, r) or (H, T, r)
        projected_query = position.relative_query(query) / math.sqrt(query.size(-1))
        if projection is not None:
            projected_query = projected_query @ projection  # (B, H, L, d) @ (d, r) -> (B, H, L, r)
        reach = rows.size(-2)  # T
        by_lag = F.pad(projected_query @ rows.transpose(-2, -1), (0, 1))  # (B, H, L, T + 1)

    def with_position(score: Tensor, batch: Tensor, head: Tensor, m: Tensor, n: Tensor) -> Tensor:
        lag = (m - n).clamp(min=0)  # FlexAttention also asks about keys that the mask hides
        if factors is not None:
            score = score + by_lag[batch, head, m, lag.clamp(max=reach)]
        if key_bias is not None:
            score = score + (key_bias[batch, head, n] - key_bias[batch, head, m]).to(score.dtype)
        return score if bias is None else score + bias[head, lag]

    return with_position
