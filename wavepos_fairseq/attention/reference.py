"""The definition of attention with a position representation. Fast implementations are compared with it in the tests.

    score[m, n] = ( R_m(q_m) . R_n(k_n)  +  q_m . p(t) ) / sqrt(d)  +  b_h(t),      t = m - n >= 0

The package's docstring explains the letters, `positions.Position` the slots R, p and b.
"""

import math
from typing import Tuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..positions import Position


def attention_weights(query: Tensor, key: Tensor, position: Position, rotated_keys: bool = False) -> Tensor:
    """The softmax over the keys of the formula's scores. Slot p costs a tensor of L x S x d numbers.

    query: (B, H, L, d); key: (B, H, S, d) with S >= L; rotated_keys: whether they have been through
    `position.rotate_key`. Returns (B, H, L, S), zero for keys in a query's future.
    """
    num_queries, num_keys = query.size(-2), key.size(-2)
    place = torch.arange(num_keys, device=query.device)
    lag = place[num_keys - num_queries :, None] - place  # (L, 1) - (S,) -> (L, S)
    past = lag.clamp(min=0)
    rotated_query, rotated_key = position.rotate(query, key, rotated_keys)
    score = torch.einsum("bhmd,bhnd->bhmn", rotated_query, rotated_key)  # (B, H, L, S)
    relative = position.relative(num_keys, like=query)
    if relative is not None:
        heads = "h" if relative.dim() == 3 else ""
        vectors = relative[..., past, :]  # (S, d) -> (L, S, d), or (H, S, d) -> (H, L, S, d)
        score = score + torch.einsum(f"bhmd,{heads}mnd->bhmn", position.relative_query(query), vectors)
    score = score / math.sqrt(query.size(-1))
    bias = position.bias(num_keys, like=query)
    if bias is not None:
        score = score + bias[:, past]  # (H, S) -> (H, L, S)
    return score.masked_fill(lag < 0, -math.inf).softmax(dim=-1)


def reference_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    position: Position,
    dropout_p: float = 0.0,
    rotated_keys: bool = False,
) -> Tensor:
    """`attention_weights` times the values: slow and exact.

    query: (B, H, L, d); key, value: (B, H, S, d) with S >= L; dropout_p: dropout probability of the attention weights;
    rotated_keys: whether the keys have been through `position.rotate_key`. Returns (B, H, L, d).

    Raises ValueError for tensors that do not fit together.
    """
    check_tensors(query, key, value, position)
    weights = attention_weights(query, key, position, rotated_keys)  # (B, H, L, S)
    return F.dropout(weights, dropout_p) @ value  # (B, H, L, S) -> (B, H, L, d)


def check_tensors(query: Tensor, key: Tensor, value: Tensor, position: Position) -> Tuple[int, int, int]:
    """L, S and d. Raises ValueError where shapes, dtypes, devices or the representation do not fit together."""
    tensors = (query, key, value)
    fit = query.dim() == 4 and key.shape == value.shape and _without_length(query) == _without_length(key)
    if not fit:
        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in tensors)
        raise ValueError(f"query (B, H, L, d), key and value (B, H, S, d) do not fit: {shapes}")
    for what in ("dtype", "device"):
        if not getattr(query, what) == getattr(key, what) == getattr(value, what):
            given = ", ".join(str(getattr(tensor, what)) for tensor in tensors)
            raise ValueError(f"query, key and value must have one {what}, not {given}")
    if not query.is_floating_point():
        raise ValueError(f"query, key and value must be floating-point tensors, not {query.dtype}")
    _, num_heads, num_queries, head_dim = query.shape
    if (num_heads, head_dim) != (position.num_heads, position.head_dim):
        raise ValueError(
            f"{num_heads} heads of {head_dim} dimensions do not fit this {type(position).__name__}: "
            f"it has num_heads={position.num_heads}, head_dim={position.head_dim}"
        )
    num_keys = key.size(2)
    if num_queries > num_keys:
        raise ValueError(f"{num_queries} queries for {num_keys} keys: the queries are the last positions of the keys")
    return num_queries, num_keys, head_dim


def _without_length(tensor: Tensor) -> Tuple[int, ...]:
    return (*tensor.shape[:2], *tensor.shape[3:])
