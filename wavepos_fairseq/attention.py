"""Causal self-attention with any position representation, once as the formula says and once fast.

    score[m, n] = ( R_m(q_m) . R_n(k_n)  +  q_m . p(t) ) / sqrt(d)  +  b_h(t),      t = m - n >= 0

The representation is a `positions.Position`, which is known here by its slots R, p and b only. B is the batch size, H
the number of heads, d their width, S the number of keys and L <= S that of queries, which are the last L positions (in
incremental decoding L is 1). There is no padding mask: padding on the right is not seen by any earlier query.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from .positions import Position


def reference_attention(
    query: Tensor, key: Tensor, value: Tensor, position: Position, dropout_p: float = 0.0
) -> Tensor:
    """The definition, spelled out with its L x S x d tensor: slow, and what everything fast is compared with.

    query: (B, H, L, d); key, value: (B, H, S, d) with S >= L; dropout_p: dropout probability of the attention weights.
    Returns (B, H, L, d).
    """
    num_queries, num_keys, head_dim = _sizes(query, key, value)
    lag = torch.arange(num_keys - num_queries, num_keys)[:, None] - torch.arange(num_keys)  # (L, S)
    lag = lag.to(query.device)
    past = lag.clamp(min=0)
    rotated_query, rotated_key = position.rotate(query, key)
    score = torch.einsum("bhmd,bhnd->bhmn", rotated_query, rotated_key)
    relative = position.relative(num_keys, like=query)
    if relative is not None:
        relative = relative.expand(query.size(1), -1, -1)  # (H, S, d)
        score = score + torch.einsum("bhmd,hmnd->bhmn", query, relative[:, past])
    score = score / math.sqrt(head_dim)
    bias = position.bias(num_keys, like=query)
    if bias is not None:
        score = score + bias[:, past]
    weight = score.masked_fill(lag < 0, -math.inf).softmax(dim=-1)
    return F.dropout(weight, dropout_p) @ value


def causal_attention(query: Tensor, key: Tensor, value: Tensor, position: Position, dropout_p: float = 0.0) -> Tensor:
    """`reference_attention` without its L x S x d tensor, through PyTorch's scaled_dot_product_attention.

    query: (B, H, L, d); key, value: (B, H, S, d) with S >= L; dropout_p: dropout probability of the attention weights.
    Returns (B, H, L, d). Raises ValueError for other shapes.
    """
    num_queries, num_keys, _ = _sizes(query, key, value)
    rotated_query, rotated_key = position.rotate(query, key)
    mask = _additive_mask(query, num_keys, position)
    if mask is None and num_queries > 1:
        if num_queries == num_keys:
            return F.scaled_dot_product_attention(
                rotated_query, rotated_key, value, dropout_p=dropout_p, is_causal=True
            )
        mask = query.new_ones(num_queries, num_keys, dtype=torch.bool).tril(num_keys - num_queries)
    return F.scaled_dot_product_attention(rotated_query, rotated_key, value, attn_mask=mask, dropout_p=dropout_p)


def _additive_mask(query: Tensor, num_keys: int, position: Position):
    """What the slots p and b add to the scaled scores, -inf for the future: (B or 1, H, L, S); None for empty slots."""
    relative = position.relative(num_keys, like=query)
    bias = position.bias(num_keys, like=query)
    scores = None  # over the lags S - 1 .. 0 and a last column for _lags_to_keys: (B or 1, H, L, S + 1)
    if relative is not None:
        relative = F.pad(relative.flip(-2), (0, 0, 0, 1))
        scores = (query / math.sqrt(query.size(-1))) @ relative.transpose(-2, -1)
    if bias is not None:
        bias = F.pad(bias.flip(-1), (0, 1))[:, None]
        scores = bias.expand(-1, query.size(-2), -1)[None] if scores is None else scores + bias
    return None if scores is None else _lags_to_keys(scores)


def _lags_to_keys(scores: Tensor) -> Tensor:
    """Scores over descending lags to scores over keys, by a change of view (Dai et al., 2019, appendix B).

    scores: (..., L, S + 1), the lags S - 1 .. 0 and a last column to be overwritten. Returns (..., L, S), -inf for keys
    in the future. Row i of L has only the lags up to S - L + i. With the impossible ones and the last column set to
    -inf, dropping the first L - 1 numbers of the flattened rows makes every row start at its own key 0, and the future
    keys of a row are the impossible lags of the next.
    """
    num_queries, width = scores.shape[-2:]
    column = torch.arange(width, device=scores.device)
    first = torch.arange(num_queries - 1, -1, -1, device=scores.device)[:, None]
    scores = scores.masked_fill((column < first) | (column == width - 1), -math.inf)
    return scores.flatten(-2)[..., num_queries - 1 : -1].unflatten(-1, (num_queries, width - 1))


def _sizes(query: Tensor, key: Tensor, value: Tensor):
    """L, S and d of arguments whose shapes fit; ValueError otherwise."""
    num_queries, head_dim = query.shape[-2:]
    num_keys = key.size(-2)
    if key.shape != value.shape or query.shape[:-2] != key.shape[:-2] or head_dim != key.size(-1):
        raise ValueError(
            f"query (B, H, L, d), key and value (B, H, S, d) do not fit: {tuple(query.shape)}, {tuple(key.shape)}, "
            f"{tuple(value.shape)}"
        )
    if num_queries > num_keys:
        raise ValueError(f"{num_queries} queries for {num_keys} keys: the queries are the last positions of the keys")
    return num_queries, num_keys, head_dim
