"""Attention with the slots p and b as one fused GPU kernel: FlashAttention-2 (Dao, 2023) with scores over lags.

    score[n, i, j] = query[n, i] . key[n, j] / sqrt(d)  +  lagged[n, i] . basis[:, t]  +  bias[t],     t = S - L + i - j

N is the number of heads times that of sequences, head n % H of H; S keys and L <= S queries, which are the last L
positions. No tensor of L x S is made, forward or backward. What is in a query's future, t < 0, is not seen; at lags of
T and more the basis is zero, and tiles that lie there wholly are computed without it.

From lags to keys. Query i and key j of a tile, BLOCK of each, have t = lag + i - j, `lag` being that of its first two.
The lags of a tile hence fill two blocks: the older one, BLOCK lags from `lag` on, and the newer one before it. Both are
plain products with the basis. Key j of row i wants column k = (i - j) mod BLOCK, of the older block where k <= i and of
the newer one elsewhere; and in each row j -> k is a permutation that is its own inverse. So the two blocks are merged
first, and the same gather of BLOCK x BLOCK then leads from lags to keys, and for their gradients from keys to lags.
"""

from __future__ import annotations  # so that only Triton reads `tl.constexpr`

import math
from typing import Tuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

try:
    import triton
    import triton.language as tl
except ImportError:
    triton = None
if triton is not None and int(triton.__version__.split(".")[0]) < 3:
    triton = None  # it lacks what the kernel is written in

MAX_HEAD_DIM = 256
DTYPES = (torch.float16, torch.bfloat16, torch.float32)


def why_not(query: Tensor) -> str | None:
    """What keeps `triton_attention` from running with such a query, (..., L, d), or None where it can."""
    if triton is None:
        return "Triton 3 is not installed"
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
    lagged: Tensor | None,
    basis: Tensor | None,
    bias: Tensor | None,
    dropout_p: float = 0.0,
    seed: int = 0,
) -> Tensor:
    """softmax(score) after dropout, times the values: (N, L, d) in query's dtype, fp16, bf16 or fp32.

    query: (N, L, d); key, value: (N, S, d), S >= L. lagged: (N, L, r), already divided by sqrt(d), and basis: (G, r, T)
    over the lags 0 .. T - 1, T <= S, G being 1 or H; or None and None. bias: (H, S) over the lags 0 .. S - 1, or None;
    it may hold -inf, but not for all keys of a query. dropout_p: dropout probability of the weights; the same seed
    drops the same ones. Gradients reach every tensor. Sums are in fp32, and fp32 products are exact, not tf32.
    """
    shape, dtype = query.shape, query.dtype
    if _INTERPRETED and dtype == torch.bfloat16:  # whose products the interpreter takes of the bits as integers
        query, key, value = (tensor.float() for tensor in (query, key, value))
    # Tiles are powers of two wide, 16 at least: zeros change no product.
    query, key, value = (_widened(tensor) for tensor in (query, key, value))
    if lagged is not None:
        lagged, basis = (_widened(rows.to(query.dtype)) for rows in (lagged, basis.transpose(1, 2)))
    if bias is not None:
        bias = bias.float().contiguous()
    scale = 1 / math.sqrt(shape[-1])
    attended = _Attention.apply(query, key, value, lagged, basis, bias, scale, dropout_p, seed)
    return attended[..., : shape[-1]].to(dtype)


def _widened(rows: Tensor) -> Tensor:
    missing = max(16, 1 << (rows.size(-1) - 1).bit_length()) - rows.size(-1)
    return (F.pad(rows, (0, missing)) if missing else rows).contiguous()


def block_sizes(width: int, rank: int, dtype: torch.dtype) -> Tuple[int, int, int]:
    """Queries and keys of a tile, warps, and stages of the pipeline: to be measured on a GPU.

    Chosen for Hopper by what the compiler reports: so that two programs at a time fit in the 227 KB of a
    multiprocessor's shared memory, which allows two stages for narrow heads only, and that few registers are spilled.
    """
    if dtype == torch.float32:  # exact products do not run on tensor cores
        return 32, 8, 1
    if width > 128:
        return 32, 4, 1
    return 64, 4, 2 if width + rank <= 128 else 1


class _Attention(torch.autograd.Function):
    """query: (N, L, D); key, value: (N, S, D); lagged: (N, L, R); basis: (G, T, R); bias: fp32 (H, S)."""

    @staticmethod
    def forward(ctx, query, key, value, lagged, basis, bias, scale, dropout_p, seed):
        output = torch.empty_like(query)
        logsumexp = query.new_empty(query.shape[:2], dtype=torch.float32)  # (N, L), of the scores
        inputs = query, key, value, lagged, basis, bias
        _launch(_forward, query.size(1), inputs, (output, logsumexp), scale, dropout_p, seed)
        ctx.save_for_backward(*inputs, output, logsumexp)
        ctx.constants = scale, dropout_p, seed
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx, d_output):
        *inputs, output, logsumexp = ctx.saved_tensors
        query, key, value, lagged, basis, bias = inputs
        d_output, mean = d_output.contiguous(), torch.empty_like(logsumexp)
        d_query, d_key, d_value = torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)
        d_lagged = None if lagged is None else torch.empty_like(lagged)
        d_basis, d_bias = (
            torch.zeros_like(tensor, dtype=torch.float32) if needed else None
            for tensor, needed in zip((basis, bias), ctx.needs_input_grad[4:6])
        )
        outputs = output, logsumexp, d_output, mean, d_query, d_lagged, d_basis, d_bias
        _launch(_backward_queries, query.size(1), inputs, outputs, *ctx.constants)
        _launch(_backward_keys, key.size(1), inputs, (logsumexp, d_output, mean, d_key, d_value), *ctx.constants)
        d_basis = None if d_basis is None else d_basis.to(basis.dtype)
        return d_query, d_key, d_value, d_lagged, d_basis, d_bias, None, None, None


def _launch(kernel, length, inputs, outputs, scale, dropout_p, seed):
    """One program for each block of the `length` queries or keys and each of the N heads."""
    query, key, _, lagged, basis, bias = inputs
    groups = [1 if slot is None else slot.size(0) for slot in (basis, bias)]
    rank = 0 if basis is None else basis.size(2)
    block, warps, stages = block_sizes(query.size(2), rank, query.dtype)
    with torch.cuda.device_of(query):
        kernel[(triton.cdiv(length, block) * query.size(0),)](
            *inputs,
            *outputs,
            query.size(1),
            key.size(1),
            0 if basis is None else basis.size(1),
            *groups,
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
def _rows(pointer, start, length, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    """Rows start .. start + BLOCK - 1 of (length, WIDTH), zero outside of it: (BLOCK, WIDTH)."""
    row = start + tl.arange(0, BLOCK)
    inside = (row >= 0) & (row < length)
    return tl.load(pointer + row[:, None] * WIDTH + tl.arange(0, WIDTH)[None, :], mask=inside[:, None], other=0.0)


@_jit
def _store_rows(pointer, start, length, rows, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    row = start + tl.arange(0, BLOCK)
    to = pointer + row[:, None] * WIDTH + tl.arange(0, WIDTH)[None, :]
    tl.store(to, rows.to(pointer.dtype.element_ty), mask=(row < length)[:, None])


@_jit
def _add_lags(pointer, start, length, rows, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    row = start + tl.arange(0, BLOCK)
    to = pointer + row[:, None] * WIDTH + tl.arange(0, WIDTH)[None, :]
    tl.atomic_add(to, rows, mask=((row >= 0) & (row < length))[:, None], sem="relaxed")


@_jit
def _dot(one, other):
    return tl.dot(one, other, input_precision="ieee")


@_jit
def _turn(AXIS: tl.constexpr, BLOCK: tl.constexpr):
    """Query i minus key j, or column k, which lies along AXIS: (BLOCK, BLOCK)."""
    turn = tl.arange(0, BLOCK)[:, None] - tl.arange(0, BLOCK)[None, :]
    return turn if AXIS == 1 else -turn


@_jit
def _lag_scores(
    lags, basis, bias, lag, S, T, NEAR: tl.constexpr, AXIS: tl.constexpr, R: tl.constexpr, BLOCK: tl.constexpr
):
    """What the slots add to a block's queries at the lags lag .. lag + BLOCK - 1, along AXIS: (BLOCK, BLOCK)."""
    score = tl.zeros((BLOCK, BLOCK), tl.float32)
    if NEAR and basis is not None:
        window = _rows(basis, lag, T, R, BLOCK)
        score = _dot(lags, tl.trans(window)) if AXIS == 1 else _dot(window, tl.trans(lags))
    if bias is not None:
        t = lag + tl.arange(0, BLOCK)
        score += tl.expand_dims(tl.load(bias + t, mask=(t >= 0) & (t < S), other=0.0), 1 - AXIS)
    return score


@_jit
def _scores(
    q, k, lags, basis, bias, lag, S, T, scale,
    NEAR: tl.constexpr, AXIS: tl.constexpr, R: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """A tile's scores, keys along AXIS: (BLOCK, BLOCK). q, k: (BLOCK, D); lags: (BLOCK, R).

    Only if NEAR has it lags below T, which read the basis, and below 0, which are not seen.
    """
    turn = _turn(AXIS, BLOCK)
    beside = tl.zeros((BLOCK, BLOCK), tl.float32)
    if (NEAR and basis is not None) or bias is not None:
        older = _lag_scores(lags, basis, bias, lag, S, T, NEAR, AXIS, R, BLOCK)
        newer = _lag_scores(lags, basis, bias, lag - BLOCK, S, T, NEAR, AXIS, R, BLOCK)
        beside = tl.gather(tl.where(turn >= 0, older, newer) / scale, turn & (BLOCK - 1), AXIS)
    # The product starts from them; added to it, their gather's layout would spread to the softmax and cost it shuffles.
    one, other = (q, k) if AXIS == 1 else (k, q)
    score = tl.dot(one, tl.trans(other), beside, input_precision="ieee") * scale
    return tl.where(lag + turn >= 0, score, -float("inf")) if NEAR else score


@_jit
def _kept(seed, row, start, S, dropout_p, BLOCK: tl.constexpr):
    """Which weights of the queries row .. and keys start .. stay: (BLOCK, BLOCK), the same in every kernel.

    Four keys share one draw of Philox; its 7 rounds are the fewest that pass BigCrush (Salmon et al., 2011).
    """
    fourth = start // 4 + tl.arange(0, BLOCK // 4)
    offset = (row + tl.arange(0, BLOCK))[:, None] * tl.cdiv(S, 4) + fourth[None, :]
    a, b, c, d = tl.rand4x(seed, offset, 7)
    return tl.reshape(tl.join(tl.join(a, b), tl.join(c, d)), (BLOCK, BLOCK)) >= dropout_p


@_jit
def _forward(
    query, key, value, lagged, basis, bias, output, logsumexp, L, S, T, basis_groups, bias_groups, scale, dropout_p,
    seed, DROPOUT: tl.constexpr, D: tl.constexpr, R: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    blocks = tl.cdiv(L, BLOCK)
    n = (tl.program_id(0) // blocks).to(tl.int64)
    row = (blocks - 1 - tl.program_id(0) % blocks) * BLOCK  # the longest rows first
    first = S - L + row  # the first query's position
    q = _rows(query + n * L * D, row, L, D, BLOCK)
    key += n * S * D
    value += n * S * D
    lags = None
    if basis is not None:
        basis += n % basis_groups * T * R
        lags = _rows(lagged + n * L * R, row, L, R, BLOCK)
    if bias is not None:
        bias += n % bias_groups * S

    peak = tl.full((BLOCK,), -float("inf"), tl.float32)
    total = tl.zeros((BLOCK,), tl.float32)
    attended = tl.zeros((BLOCK, D), tl.float32)
    far = tl.maximum(first + 1 - T, 0) // BLOCK  # so many tiles lie at lags of T and more, or in the past if T is 0
    for NEAR in tl.static_range(2):
        for tile in range(far if NEAR else 0, tl.cdiv(first + BLOCK, BLOCK) if NEAR else far):
            start = tile * BLOCK
            lag = first - start
            k = _rows(key, start, S, D, BLOCK)
            score = _scores(q, k, lags, basis, bias, lag, S, T, scale, NEAR, 1, R, BLOCK)
            higher = tl.maximum(peak, tl.max(score, 1))
            zero = tl.where(higher == -float("inf"), 0.0, higher)  # no key so far but those with a bias of -inf
            shrink = tl.exp(peak - zero)
            weight = tl.exp(score - zero[:, None])
            total = total * shrink + tl.sum(weight, 1)
            if DROPOUT:
                weight = tl.where(_kept(seed + n, row, start, S, dropout_p, BLOCK), weight, 0.0)
            v = _rows(value, start, S, D, BLOCK)
            attended = attended * shrink[:, None] + _dot(weight.to(v.dtype), v)
            peak = higher

    attended /= (total * (1 - dropout_p))[:, None]
    _store_rows(output + n * L * D, row, L, attended, D, BLOCK)
    _store_rows(logsumexp + n * L, row, L, (peak + tl.log(total))[:, None], 1, BLOCK)


@_jit
def _backward_queries(
    query, key, value, lagged, basis, bias, output, logsumexp, d_output, mean, d_query, d_lagged, d_basis, d_bias,
    L, S, T, basis_groups, bias_groups, scale, dropout_p, seed,
    DROPOUT: tl.constexpr, D: tl.constexpr, R: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Also the mean of each query's d_weights, (N, L), that the keys' kernel reads; d_basis and d_bias if not None."""
    blocks = tl.cdiv(L, BLOCK)
    n = (tl.program_id(0) // blocks).to(tl.int64)
    row = (blocks - 1 - tl.program_id(0) % blocks) * BLOCK
    rows = row + tl.arange(0, BLOCK)
    first = S - L + row
    turn = _turn(1, BLOCK)
    q = _rows(query + n * L * D, row, L, D, BLOCK)
    d_o = _rows(d_output + n * L * D, row, L, D, BLOCK)
    middle = tl.sum(d_o.to(tl.float32) * _rows(output + n * L * D, row, L, D, BLOCK).to(tl.float32), 1)
    tl.store(mean + n * L + rows, middle, mask=rows < L)
    height = tl.load(logsumexp + n * L + rows, mask=rows < L, other=float("inf"))  # no weight in rows that are none
    key += n * S * D
    value += n * S * D
    lags = None
    if basis is not None:
        basis += n % basis_groups * T * R
        lags = _rows(lagged + n * L * R, row, L, R, BLOCK)
        d_lags = tl.zeros((BLOCK, R), tl.float32)
    if d_basis is not None:
        d_basis += n % basis_groups * T * R
    if bias is not None:
        bias += n % bias_groups * S
    if d_bias is not None:
        d_bias += n % bias_groups * S

    d_q = tl.zeros((BLOCK, D), tl.float32)
    far = tl.maximum(first + 1 - T, 0) // BLOCK
    for NEAR in tl.static_range(2):
        for tile in range(far if NEAR else 0, tl.cdiv(first + BLOCK, BLOCK) if NEAR else far):
            start = tile * BLOCK
            lag = first - start
            k = _rows(key, start, S, D, BLOCK)
            score = _scores(q, k, lags, basis, bias, lag, S, T, scale, NEAR, 1, R, BLOCK)
            d_weight = _dot(d_o, tl.trans(_rows(value, start, S, D, BLOCK)))
            if DROPOUT:
                kept = _kept(seed + n, row, start, S, dropout_p, BLOCK)
                d_weight = tl.where(kept, d_weight / (1 - dropout_p), 0.0)
            d_score = tl.exp(score - height[:, None]) * (d_weight - middle[:, None])
            d_q += _dot(d_score.to(k.dtype), k)
            if (NEAR and basis is not None) or d_bias is not None:
                turned = tl.gather(d_score, turn & (BLOCK - 1), 1)
                d_older, d_newer = tl.where(turn >= 0, turned, 0.0), tl.where(turn >= 0, 0.0, turned)
                if d_bias is not None:
                    _add_lags(d_bias, lag, S, tl.sum(d_older, 0)[:, None], 1, BLOCK)
                    _add_lags(d_bias, lag - BLOCK, S, tl.sum(d_newer, 0)[:, None], 1, BLOCK)
                if NEAR and basis is not None:
                    d_older, d_newer = d_older.to(k.dtype), d_newer.to(k.dtype)
                    d_lags += _dot(d_older, _rows(basis, lag, T, R, BLOCK))
                    d_lags += _dot(d_newer, _rows(basis, lag - BLOCK, T, R, BLOCK))
                    if d_basis is not None:
                        _add_lags(d_basis, lag, T, _dot(tl.trans(d_older), lags), R, BLOCK)
                        _add_lags(d_basis, lag - BLOCK, T, _dot(tl.trans(d_newer), lags), R, BLOCK)

    _store_rows(d_query + n * L * D, row, L, d_q * scale, D, BLOCK)
    if basis is not None:
        _store_rows(d_lagged + n * L * R, row, L, d_lags, R, BLOCK)


@_jit
def _backward_keys(
    query, key, value, lagged, basis, bias, logsumexp, d_output, mean, d_key, d_value,
    L, S, T, basis_groups, bias_groups, scale, dropout_p, seed,
    DROPOUT: tl.constexpr, D: tl.constexpr, R: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Tiles with keys down and queries across, so that weights enter the products for d_key and d_value as they are."""
    blocks = tl.cdiv(S, BLOCK)
    n = (tl.program_id(0) // blocks).to(tl.int64)
    start = tl.program_id(0) % blocks * BLOCK
    k = _rows(key + n * S * D, start, S, D, BLOCK)
    v = _rows(value + n * S * D, start, S, D, BLOCK)
    query += n * L * D
    d_output += n * L * D
    if basis is not None:
        basis += n % basis_groups * T * R
        lagged += n * L * R
    if bias is not None:
        bias += n % bias_groups * S

    d_k = tl.zeros((BLOCK, D), tl.float32)
    d_v = tl.zeros((BLOCK, D), tl.float32)
    own = start - (S - L)  # the row of the first key's own query, negative if that is none of the L
    seen = tl.maximum(own, 0) // BLOCK  # the first block of queries with these keys in their past
    far = tl.minimum(tl.cdiv(tl.maximum(own + BLOCK - 1 + T, 0), BLOCK), tl.cdiv(L, BLOCK))  # ... at lags of T and more
    for NEAR in tl.static_range(2):
        for tile in range(seen if NEAR else tl.maximum(seen, far), far if NEAR else tl.cdiv(L, BLOCK)):
            row = tile * BLOCK
            rows = row + tl.arange(0, BLOCK)
            lag = row - own
            q = _rows(query, row, L, D, BLOCK)
            lags = None
            if NEAR and basis is not None:
                lags = _rows(lagged, row, L, R, BLOCK)
            score = _scores(q, k, lags, basis, bias, lag, S, T, scale, NEAR, 0, R, BLOCK)
            height = tl.load(logsumexp + n * L + rows, mask=rows < L, other=float("inf"))
            weight = tl.exp(score - height[None, :])
            d_o = _rows(d_output, row, L, D, BLOCK)
            d_weight = _dot(v, tl.trans(d_o))
            dropped = weight
            if DROPOUT:
                kept = tl.trans(_kept(seed + n, row, start, S, dropout_p, BLOCK))
                dropped = tl.where(kept, weight / (1 - dropout_p), 0.0)
                d_weight = tl.where(kept, d_weight / (1 - dropout_p), 0.0)
            d_v += _dot(dropped.to(d_o.dtype), d_o)
            middle = tl.load(mean + n * L + rows, mask=rows < L, other=0.0)
            d_score = weight * (d_weight - middle[None, :])
            d_k += _dot(d_score.to(q.dtype), q)

    _store_rows(d_key + n * S * D, start, S, d_k * scale, D, BLOCK)
    _store_rows(d_value + n * S * D, start, S, d_v, D, BLOCK)


_INTERPRETED = triton is not None and not isinstance(_forward, triton.runtime.JITFunction)
