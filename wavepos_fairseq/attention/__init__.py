"""Causal self-attention with any position representation.

    score[m, n] = ( R_m(q_m) . R_n(k_n)  +  q_m . p(t) ) / sqrt(d)  +  b_h(t)  +  c_h(n),      t = m - n >= 0

`reference` is the definition, `blockwise` a fast implementation for every device, `triton` a kernel for GPUs. They know
a representation by its slots R, p, b and c alone (see `positions.Position`).

B is the batch size, H the number of heads, d the width of a head, S the number of keys and L <= S that of queries. The
queries are the last L positions; in incremental decoding L is 1. Keys and values have K heads, K a divisor of H: query
head h uses key head h // (H // K) (grouped-query attention, Ainslie et al., 2023).

Segments divide a sequence: a query sees the keys of its own segment alone, n <= m. So they keep packed sequences apart,
and padding on the left is a segment of its own. Padding on the right needs none: it lies in the future of every real
query. Lags are those of the whole sequence; no slot knows where a segment begins.
"""

import math
from typing import Optional, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..positions import Position
from ..positions.tracing import is_traced, is_transformed
from .blockwise import blockwise_attention
from .flex import score_mod
from .reference import attention_weights, bias_of_keys, check_tensors, reference_attention, without_autocast

__all__ = ["IMPLEMENTATIONS", "attention_weights", "causal_attention", "reference_attention", "score_mod"]

_PYTORCH = tuple(int(number) for number in torch.__version__.split(".")[:2])

IMPLEMENTATIONS = ("auto", "blockwise", "triton", "reference")
"""``auto`` is ``triton`` on a GPU that can run it and ``blockwise`` elsewhere, or ``reference`` while PyTorch traces or
exports. It uses PyTorch's own attention where that is as good: for empty slots p, b and c, and for one query on a CPU.
"""


def causal_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    position: Position,
    dropout_p: float = 0.0,
    implementation: str = "auto",
    recompute: bool = False,
    segments: Optional[Tensor] = None,
    rotated_keys: bool = False,
    gates: Optional[Tensor] = None,
) -> Tensor:
    """`reference_attention`, fast: it makes no tensor of L x S x d numbers, and in inference none of L x S.

    query: (B, H, L, d); key, value: (B, K, S, d) with S >= L and K a divisor of H, which are not copied for the heads
    that share them; dropout_p: dropout probability of the attention weights; implementation: one of IMPLEMENTATIONS;
    recompute: whether the backward pass of ``blockwise`` computes the weights again (otherwise the forward pass keeps
    them: B H L S / 2 numbers); segments: integers (B, S), the segment of each position, or None for one; rotated_keys:
    whether the keys have been through `position.rotate_key`, as those of a cache may; gates: (B, H, S), what
    `position.gates` makes of the layer's input at each key, for representations that fill slot c.

    Returns (B, H, L, d). Raises ValueError for tensors that do not fit together, for a dropout_p outside [0, 1) and for
    an implementation that cannot run here. Only ``reference`` has second derivatives; the others refuse them.
    """
    chosen = _choose(implementation, query)
    if not 0 <= dropout_p < 1:
        raise ValueError(f"dropout_p={dropout_p}: must be a probability >= 0 and < 1")
    with without_autocast(query):
        if chosen == "reference" or query.numel() == 0:  # the fast ones need a query
            return reference_attention(query, key, value, position, dropout_p, segments, rotated_keys, gates)
        allow_sdpa = implementation == "auto"
        options = dropout_p, segments, rotated_keys, gates, chosen == "triton", allow_sdpa, recompute
        return _fast_attention(query, key, value, position, *options)


def _choose(implementation: str, query: Tensor) -> str:
    """``blockwise``, ``triton`` or ``reference``."""
    if implementation not in IMPLEMENTATIONS:
        accepted = ", ".join(IMPLEMENTATIONS)
        raise ValueError(f"implementation={implementation!r} is unknown; accepted are {accepted}")
    if is_traced() or is_transformed():
        if implementation in ("blockwise", "triton"):
            what = "traced or exported" if is_traced() else "transformed by torch.func"
            raise ValueError(f"implementation={implementation!r} cannot be {what}; accepted are auto and reference")
        return "reference"
    if implementation == "auto" and not query.is_cuda:
        return "blockwise"
    if implementation in ("auto", "triton"):
        from .triton import why_unsupported  # here, because Triton is slow to import

        reason = why_unsupported(query)
        if reason and implementation == "triton":
            raise ValueError(f"implementation='triton': {reason}")
        return "blockwise" if reason else "triton"
    return implementation


def _fast_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    position: Position,
    dropout_p,
    segments,
    rotated_keys,
    gates,
    use_triton,
    allow_sdpa,
    recompute,
) -> Tensor:
    """allow_sdpa: whether PyTorch's own attention may be used where it can."""
    num_queries, num_keys, head_dim = check_tensors(query, key, value, position, segments)
    shape, dtype = query.shape, query.dtype
    needs_grad = torch.is_grad_enabled() and any(
        tensor.requires_grad for tensor in (query, key, value, gates, *position.parameters()) if tensor is not None
    )
    key_bias = bias_of_keys(position, gates, query, num_keys)
    wide = dtype if use_triton else torch.promote_types(dtype, torch.float32)  # half precision is rounded at the end
    like = query.new_empty(0, dtype=wide)
    factors = _factors(position, num_keys, like)
    bias = position.bias(num_keys, like=like.to(torch.promote_types(dtype, torch.float32)))  # the kernel reads fp32
    # With dropout as with gradients, because a checkpoint (use_reentrant) calls it first without and then with them.
    sdpa_is_fast = num_queries == num_keys and not ((needs_grad or dropout_p) and query.device.type == "cpu")
    plain = all(given is None for given in (factors, bias, key_bias, segments))
    shares_keys = query.size(1) != key.size(1)
    if allow_sdpa and plain and sdpa_is_fast and (not shares_keys or _sdpa_shares_keys(query, key, value, dropout_p)):
        rotated_query, rotated_key = position.rotate(query, key, rotated_keys)
        options = {"enable_gqa": True} if shares_keys else {}  # PyTorch knows it since 2.5
        return F.scaled_dot_product_attention(rotated_query, rotated_key, value, None, dropout_p, True, **options)
    query, key, value = (tensor.to(wide) for tensor in (query, key, value))
    rotated_query, rotated_key = position.rotate(query, key, rotated_keys)
    projected_query = basis = None  # slot p is empty
    if factors is not None:
        projection, rows = factors
        scale, projected_query = 1 / math.sqrt(head_dim), position.relative_query(query)
        if projection is None:
            projected_query = projected_query * scale  # (B, H, L, r) with r = d
        else:
            projected_query = projected_query @ (projection * scale)  # (B, H, L, d) @ (d, r) -> (B, H, L, r)
        basis = rows.transpose(-2, -1)  # (T, r) -> (r, T), or (H, T, r) -> (H, r, T)
    if allow_sdpa and num_queries == 1 and not use_triton:
        mask = _mask_of_one_query(projected_query, basis, bias, key_bias, segments, num_keys, query.dtype)
        if shares_keys:  # the heads that share keys are to PyTorch so many queries of one head
            rotated_query = rotated_query.view(*key.shape[:2], -1, head_dim)  # (B, H, 1, d) -> (B, K, H / K, d)
            if mask is not None and mask.size(1) > 1:
                mask = mask.view(len(mask), key.size(1), -1, num_keys)  # (.., H, 1, S) -> (.., K, H / K, S)
        attended = F.scaled_dot_product_attention(rotated_query, rotated_key, value, mask, dropout_p)
        return attended.reshape(shape).to(dtype)
    if projected_query is not None and basis is not None:
        projected_query = projected_query.flatten(0, 1)  # (B, H, L, r) -> (N, L, r)
        basis = basis if basis.dim() == 3 else basis[None]  # (H, r, T), or (r, T) -> (1, r, T)
    query, key, value = (tensor.flatten(0, 1) for tensor in (rotated_query, rotated_key, value))  # (N, L, d), (M, S, d)
    seed = int(torch.randint(2**31, (), device="cpu")) if dropout_p else 0
    key_bias = None if key_bias is None else key_bias.flatten(0, 1)  # (B, H, S) -> (N, S)
    tensors = query, key, value, projected_query, basis, bias, key_bias, segments
    if use_triton:
        from .triton import triton_attention

        attended = triton_attention(*tensors, dropout_p, seed)
    else:
        attended = blockwise_attention(*tensors, dropout_p, seed, needs_grad, recompute)
    return attended.view(shape).to(dtype)  # (N, L, d) -> (B, H, L, d)


def _factors(position: Position, num_keys: int, like: Tensor) -> Optional[Tuple[Optional[Tensor], Tensor]]:
    """`Position.factors`, or None where p is zero at all these lags, as for wavelets that lie further in the past."""
    factors = position.factors(num_keys, like=like)
    return None if factors is None or factors[1].numel() == 0 else factors


def _sdpa_shares_keys(query: Tensor, key: Tensor, value: Tensor, dropout_p: float) -> bool:
    """Whether PyTorch has a fused kernel for fewer key heads here. Without one it copies keys and forms all scores."""
    choose = getattr(torch, "_fused_sdp_choice", None)  # it has no public name for all devices
    if choose is None or _PYTORCH < (2, 5):
        return False
    return choose(query, key, value, None, dropout_p, True, enable_gqa=True) != 0  # SDPBackend.MATH


def _mask_of_one_query(projected_query, basis, bias, key_bias, segments, num_keys, dtype) -> Optional[Tensor]:
    """Slots p, b and c of the last query, -inf for keys of other segments, as an additive mask (B or 1, H, 1, S).

    (B, 1, 1, S) of booleans, whether it sees the key, if there are segments alone; None if there is nothing.
    """
    mask = None if bias is None else bias[None, :, None]  # (H, S) -> (1, H, 1, S), over ascending lags
    if projected_query is not None:
        relative = projected_query @ basis  # (B, H, 1, r) @ (r, T) -> (B, H, 1, T)
        relative = F.pad(relative, (0, num_keys - relative.size(-1)))  # (B, H, 1, T) -> (B, H, 1, S)
        mask = relative if mask is None else relative + mask
    mask = None if mask is None else mask.flip(-1)  # lag S - 1 belongs to the first key
    if key_bias is not None:
        of_keys = (key_bias - key_bias[..., -1:]).to(dtype)[:, :, None]  # (B, H, S) -> (B, H, 1, S)
        mask = of_keys if mask is None else mask + of_keys
    if segments is None:
        return mask
    seen = (segments == segments[:, -1:])[:, None, None]  # (B, S) -> (B, 1, 1, S)
    return seen if mask is None else mask.masked_fill(~seen, -math.inf)
