"""The definition of attention with a position representation. Fast implementations are compared with it in the tests.

    score[m, n] = ( R_m(q_m) . R_n(k_n)  +  q_m . p(t) ) / sqrt(d)  +  b_h(t)  +  c_h(n),      t = m - n >= 0

The package's docstring explains the letters, `positions.Position` the slots R, p, b and c.
"""

import contextlib
import math
from typing import ContextManager, Optional, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..positions import Position


def attention_weights(
    query: Tensor,
    key: Tensor,
    position: Position,
    segments: Optional[Tensor] = None,
    rotated_keys: bool = False,
    gates: Optional[Tensor] = None,
) -> Tensor:
    """The softmax over the keys of the formula's scores. Slot p costs a tensor of L x S x d numbers.

    query: (B, H, L, d); key: (B, K, S, d) with S >= L and K a divisor of H, head h having key head h // (H // K);
    segments: integers (B, S), or None for one segment; rotated_keys: whether the keys have been through
    `position.rotate_key`; gates: (B, H, S), what `position.gates` makes of the layer's input at each key. Returns (B,
    H, L, S), zero for keys in a query's future and for those of other segments than its own. Raises ValueError for
    tensors that do not fit together.
    """
    num_queries, num_keys, _ = check_tensors(query, key, key, position, segments)
    place = torch.arange(num_keys, device=query.device)
    lag = place[num_keys - num_queries :, None] - place  # (L, 1) - (S,) -> (L, S)
    past = lag.clamp(min=0)
    rotated_query, rotated_key = position.rotate(query, key, rotated_keys)
    score = torch.einsum("bhmd,bhnd->bhmn", rotated_query, _of_heads(rotated_key, query))  # (B, H, L, S)
    relative = position.relative(num_keys, like=query)
    if relative is not None:
        heads = "h" if relative.dim() == 3 else ""
        vectors = relative[..., past, :]  # (S, d) -> (L, S, d), or (H, S, d) -> (H, L, S, d)
        score = score + torch.einsum(f"bhmd,{heads}mnd->bhmn", position.relative_query(query), vectors)
    score = score / math.sqrt(query.size(-1))
    bias = position.bias(num_keys, like=query)
    if bias is not None:
        score = score + bias[:, past]  # (H, S) -> (H, L, S)
    key_bias = bias_of_keys(position, gates, query, num_keys)
    if key_bias is not None:
        of_queries = key_bias[..., num_keys - num_queries :, None]
        score = score + (key_bias[..., None, :] - of_queries).to(score.dtype)  # (B, H, 1, S) - (B, H, L, 1)
    hidden = lag < 0  # (L, S)
    if segments is not None:
        of_queries = segments[:, num_keys - num_queries :]
        hidden = hidden | (of_queries[:, None, :, None] != segments[:, None, None])  # -> (B, 1, L, S)
    return score.masked_fill(hidden, -math.inf).softmax(dim=-1)


def reference_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    position: Position,
    dropout_p: float = 0.0,
    segments: Optional[Tensor] = None,
    rotated_keys: bool = False,
    gates: Optional[Tensor] = None,
) -> Tensor:
    """`attention_weights` times the values: slow and exact.

    query: (B, H, L, d); key, value: (B, K, S, d) with S >= L and K a divisor of H; dropout_p: dropout probability of
    the attention weights; segments: integers (B, S), or None; rotated_keys: whether the keys have been through
    `position.rotate_key`; gates: (B, H, S), or None. Returns (B, H, L, d). Raises ValueError for tensors that do not
    fit together.
    """
    check_tensors(query, key, value, position, segments)
    weights = attention_weights(query, key, position, segments, rotated_keys, gates)
    return F.dropout(weights, dropout_p) @ _of_heads(value, query)  # (B, H, L, S) -> (B, H, L, d)


def _of_heads(shared: Tensor, query: Tensor) -> Tensor:
    """The keys or values of each head: (B, K, S, d) -> (B, H, S, d)."""
    heads_of_key = query.size(1) // shared.size(1)
    if heads_of_key == 1:
        return shared
    return shared[:, :, None].expand(-1, -1, heads_of_key, -1, -1).flatten(1, 2)  # (B, K, H / K, S, d) -> (B, H, S, d)


def bias_of_keys(position: Position, gates: Optional[Tensor], query: Tensor, num_keys: int) -> Optional[Tensor]:
    """Slot c, fp64 (B, H, S). Raises ValueError for gates of another shape, or that nothing reads."""
    accepted = (*query.shape[:2], num_keys)
    if gates is not None and gates.shape != accepted:
        raise ValueError(f"gates of shape {tuple(gates.shape)}: accepted is (B, H, S), here {accepted}")
    key_bias = position.key_bias(gates)
    if gates is not None and key_bias is None:
        raise ValueError(f"gates are given, but {type(position).__name__} has no slot c that reads them")
    return key_bias


def without_autocast(like: Tensor) -> ContextManager:
    """No product within is rounded to half precision by torch.autocast, which knows no meta device."""
    return contextlib.nullcontext() if like.is_meta else torch.autocast(like.device.type, enabled=False)


def refuse_second_derivatives() -> None:
    """Raises RuntimeError in a backward pass that is to be differentiated (create_graph=True)."""
    if torch.is_grad_enabled():
        raise RuntimeError("second derivatives (create_graph=True) need implementation='reference'")


def check_tensors(
    query: Tensor, key: Tensor, value: Tensor, position: Position, segments: Optional[Tensor] = None
) -> Tuple[int, int, int]:
    """L, S and d. Raises ValueError where shapes, dtypes, devices or the representation do not fit together."""
    if not hasattr(position, "num_heads"):
        raise ValueError(f"position must be a Position, which build_position makes, not {position!r}")
    tensors = (query, key, value)
    fit = query.dim() == 4 and key.shape == value.shape and _batch_and_width(query) == _batch_and_width(key)
    if not fit:
        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in tensors)
        raise ValueError(f"query (B, H, L, d), key and value (B, K, S, d) do not fit: {shapes}")
    for what, accepted in (("dtype", "floating-point dtype"), ("device", "device")):
        if not getattr(query, what) == getattr(key, what) == getattr(value, what):
            given = ", ".join(str(getattr(tensor, what)) for tensor in tensors)
            raise ValueError(
                f"query, key and value must have one {what}, not {given}; accepted is one {accepted} for all"
            )
    if not query.is_floating_point():
        raise ValueError(f"query, key and value must be floating-point tensors, not {query.dtype}")
    _, num_heads, num_queries, head_dim = query.shape
    if (num_heads, head_dim) != (position.num_heads, position.head_dim):
        raise ValueError(
            f"{num_heads} heads of {head_dim} dimensions do not fit this {type(position).__name__}: "
            f"it has num_heads={position.num_heads}, head_dim={position.head_dim}"
        )
    num_key_heads, num_keys = key.shape[1:3]
    if num_key_heads == 0 or num_heads % num_key_heads:
        divisors = ", ".join(str(number) for number in range(1, num_heads + 1) if num_heads % number == 0)
        raise ValueError(
            f"{num_key_heads} heads of key and value do not fit {num_heads} heads; accepted are {divisors}"
        )
    if num_queries > num_keys:
        raise ValueError(f"{num_queries} queries for {num_keys} keys: the queries are the last positions of the keys")
    if segments is not None:
        _check_segments(segments, key)
    return num_queries, num_keys, head_dim


def _check_segments(segments: Tensor, key: Tensor) -> None:
    shape = key.size(0), key.size(2)
    if segments.shape != shape:
        raise ValueError(f"segments must have the shape (B, S) = {shape} of the keys, not {tuple(segments.shape)}")
    if segments.dtype not in _INTEGERS:
        accepted = ", ".join(str(dtype) for dtype in _INTEGERS)
        raise ValueError(f"segments must be integers, not {segments.dtype}; accepted are {accepted}")
    if segments.device != key.device:
        raise ValueError(f"segments must be on the device of query, key and value, {key.device}, not {segments.device}")


_INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


def _batch_and_width(tensor: Tensor) -> Tuple[int, ...]:
    return (*tensor.shape[:1], *tensor.shape[3:])
