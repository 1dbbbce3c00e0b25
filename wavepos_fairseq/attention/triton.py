"""Attention with slots p, b and c as one fused GPU kernel: FlashAttention-2 (Dao, 2023), extended to scores over lags.

    score[n, i, j] = query[n, i] . key[n, j] / sqrt(d) + projected_query[n, i] . basis[:, t] + bias[t] + key_bias[n, j]

with t = S - L + i - j >= 0. N = B H is the number of heads, of which head n has slots n % G and key head n // (N / M);
M = B K is the number of key heads. The L queries are the last of S positions. No tensor of L x S is made, forward or
backward. The basis is zero at lags >= T; tiles that lie wholly there are computed without it.

From lags to keys. Query i and key j of a tile, BLOCK of each, have t = lag + i - j, where `lag` is that of the first
query and key. So the lags of a tile fill two blocks: the older one, BLOCK lags from `lag` on, and the newer one before
it. Both are plain products with the basis. Key j of row i needs column k = (i - j) mod BLOCK, of the older block where
k <= i and of the newer one elsewhere. In each row, j -> k is a permutation and its own inverse. So the two blocks are
merged first; one gather of BLOCK x BLOCK then leads from lags to keys, and for gradients from keys to lags.

Tensors in memory have whole names (`query`), the tiles loaded from them short ones (`q`).
"""

from __future__ import annotations  # so that only Triton reads `tl.constexpr`

import math
from typing import Tuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .reference import refuse_second_derivatives

try:
    import triton
    import triton.language as tl
except ImportError:
    triton = None
if triton is not None and not hasattr(tl, "gather"):
    triton = None  # it is older than 3.3, which PyTorch 2.7 brings, and lacks what the kernel is written in

MAX_HEAD_DIM = 256
DTYPES = (torch.float16, torch.bfloat16, torch.float32)


def why_unsupported(query: Tensor) -> str | None:
    """Why `triton_attention` cannot run for a query (.., L, d), or None if it can."""
    if triton is None:
        return "Triton 3.3 is not installed"
    if query.dtype not in DTYPES:
        return f"the tensors are {query.dtype}; accepted are torch.float16, torch.bfloat16 and torch.float32"
    if query.size(-1) > MAX_HEAD_DIM:
        return f"a head has {query.size(-1)} dimensions, and the kernel's tiles hold {MAX_HEAD_DIM} at most"
    if not _INTERPRETED and not query.is_cuda:
        return f"the tensors are on the {query.device.type}, and the kernel runs on a CUDA device"
    if not _INTERPRETED and torch.cuda.get_device_capability(query.device) < (8, 0):
        return "the GPU is older than compute capability 8.0, which Triton needs"
    return None


def triton_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    projected_query: Tensor | None,
    basis: Tensor | None,
    bias: Tensor | None,
    key_bias: Tensor | None = None,
    segments: Tensor | None = None,
    dropout_p: float = 0.0,
    seed: int = 0,
) -> Tensor:
    """softmax(score) after dropout, times the values: (N, L, d) in the dtype of query, fp16, bf16 or fp32.

    query: (N, L, d); key, value: (M, S, d), S >= L. projected_query: (N, L, r), divided by sqrt(d), and basis: (G, r,
    T) over the lags 0 .. T - 1, T <= S, with G of 1 or H; or None and None. bias: (H, S) over the lags 0 .. S - 1, or
    None; it may hold -inf, but not for all keys of a query. key_bias: fp64 (N, S), or None. segments: integers (B, S),
    or None. dropout_p: dropout probability of the weights; the same seed drops the same weights. Gradients reach every
    tensor of floating-point numbers. Sums are in fp32, and fp32 products are exact, not tf32.
    """
    shape, dtype = query.shape, query.dtype
    if _INTERPRETED and dtype == torch.bfloat16:  # the interpreter would multiply its bits as integers
        query, key, value = (tensor.float() for tensor in (query, key, value))
    # Widths of tiles are powers of two, at least 16. Zeros change no product.
    query, key, value = (_padded(tensor) for tensor in (query, key, value))  # (N, L, d) -> (N, L, D)
    if projected_query is not None and basis is not None:
        projected_query = _padded(projected_query.to(query.dtype))  # (N, L, r) -> (N, L, R)
        basis = _padded(basis.transpose(1, 2).to(query.dtype))  # (G, r, T) -> (G, T, R)
    if bias is not None:
        bias = bias.float().contiguous()
    if key_bias is not None:
        key_bias = key_bias.contiguous()
    if segments is not None:
        segments = segments.long().contiguous()
    scale = 1 / math.sqrt(shape[-1])
    tensors = query, key, value, projected_query, basis, bias, key_bias, segments
    attended = _Attention.apply(*tensors, scale, dropout_p, seed)
    return attended[..., : shape[-1]].to(dtype)  # (N, L, D) -> (N, L, d)


def _padded(rows: Tensor) -> Tensor:
    missing = max(16, 1 << (rows.size(-1) - 1).bit_length()) - rows.size(-1)
    return (F.pad(rows, (0, missing)) if missing else rows).contiguous()


def block_sizes(width: int, rank: int, dtype: torch.dtype) -> Tuple[int, int, int]:
    """Queries and keys of a tile, warps, and stages of the pipeline. Not yet measured on a GPU.

    Chosen for Hopper from the compiler's reports: two programs fit in the 227 KB of a multiprocessor's shared memory,
    which leaves room for two stages with narrow heads only, and few registers are spilled.
    """
    if dtype == torch.float32:  # tensor cores have no exact fp32 products
        return 32, 8, 1
    if width > 128:
        return 32, 4, 1
    return 64, 4, 2 if width + rank <= 128 else 1


class _Attention(torch.autograd.Function):
    """query: (N, L, D); key, value: (M, S, D); projected_query: (N, L, R); basis: (G, T, R); bias: fp32 (H, S).

    key_bias: fp64 (N, S).
    """

    @staticmethod
    def forward(ctx, query, key, value, projected_query, basis, bias, key_bias, segments, scale, dropout_p, seed):
        output = torch.empty_like(query)  # (N, L, D)
        logsumexp = query.new_empty(query.shape[:2], dtype=torch.float32)  # (N, L), of the scores
        inputs = query, key, value, projected_query, basis, bias, key_bias, segments
        _launch(_forward, query, inputs, (output, logsumexp), scale, dropout_p, seed)
        ctx.save_for_backward(*inputs, output, logsumexp)
        ctx.constants = scale, dropout_p, seed
        return output

    @staticmethod
    def backward(ctx, d_output):
        refuse_second_derivatives()
        *inputs, output, logsumexp = ctx.saved_tensors
        query, key, value, projected_query, basis, bias, key_bias, _ = inputs
        d_output, mean_d_weight = d_output.contiguous(), torch.empty_like(logsumexp)  # (N, L, D), (N, L)
        d_query, d_key, d_value = torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)
        d_projected_query = None if projected_query is None else torch.empty_like(projected_query)
        d_basis, d_bias = (
            torch.zeros_like(tensor, dtype=torch.float32) if needed else None
            for tensor, needed in zip((basis, bias), ctx.needs_input_grad[4:6])
        )
        d_key_bias = torch.empty_like(key_bias) if ctx.needs_input_grad[6] else None  # (N, S), as a bias of the keys
        d_own_bias = None if d_key_bias is None else key_bias.new_empty(query.shape[:2])  # (N, L): of the queries
        of_queries = output, logsumexp, d_output, mean_d_weight, d_query, d_projected_query, d_basis, d_bias, d_own_bias
        _launch(_backward_queries, query, inputs, of_queries, *ctx.constants)
        of_keys = logsumexp, d_output, mean_d_weight, d_key, d_value, d_key_bias
        _launch(_backward_keys, key, inputs, of_keys, *ctx.constants)
        d_basis = None if d_basis is None else d_basis.to(basis.dtype)
        if d_key_bias is not None and d_own_bias is not None:
            d_key_bias[:, -query.size(1) :] += d_own_bias
        return d_query, d_key, d_value, d_projected_query, d_basis, d_bias, d_key_bias, None, None, None, None


def _launch(kernel, rows, inputs, outputs, scale, dropout_p, seed):
    """One program for each block of the rows, query (N, L, D) or key (M, S, D), and each of their heads."""
    query, key, _, _, basis, bias, _, segments = inputs
    groups = [1 if slot is None else slot.size(0) for slot in (basis, bias)]
    rank = 0 if basis is None else basis.size(2)
    block, warps, stages = block_sizes(query.size(2), rank, query.dtype)
    with torch.cuda.device_of(query):
        kernel[(triton.cdiv(rows.size(1), block) * rows.size(0),)](
            *inputs,
            *outputs,
            query.size(1),
            key.size(1),
            0 if basis is None else basis.size(1),
            *groups,
            query.size(0) // key.size(0),
            1 if segments is None else query.size(0) // segments.size(0),
            scale,
            dropout_p,
            seed,
            DROPOUT=dropout_p > 0,
            D=query.size(2),
            R=rank,
            BLOCK=block,
            num_warps=warps,
            num_stages=stages,
        )


def _jit(function):
    return function if triton is None else triton.jit(function, do_not_specialize=["L", "S", "T", "seed"])


@_jit
def _load_rows(pointer, start, length, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    """Rows start .. start + BLOCK - 1 of (length, WIDTH), zero outside: (BLOCK, WIDTH)."""
    row = start + tl.arange(0, BLOCK)
    inside = (row >= 0) & (row < length)
    return tl.load(pointer + row[:, None] * WIDTH + tl.arange(0, WIDTH)[None, :], mask=inside[:, None], other=0.0)


@_jit
def _store_rows(pointer, start, length, rows, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    row = start + tl.arange(0, BLOCK)
    to = pointer + row[:, None] * WIDTH + tl.arange(0, WIDTH)[None, :]
    tl.store(to, rows.to(pointer.dtype.element_ty), mask=(row < length)[:, None])


@_jit
def _add_rows(pointer, start, length, rows, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    row = start + tl.arange(0, BLOCK)
    to = pointer + row[:, None] * WIDTH + tl.arange(0, WIDTH)[None, :]
    tl.atomic_add(to, rows, mask=((row >= 0) & (row < length))[:, None], sem="relaxed")


@_jit
def _dot(a, b):
    return tl.dot(a, b, input_precision="ieee")


@_jit
def _row_minus_column(AXIS: tl.constexpr, BLOCK: tl.constexpr):
    """i - j for query i and key j of a tile, keys along AXIS: (BLOCK, BLOCK)."""
    i_minus_j = tl.arange(0, BLOCK)[:, None] - tl.arange(0, BLOCK)[None, :]
    return i_minus_j if AXIS == 1 else -i_minus_j


@_jit
def _slot_scores(
    projected_q, basis, bias, lag, S, T, NEAR: tl.constexpr, AXIS: tl.constexpr, R: tl.constexpr, BLOCK: tl.constexpr
):
    """Slots p and b of a block's queries at the lags lag .. lag + BLOCK - 1, lags along AXIS: (BLOCK, BLOCK)."""
    score = tl.zeros((BLOCK, BLOCK), tl.float32)
    if NEAR and basis is not None:
        window = _load_rows(basis, lag, T, R, BLOCK)
        score = _dot(projected_q, tl.trans(window)) if AXIS == 1 else _dot(window, tl.trans(projected_q))
    if bias is not None:
        t = lag + tl.arange(0, BLOCK)
        score += tl.expand_dims(tl.load(bias + t, mask=(t >= 0) & (t < S), other=0.0), 1 - AXIS)
    return score


@_jit
def _in_two(x):
    """fp64 as the sum of two fp32, so that differences of near numbers are exact to fp32."""
    high = x.to(tl.float32)
    return high, (x - high.to(tl.float64)).to(tl.float32)


@_jit
def _scores(
    q, k, projected_q, basis, bias, key_bias, segments, start, lag, S, T, scale,
    NEAR: tl.constexpr, AXIS: tl.constexpr, R: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """A tile's scores, keys from start on along AXIS: (BLOCK, BLOCK). q, k: (BLOCK, D); projected_q: (BLOCK, R).

    NEAR: whether it may have lags below T, where the basis is not zero, and below 0, which are masked.
    """
    i_minus_j = _row_minus_column(AXIS, BLOCK)
    slot_score = tl.zeros((BLOCK, BLOCK), tl.float32)
    if (NEAR and basis is not None) or bias is not None:
        older = _slot_scores(projected_q, basis, bias, lag, S, T, NEAR, AXIS, R, BLOCK)
        newer = _slot_scores(projected_q, basis, bias, lag - BLOCK, S, T, NEAR, AXIS, R, BLOCK)
        slot_score = tl.gather(tl.where(i_minus_j >= 0, older, newer) / scale, i_minus_j & (BLOCK - 1), AXIS)
    # The product accumulates onto slot_score. Added later, the gather's layout would cost shuffles in the softmax.
    a, b = (q, k) if AXIS == 1 else (k, q)
    score = tl.dot(a, tl.trans(b), slot_score, input_precision="ieee") * scale
    if key_bias is not None:
        i = tl.arange(0, BLOCK)
        of_keys, rest_of_keys = _in_two(tl.load(key_bias + start + i, mask=start + i < S, other=0.0))
        of_queries, rest_of_queries = _in_two(tl.load(key_bias + start + lag + i, mask=start + lag + i < S, other=0.0))
        score += tl.expand_dims(of_keys, 1 - AXIS) - tl.expand_dims(of_queries, AXIS)
        score += tl.expand_dims(rest_of_keys, 1 - AXIS) - tl.expand_dims(rest_of_queries, AXIS)
    if segments is not None:
        j = start + tl.arange(0, BLOCK)
        of_keys = tl.load(segments + j, mask=j < S, other=0)  # the rows beyond S see themselves
        of_queries = tl.load(segments + lag + j, mask=lag + j < S, other=0)
        seen = tl.expand_dims(of_queries, AXIS) == tl.expand_dims(of_keys, 1 - AXIS)
        score = tl.where(seen, score, -float("inf"))
    return tl.where(lag + i_minus_j >= 0, score, -float("inf")) if NEAR else score


@_jit
def _dropout_mask(seed, row, start, S, dropout_p, BLOCK: tl.constexpr):
    """Which weights of the queries from row on and the keys from start on are kept, the same in every kernel.

    (BLOCK, BLOCK). Four keys share a draw of Philox; 7 rounds are the fewest that pass BigCrush (Salmon et al., 2011).
    """
    fourth = start // 4 + tl.arange(0, BLOCK // 4)
    offset = (row + tl.arange(0, BLOCK))[:, None] * tl.cdiv(S, 4) + fourth[None, :]
    a, b, c, d = tl.rand4x(seed, offset, 7)
    return tl.reshape(tl.join(tl.join(a, b), tl.join(c, d)), (BLOCK, BLOCK)) >= dropout_p


@_jit
def _forward(
    query, key, value, projected_query, basis, bias, key_bias, segments, output, logsumexp,
    L, S, T, basis_groups, bias_groups, heads_of_key, heads_of_sequence, scale, dropout_p, seed,
    DROPOUT: tl.constexpr, D: tl.constexpr, R: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    blocks = tl.cdiv(L, BLOCK)
    n = (tl.program_id(0) // blocks).to(tl.int64)
    row = (blocks - 1 - tl.program_id(0) % blocks) * BLOCK  # queries with the most keys first
    position = S - L + row  # of the first query
    q = _load_rows(query + n * L * D, row, L, D, BLOCK)
    key += n // heads_of_key * S * D
    value += n // heads_of_key * S * D
    projected_q = None
    if basis is not None:
        basis += n % basis_groups * T * R
        projected_q = _load_rows(projected_query + n * L * R, row, L, R, BLOCK)
    if bias is not None:
        bias += n % bias_groups * S
    if key_bias is not None:
        key_bias += n * S
    if segments is not None:
        segments += n // heads_of_sequence * S

    running_max = tl.full((BLOCK,), -float("inf"), tl.float32)
    running_sum = tl.zeros((BLOCK,), tl.float32)
    attended = tl.zeros((BLOCK, D), tl.float32)
    far_tiles = tl.maximum(position + 1 - T, 0) // BLOCK  # whose lags are all >= T
    for NEAR in tl.static_range(2):
        for tile in range(far_tiles if NEAR else 0, tl.cdiv(position + BLOCK, BLOCK) if NEAR else far_tiles):
            start = tile * BLOCK
            lag = position - start
            k = _load_rows(key, start, S, D, BLOCK)
            score = _scores(
                q, k, projected_q, basis, bias, key_bias, segments, start, lag, S, T, scale, NEAR, 1, R, BLOCK
            )
            new_max = tl.maximum(running_max, tl.max(score, 1))
            shift = tl.where(new_max == -float("inf"), 0.0, new_max)  # so far only keys with a bias of -inf
            rescale = tl.exp(running_max - shift)
            weight = tl.exp(score - shift[:, None])
            running_sum = running_sum * rescale + tl.sum(weight, 1)
            if DROPOUT:
                weight = tl.where(_dropout_mask(seed + n, row, start, S, dropout_p, BLOCK), weight, 0.0)
            v = _load_rows(value, start, S, D, BLOCK)
            attended = attended * rescale[:, None] + _dot(weight.to(v.dtype), v)  # (BLOCK, D)
            running_max = new_max

    attended /= (running_sum * (1 - dropout_p))[:, None]
    _store_rows(output + n * L * D, row, L, attended, D, BLOCK)
    _store_rows(logsumexp + n * L, row, L, (running_max + tl.log(running_sum))[:, None], 1, BLOCK)


@_jit
def _backward_queries(
    query, key, value, projected_query, basis, bias, key_bias, segments,
    output, logsumexp, d_output, mean_d_weight, d_query, d_projected_query, d_basis, d_bias, d_own_bias,
    L, S, T, basis_groups, bias_groups, heads_of_key, heads_of_sequence, scale, dropout_p, seed,
    DROPOUT: tl.constexpr, D: tl.constexpr, R: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """d_query and d_projected_query, d_basis, d_bias and d_own_bias unless None; mean_d_weight for the other kernel.

    mean_d_weight (N, L) is the mean of a query's d_weight, weighted by its weights: D of Dao et al.
    """
    blocks = tl.cdiv(L, BLOCK)
    n = (tl.program_id(0) // blocks).to(tl.int64)
    row = (blocks - 1 - tl.program_id(0) % blocks) * BLOCK
    rows = row + tl.arange(0, BLOCK)
    position = S - L + row
    i_minus_j = _row_minus_column(1, BLOCK)
    q = _load_rows(query + n * L * D, row, L, D, BLOCK)
    d_o = _load_rows(d_output + n * L * D, row, L, D, BLOCK)
    mean_dw = tl.sum(d_o.to(tl.float32) * _load_rows(output + n * L * D, row, L, D, BLOCK).to(tl.float32), 1)
    tl.store(mean_d_weight + n * L + rows, mean_dw, mask=rows < L)
    lse = tl.load(logsumexp + n * L + rows, mask=rows < L, other=float("inf"))  # rows beyond L get no weight
    key += n // heads_of_key * S * D
    value += n // heads_of_key * S * D
    projected_q = None
    if basis is not None:
        basis += n % basis_groups * T * R
        projected_q = _load_rows(projected_query + n * L * R, row, L, R, BLOCK)
        d_projected_q = tl.zeros((BLOCK, R), tl.float32)
    if d_basis is not None:
        d_basis += n % basis_groups * T * R
    if bias is not None:
        bias += n % bias_groups * S
    if key_bias is not None:
        key_bias += n * S
    if segments is not None:
        segments += n // heads_of_sequence * S
    if d_bias is not None:
        d_bias += n % bias_groups * S

    d_q = tl.zeros((BLOCK, D), tl.float32)
    d_own = tl.zeros((BLOCK,), tl.float64)
    far_tiles = tl.maximum(position + 1 - T, 0) // BLOCK
    for NEAR in tl.static_range(2):
        for tile in range(far_tiles if NEAR else 0, tl.cdiv(position + BLOCK, BLOCK) if NEAR else far_tiles):
            start = tile * BLOCK
            lag = position - start
            k = _load_rows(key, start, S, D, BLOCK)
            score = _scores(
                q, k, projected_q, basis, bias, key_bias, segments, start, lag, S, T, scale, NEAR, 1, R, BLOCK
            )
            d_weight = _dot(d_o, tl.trans(_load_rows(value, start, S, D, BLOCK)))
            if DROPOUT:
                keep = _dropout_mask(seed + n, row, start, S, dropout_p, BLOCK)
                d_weight = tl.where(keep, d_weight / (1 - dropout_p), 0.0)
            d_score = tl.exp(score - lse[:, None]) * (d_weight - mean_dw[:, None])
            d_q += _dot(d_score.to(k.dtype), k)  # (queries, keys) @ (keys, D)
            if d_own_bias is not None:
                d_own -= tl.sum(d_score, 1)  # 0 but for rounding, which sums over the gates of many tokens would show
            if (NEAR and basis is not None) or d_bias is not None:
                d_lag_score = tl.gather(d_score, i_minus_j & (BLOCK - 1), 1)  # from keys to lags
                d_older = tl.where(i_minus_j >= 0, d_lag_score, 0.0)
                d_newer = tl.where(i_minus_j >= 0, 0.0, d_lag_score)
                if d_bias is not None:
                    _add_rows(d_bias, lag, S, tl.sum(d_older, 0)[:, None], 1, BLOCK)
                    _add_rows(d_bias, lag - BLOCK, S, tl.sum(d_newer, 0)[:, None], 1, BLOCK)
                if NEAR and basis is not None:
                    d_older, d_newer = d_older.to(k.dtype), d_newer.to(k.dtype)
                    d_projected_q += _dot(d_older, _load_rows(basis, lag, T, R, BLOCK))
                    d_projected_q += _dot(d_newer, _load_rows(basis, lag - BLOCK, T, R, BLOCK))
                    if d_basis is not None:
                        _add_rows(d_basis, lag, T, _dot(tl.trans(d_older), projected_q), R, BLOCK)
                        _add_rows(d_basis, lag - BLOCK, T, _dot(tl.trans(d_newer), projected_q), R, BLOCK)

    _store_rows(d_query + n * L * D, row, L, d_q * scale, D, BLOCK)
    if d_own_bias is not None:
        _store_rows(d_own_bias + n * L, row, L, d_own[:, None], 1, BLOCK)
    if basis is not None:
        _store_rows(d_projected_query + n * L * R, row, L, d_projected_q, R, BLOCK)


@_jit
def _backward_keys(
    query, key, value, projected_query, basis, bias, key_bias, segments,
    logsumexp, d_output, mean_d_weight, d_key, d_value, d_key_bias,
    L, S, T, basis_groups, bias_groups, heads_of_key, heads_of_sequence, scale, dropout_p, seed,
    DROPOUT: tl.constexpr, D: tl.constexpr, R: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """d_key and d_value, and d_key_bias unless None. Tiles have keys as rows, so nothing needs transposed weights."""
    blocks = tl.cdiv(S, BLOCK)
    key_head = (tl.program_id(0) // blocks).to(tl.int64)
    start = tl.program_id(0) % blocks * BLOCK
    k = _load_rows(key + key_head * S * D, start, S, D, BLOCK)
    v = _load_rows(value + key_head * S * D, start, S, D, BLOCK)
    if segments is not None:
        segments += key_head * heads_of_key // heads_of_sequence * S

    d_k = tl.zeros((BLOCK, D), tl.float32)
    d_v = tl.zeros((BLOCK, D), tl.float32)
    key_row = start - (S - L)  # the row of the query at the first key's position, negative if it is none of the L
    first_tile = tl.maximum(key_row, 0) // BLOCK  # of the queries that see these keys
    tiles = tl.cdiv(L, BLOCK)
    far_tile = tl.minimum(tl.cdiv(tl.maximum(key_row + BLOCK - 1 + T, 0), BLOCK), tiles)  # from it on lags are >= T
    for head in range(heads_of_key):
        n = key_head * heads_of_key + head
        head_basis = None
        head_projected_query = None
        head_bias = None
        head_key_bias = None
        d_c = tl.zeros((BLOCK,), tl.float64)
        if basis is not None:
            head_basis = basis + n % basis_groups * T * R
            head_projected_query = projected_query + n * L * R
        if bias is not None:
            head_bias = bias + n % bias_groups * S
        if key_bias is not None:
            head_key_bias = key_bias + n * S
        for NEAR in tl.static_range(2):
            for tile in range(first_tile if NEAR else tl.maximum(first_tile, far_tile), far_tile if NEAR else tiles):
                row = tile * BLOCK
                rows = row + tl.arange(0, BLOCK)
                lag = row - key_row
                q = _load_rows(query + n * L * D, row, L, D, BLOCK)
                projected_q = None
                if NEAR and basis is not None:
                    projected_q = _load_rows(head_projected_query, row, L, R, BLOCK)
                score = _scores(
                    q, k, projected_q, head_basis, head_bias, head_key_bias, segments, start, lag, S, T, scale,
                    NEAR, 0, R, BLOCK,
                )  # fmt: skip
                lse = tl.load(logsumexp + n * L + rows, mask=rows < L, other=float("inf"))
                weight = tl.exp(score - lse[None, :])
                d_o = _load_rows(d_output + n * L * D, row, L, D, BLOCK)
                d_weight = _dot(v, tl.trans(d_o))
                dropped = weight
                if DROPOUT:
                    keep = tl.trans(_dropout_mask(seed + n, row, start, S, dropout_p, BLOCK))
                    dropped = tl.where(keep, weight / (1 - dropout_p), 0.0)
                    d_weight = tl.where(keep, d_weight / (1 - dropout_p), 0.0)
                d_v += _dot(dropped.to(d_o.dtype), d_o)  # (keys, queries) @ (queries, D)
                mean_dw = tl.load(mean_d_weight + n * L + rows, mask=rows < L, other=0.0)
                d_score = weight * (d_weight - mean_dw[None, :])
                d_k += _dot(d_score.to(q.dtype), q)
                if d_key_bias is not None:
                    d_c += tl.sum(d_score, 1)
        if d_key_bias is not None:
            _store_rows(d_key_bias + n * S, start, S, d_c[:, None], 1, BLOCK)

    _store_rows(d_key + key_head * S * D, start, S, d_k * scale, D, BLOCK)
    _store_rows(d_value + key_head * S * D, start, S, d_v, D, BLOCK)


_INTERPRETED = triton is not None and not isinstance(_forward, triton.runtime.JITFunction)
