"""Causal self-attention with any position representation, once as the formula says and once fast.

    score[m, n] = ( R_m(q_m) . R_n(k_n)  +  q_m . p(t) ) / sqrt(d)  +  b_h(t),      t = m - n >= 0

The representation is a `positions.Position`, which is known here by its slots R, p and b only. B is the batch size, H
the number of heads, d their width, S the number of keys and L <= S that of queries, which are the last L positions (in
incremental decoding L is 1). There is no padding mask: padding on the right is not seen by any earlier query.
"""

import contextlib
import functools
import math
from typing import Iterator, NamedTuple, Optional

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..positions import Position
from ..positions.base import compiler_says, is_traced

IMPLEMENTATIONS = ("auto", "blockwise", "triton", "reference")
"""``auto`` is ``triton`` on a GPU where that runs, and ``blockwise`` elsewhere. It leaves to PyTorch's own attention
what that does as well: empty slots p and b, and a single query on a CPU. Traced or exported it is ``reference``.
"""


def attention_weights(query: Tensor, key: Tensor, position: Position) -> Tensor:
    """The formula, spelled out with its L x S x d tensor, and the softmax of its scores over the keys.

    query: (B, H, L, d); key: (B, H, S, d) with S >= L. Returns (B, H, L, S), zero at a query's future.
    """
    num_queries, num_keys = query.size(-2), key.size(-2)
    place = torch.arange(num_keys, device=query.device)
    lag = place[num_keys - num_queries :, None] - place  # (L, S)
    past = lag.clamp(min=0)
    rotated_query, rotated_key = position.rotate(query, key)
    score = torch.einsum("bhmd,bhnd->bhmn", rotated_query, rotated_key)
    relative = position.relative(num_keys, like=query)
    if relative is not None:
        heads = "h" if relative.dim() == 3 else ""  # (H, S, d) or (S, d)
        relative_query = position.relative_query(query)
        score = score + torch.einsum(f"bhmd,{heads}mnd->bhmn", relative_query, relative[..., past, :])
    score = score / math.sqrt(query.size(-1))
    bias = position.bias(num_keys, like=query)
    if bias is not None:
        score = score + bias[:, past]
    return score.masked_fill(lag < 0, -math.inf).softmax(dim=-1)


def reference_attention(
    query: Tensor, key: Tensor, value: Tensor, position: Position, dropout_p: float = 0.0
) -> Tensor:
    """The definition, `attention_weights` times the values: slow, and what everything fast is compared with.

    query: (B, H, L, d); key, value: (B, H, S, d) with S >= L; dropout_p: dropout probability of the attention weights.
    Returns (B, H, L, d).
    """
    _sizes(query, key, value, position)
    return F.dropout(attention_weights(query, key, position), dropout_p) @ value


def causal_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    position: Position,
    dropout_p: float = 0.0,
    implementation: str = "auto",
    recompute: bool = False,
) -> Tensor:
    """`reference_attention`, fast: no L x S x d tensor, and in inference none of L x S either.

    query: (B, H, L, d); key, value: (B, H, S, d) with S >= L; dropout_p: dropout probability of the attention weights;
    implementation: one of IMPLEMENTATIONS; recompute: whether the backward pass of ``blockwise`` computes the weights
    anew, instead of keeping the B H L S / 2 of them.

    Returns (B, H, L, d). Raises ValueError for other shapes, for a dropout_p that is not in [0, 1) and for an
    implementation that cannot run here. Second derivatives are those of ``reference`` only; the others refuse.
    """
    chosen = _chosen(implementation, query)
    if not 0 <= dropout_p < 1:
        raise ValueError(f"dropout_p {dropout_p}: accepted is a probability, from 0 to less than 1")
    plain = contextlib.nullcontext() if query.is_meta else torch.autocast(query.device.type, enabled=False)
    with plain:
        if chosen == "reference" or query.numel() == 0:  # blocks have queries
            return reference_attention(query, key, value, position, dropout_p)
        own = implementation == "auto"
        return _fast_attention(query, key, value, position, dropout_p, chosen == "triton", own, recompute)


def _fast_attention(query, key, value, position, dropout_p, fused, own, recompute) -> Tensor:
    """fused: ``triton`` and not ``blockwise``; own: whether PyTorch's own attention may stand in for them."""
    num_queries, num_keys, head_dim = _sizes(query, key, value, position)
    shape, dtype = query.shape, query.dtype
    learning = torch.is_grad_enabled() and any(
        tensor.requires_grad for tensor in (query, key, value, *position.parameters())
    )
    factors, bias = _factors(position, num_keys, query), position.bias(num_keys, like=query)
    whole = num_queries == num_keys and not (learning and query.device.type == "cpu")
    if own and factors is None and bias is None and whole:
        return F.scaled_dot_product_attention(*position.rotate(query, key), value, None, dropout_p, is_causal=True)
    if not fused and dtype != torch.promote_types(dtype, torch.float32):  # half precision is rounded at the end
        query, key, value = (tensor.float() for tensor in (query, key, value))
        factors, bias = _factors(position, num_keys, query), position.bias(num_keys, like=query)
    rotated_query, rotated_key = position.rotate(query, key)
    lagged = basis = None
    if factors is not None:
        projection, rows = factors
        scale, lagged = 1 / math.sqrt(head_dim), position.relative_query(query)
        lagged = lagged * scale if projection is None else lagged @ (projection * scale)
        basis = rows.transpose(-2, -1)  # (r, T) or (H, r, T)
    if own and num_queries == 1 and not fused:
        mask = _slots_of_one_query(lagged, basis, bias, num_keys)
        return F.scaled_dot_product_attention(rotated_query, rotated_key, value, mask, dropout_p).to(dtype)
    if basis is not None:
        lagged, basis = lagged.flatten(0, 1), basis if basis.dim() == 3 else basis[None]
    heads = (tensor.flatten(0, 1) for tensor in (rotated_query, rotated_key, value))
    seed = int(torch.randint(2**31, (), device="cpu")) if dropout_p else 0
    if fused:
        from .triton import triton_attention

        attended = triton_attention(*heads, lagged, basis, bias, dropout_p, seed)
    else:
        attended = _blockwise(*heads, lagged, basis, bias, dropout_p, seed, learning, recompute)
    return attended.view(shape).to(dtype)


def _factors(position: Position, num_keys: int, query: Tensor):
    """`Position.factors`; None where p is zero at every lag in view, as of a wavelet that lies further back."""
    factors = position.factors(num_keys, like=query)
    return None if factors is None or factors[1].numel() == 0 else factors


def _slots_of_one_query(lagged, basis, bias, num_keys) -> Optional[Tensor]:
    """Slots p and b of the last query, which sees all keys: a mask (B or 1, H, 1, S) to add, or None."""
    slots = None if bias is None else bias[None, :, None]
    if lagged is not None:
        near = lagged @ basis
        far = F.pad(near, (0, num_keys - near.size(-1)))
        slots = far if slots is None else far + slots
    return None if slots is None else slots.flip(-1)


def _chosen(implementation: str, query: Tensor) -> str:
    if implementation not in IMPLEMENTATIONS:
        accepted = ", ".join(IMPLEMENTATIONS)
        raise ValueError(f"--attention-implementation {implementation!r} is unknown; accepted are {accepted}")
    if is_traced():
        if implementation in ("blockwise", "triton"):
            raise ValueError(
                f"--attention-implementation {implementation} cannot be traced or exported; accepted are auto and "
                "reference"
            )
        return "reference"
    if implementation == "auto" and not query.is_cuda:
        return "blockwise"
    if implementation in ("auto", "triton"):
        from .triton import why_not  # here, so that nothing else waits for Triton

        reason = why_not(query)
        if reason and implementation == "triton":
            raise ValueError(f"--attention-implementation triton: {reason}")
        return "blockwise" if reason else "triton"
    return implementation


def _blockwise(query, key, value, lagged, basis, bias, dropout_p, seed, learning, recompute) -> Tensor:
    """Attention of N = B H heads: (N, L, d).

    query: (N, L, d), key, value: (N, S, d), after R. Slot p: lagged (N, L, r), which is divided by sqrt(d), times basis
    (G, r, T) over the lags 0 .. T - 1, G being 1 or H; none at further lags. Slot b: bias (H, S).
    """
    num_keys = key.size(1)
    if basis is not None:
        basis = F.pad(basis, (0, _block_size(num_keys))).flip(-1)  # a block's first query sees furthest
    if bias is not None:
        bias = bias.flip(-1)
    apply = _untraced() if compiler_says("is_compiling") else _Blockwise.apply
    return apply(query, key, value, lagged, basis, bias, dropout_p, seed, learning, recompute)


@functools.lru_cache(maxsize=None)
def _untraced():
    """torch.compile runs this as it is: traced, what is written through `_by_keys` came out wrong (PyTorch 2.13)."""
    return torch._dynamo.disable(_Blockwise.apply)


def _by_keys(lags: Tensor) -> Tensor:
    """Scores over descending lags seen as scores over keys, by a change of view (Dai et al., 2019, appendix B).

    lags: (..., m, T), the lags T - 1 .. 0 of m consecutive queries. Returns (..., m, T), the T keys up to the last
    query's own. Row i starts m - 1 - i columns later than it does in lags; so the keys in its future show what follows
    the row in memory, which nobody reads.
    """
    strides = (*lags.stride()[:-2], lags.stride(-2) - 1, 1)
    return lags.as_strided(lags.shape, strides, lags.storage_offset() + lags.size(-2) - 1)


def _by_lags(scores: Tensor) -> Tensor:
    """The other way: scores over keys, 0 in a row's future, as scores over descending lags, 0 where no key stands."""
    lags = torch.empty_like(scores, memory_format=torch.contiguous_format)
    lags[..., 0, :] = 0
    _by_keys(lags)[..., :-1] = scores[..., :-1]
    lags[..., -1, -1] = scores[..., -1, -1]  # other rows' last columns are the first ones of the next
    return lags


class _Blockwise(torch.autograd.Function):
    """Attention of N = B H heads, a block of queries at a time against the keys up to the block's end.

    The arguments are those of `_blockwise`, the lags of basis (G, r, T) and bias (H, S) descending.

    The backward pass is that of FlashAttention (Dao et al., 2022, appendix B.4), with the two slots' part of it.
    """

    @staticmethod
    def forward(ctx, query, key, value, lagged, basis, bias, dropout_p, seed, learning, recompute):
        output, kept = torch.empty_like(query, memory_format=torch.contiguous_format), []
        keep = learning and not recompute
        bias_rows, causal = _same_rows(bias, query, key), _causal(query, key)
        blocks = list(_blocks(query, key, learning, basis, bias))
        memory = None if keep else query.new_empty(max((math.prod(block.shape) for block in blocks), default=0))
        for number, block in enumerate(blocks):
            heads, rows, keys = block
            weights = _weights(block, query, key, lagged, basis, bias_rows, causal, memory)
            if keep:
                kept.append(weights)
            if dropout_p:
                weights = weights * _dropout(weights, dropout_p, seed + number)
            output[heads, rows] = weights @ value[heads, keys]
        ctx.save_for_backward(query, key, value, lagged, basis, bias, output, *kept)
        ctx.dropout = dropout_p, seed
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx, d_output):
        query, key, value, lagged, basis, bias, output, *kept = ctx.saved_tensors
        dropout_p, seed = ctx.dropout
        bias_rows, causal = _same_rows(bias, query, key), _causal(query, key)
        d_query, d_key, d_value = torch.empty_like(query), torch.zeros_like(key), torch.zeros_like(value)
        d_lagged = None if lagged is None else torch.empty_like(lagged)
        d_basis, d_bias_rows = (
            torch.zeros_like(tensor) if needed else None
            for tensor, needed in zip((basis, bias_rows), ctx.needs_input_grad[4:6])
        )
        means = (d_output * output).sum(-1, keepdim=True)
        for number, block in enumerate(_blocks(query, key, True, basis, bias)):
            heads, rows, keys = block
            weights = kept[number] if kept else _weights(block, query, key, lagged, basis, bias_rows, causal)
            d_weights = d_output[heads, rows] @ value[heads, keys].transpose(1, 2)
            dropped = weights
            if dropout_p:
                factor = _dropout(weights, dropout_p, seed + number)
                dropped, d_weights = weights * factor, d_weights.mul_(factor)
            d_value[heads, keys].baddbmm_(dropped.transpose(1, 2), d_output[heads, rows])
            d_scores = d_weights.sub_(means[heads, rows]).mul_(weights)
            d_key[heads, keys].baddbmm_(d_scores.transpose(1, 2), query[heads, rows], alpha=_scale(query))
            d_query[heads, rows] = (d_scores @ key[heads, keys]).mul_(_scale(query))
            if lagged is not None:
                near = _near(basis, block)
                d_lags = _by_lags(_grouped(d_scores, near)[..., -near.size(-1) :])
                _grouped(d_lagged[heads, rows], near).copy_(_times(d_lags, near.transpose(1, 2)))
                if d_basis is not None:
                    grouped = _grouped(lagged[heads, rows], near)
                    _near(d_basis, block).baddbmm_(grouped.flatten(1, 2).transpose(1, 2), d_lags.flatten(1, 2))
            if d_bias_rows is not None:
                d_rows = _near(d_bias_rows, block)[:, : rows.stop - rows.start]
                d_rows += _by_lags(_grouped(d_scores, d_rows).sum(1))
        d_bias = None if d_bias_rows is None else d_bias_rows.sum(1)
        return d_query, d_key, d_value, d_lagged, d_basis, d_bias, None, None, None, None


class _Block(NamedTuple):
    """Some of the N heads, queries of L, and the keys of S that they see, the last ones being their own."""

    heads: slice
    rows: slice
    keys: slice

    @property
    def shape(self):
        """(heads, queries, keys) of its scores."""
        heads, rows, keys = self
        return heads.stop - heads.start, rows.stop - rows.start, keys.stop


def _block_size(num_keys: int) -> int:
    return 64 if num_keys <= 512 else 128  # measured: docs/performance.md


_SCORES = 2**19  # of a block where 8 heads, 4 in inference, have fewer; all three measured, too


def _blocks(query: Tensor, key: Tensor, learning: bool, *slots: Optional[Tensor]) -> Iterator[_Block]:
    """Blocks of whole sequences, or of a part of one, where the heads of a sequence have different slots."""
    num_heads, num_queries, _ = query.shape
    num_keys = key.size(1)
    size = _block_size(num_keys)
    sequence = max((slot.size(0) for slot in slots if slot is not None), default=1)
    for start in range(0, num_queries, size):
        stop = min(start + size, num_queries)
        rows, keys = slice(start, stop), slice(0, num_keys - num_queries + stop)
        group = max(8 if learning else 4, _SCORES // ((stop - start) * keys.stop))
        if group > sequence:
            group -= group % sequence
        whole = max(group, sequence)
        for first in range(0, num_heads, whole):
            last = min(first + whole, num_heads)
            for head in range(first, last, group):
                yield _Block(slice(head, min(head + group, last)), rows, keys)


def _weights(block, query, key, lagged, basis, bias_rows, causal, memory=None) -> Tensor:
    """The attention weights of a block, before dropout: (N, m, n), which stand in `memory` if that is given."""
    heads, rows, keys = block
    num_queries = rows.stop - rows.start
    scores = None if memory is None else memory[: math.prod(block.shape)].view(block.shape)
    scores = torch.bmm(query[heads, rows] * _scale(query), key[heads, keys].transpose(1, 2), out=scores)
    if lagged is not None:
        near = _near(basis, block)
        lags = _times(_grouped(lagged[heads, rows], near), near)
        _grouped(scores, near)[..., -near.size(-1) :].add_(_by_keys(lags))
    if bias_rows is not None:
        near = _near(bias_rows, block)[:, :num_queries]
        _grouped(scores, near).transpose(0, 1).add_(_by_keys(near))
    own = scores[..., -num_queries:]
    own.tril_().add_(causal[:num_queries, :num_queries])  # a quarter of masked_fill_'s time; NaN is forgotten, too
    return torch.softmax(scores, dim=-1, out=scores)


def _scale(query: Tensor) -> float:
    return 1 / math.sqrt(query.size(-1))


def _near(slot: Tensor, block: _Block) -> Tensor:
    """What stands over descending lags, for a block's heads and the lags of its keys, as far as it reaches."""
    first = block.heads.start % slot.size(0)
    return slot[first : first + block.heads.stop - block.heads.start, ..., -block.keys.stop :]


def _grouped(rows: Tensor, near: Tensor) -> Tensor:
    """(N, m, x) as (G, N / G, m, x) for the G heads, or the one for all, that `near` begins with."""
    return rows.view(-1, near.size(0), *rows.shape[1:]).transpose(0, 1)


def _times(grouped: Tensor, matrices: Tensor) -> Tensor:
    """(G, N / G, m, x) times (G, x, y). Where G is 1 it is a product for each head, which is faster than a tall one."""
    rows = grouped[0] if len(grouped) == 1 else grouped.flatten(1, 2)
    return (rows @ matrices.expand(len(rows), -1, -1)).view(*grouped.shape[:-1], -1)


def _causal(query: Tensor, key: Tensor) -> Tensor:
    """What to add to scores of a block's queries over their own keys: -inf in a query's future, else 0. (m, m)."""
    size = _block_rows(query, key)
    return query.new_full((size, size), -math.inf).triu_(1)


def _same_rows(bias: Optional[Tensor], query: Tensor, key: Tensor) -> Optional[Tensor]:
    """The biases over the lags, a copy for each query of a block: (H, m, S)."""
    return None if bias is None else bias[:, None].expand(-1, _block_rows(query, key), -1).contiguous()


def _block_rows(query: Tensor, key: Tensor) -> int:
    return min(_block_size(key.size(1)), query.size(1))


def _dropout(weights: Tensor, dropout_p: float, seed: int) -> Tensor:
    """What dropout multiplies the weights of a block by, the same at every call: 0 or 1 / (1 - p)."""
    generator = None if weights.is_meta else torch.Generator(weights.device).manual_seed(seed)
    return torch.empty_like(weights).bernoulli_(1 - dropout_p, generator=generator).div_(1 - dropout_p)


def _sizes(query: Tensor, key: Tensor, value: Tensor, position: Position):
    """L, S and d of arguments that fit together; ValueError otherwise."""
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
        raise ValueError(f"query, key and value must be of floating point, not {query.dtype}")
    _, num_heads, num_queries, head_dim = query.shape
    if (num_heads, head_dim) != (position.num_heads, position.head_dim):
        raise ValueError(
            f"{num_heads} heads of {head_dim} dimensions do not fit a {type(position).__name__} that was built for "
            f"{position.num_heads} heads of {position.head_dim}"
        )
    num_keys = key.size(2)
    if num_queries > num_keys:
        raise ValueError(f"{num_queries} queries for {num_keys} keys: the queries are the last positions of the keys")
    return num_queries, num_keys, head_dim


def _without_length(tensor: Tensor):
    return (*tensor.shape[:2], *tensor.shape[3:])
