"""Exact attention on any device: a block of queries at a time, with PyTorch's matrix products.

    score[n, i, j] = query[n, i] . key[n, j] / sqrt(d) + projected_query[n, i] . basis[:, t] + bias[t] + key_bias[n, j]

with t = S - L + i - j >= 0. N = B H is the number of heads and M = B K that of key heads, so that N / M heads have the
same keys and values; L queries are the last of S positions; r and T are the rank and the reach of slot p. A slot has a
leading dimension G of 1 (all heads share it) or H. docs/performance.md says why each step is exact and what it saves.

A block has h of the N heads, their k key heads, m of the L queries and n of the S keys: its own positions and those
before them, from the first on that one of its queries sees. Its slots are those of g heads, 1 or as many as differ,
over u <= n lags.
"""

import functools
import math
from typing import Iterator, List, NamedTuple, Optional, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..positions.tracing import compiler_says
from .reference import refuse_second_derivatives, without_autocast

_SCORES_PER_BLOCK = 2**19  # if 8 heads, or 4 in inference, have fewer; all three were measured
_UNSEEN_PER_BLOCK, _MANY_KEYS = 2**16, 1024  # these two as well: see `_alike` and `_reach`


def blockwise_attention(
    query, key, value, projected_query, basis, bias, key_bias, segments, dropout_p, seed, needs_grad, recompute
) -> Tensor:
    """softmax(score) after dropout, times the values: (N, L, d).

    query: (N, L, d); key, value: (M, S, d), all after R. projected_query: (N, L, r), divided by sqrt(d), and basis:
    (G, r, T) over the lags 0 .. T - 1, or None and None; the basis is zero at further lags. bias: (H, S) over the lags
    0 .. S - 1, or None. key_bias: fp64 (N, S), or None. segments: integers (B, S), or None. The same seed drops the
    same weights. needs_grad: whether a backward pass may follow.
    """
    if basis is not None:  # descending lags; the first query of a block sees the longest ones
        basis = F.pad(basis, (0, _block_size(key.size(1)))).flip(-1)  # (G, r, T) -> (G, r, T + m)
    if bias is not None:
        bias = bias.flip(-1)
    if segments is not None:
        segments = None if segments.is_meta else _first_of_segment(segments)
    apply = _untraced_apply() if compiler_says("is_compiling") else _Blockwise.apply
    tensors = query, key, value, projected_query, basis, bias, key_bias, segments
    return apply(*tensors, dropout_p, seed, needs_grad, recompute)


def _first_of_segment(segments: Tensor) -> Tensor:
    """The first position of the segment that each position lies in, which is one more name of it: int64 (B, S)."""
    segments = segments.contiguous()
    ascending, order = segments.sort(dim=1, stable=True)
    return order.gather(1, torch.searchsorted(ascending, segments))


@functools.lru_cache(maxsize=None)
def _untraced_apply():
    """`_Blockwise.apply` outside of torch.compile, which mishandles writes through `_view_by_keys` (PyTorch 2.13)."""
    return torch._dynamo.disable(_Blockwise.apply)


class _Blockwise(torch.autograd.Function):
    """`blockwise_attention` with basis (G, r, T + m) and bias (H, S) over descending lags, segments by their firsts.

    The backward pass is FlashAttention's (Dao et al., 2022, appendix B.4), extended to the slots p, b and c.
    """

    @staticmethod
    def forward(
        ctx, query, key, value, projected_query, basis, bias, key_bias, segments, dropout_p, seed, needs_grad, recompute
    ):
        output = torch.empty_like(query, memory_format=torch.contiguous_format)  # (N, L, d)
        saved_weights, save_weights = [], needs_grad and not recompute
        reach = [key.size(1)] if dropout_p else _reach(query, key, projected_query, basis, bias, key_bias)
        as_learning = needs_grad or dropout_p > 0  # a checkpoint's second call, with gradients, drops the same weights
        blocks = list(_blocks(query, key, segments, as_learning, reach, basis, bias))
        memory = None if save_weights else query.new_empty(max((math.prod(block.shape) for block in blocks), default=0))
        given = _given(query, key, projected_query, basis, bias, key_bias, segments)
        for number, block in enumerate(blocks):
            weights = _weights(block, memory, *given)
            if save_weights:
                saved_weights.append(weights)
            if dropout_p:
                weights = weights * _dropout_factor(weights, dropout_p, seed + number)
            # (k, h / k m, n) @ (k, n, d) -> (h, m, d)
            output[block.of_queries] = _by_head(_by_key_head(weights, block) @ value[block.of_keys], block)
        tensors = query, key, value, projected_query, basis, bias, key_bias, segments
        ctx.save_for_backward(*tensors, output, *saved_weights)
        ctx.dropout, ctx.reach = (dropout_p, seed), reach
        return output

    @staticmethod
    def backward(ctx, d_output):
        refuse_second_derivatives()
        with without_autocast(d_output):
            return _Blockwise.gradients(ctx, d_output)

    @staticmethod
    def gradients(ctx, d_output):
        query, key, value, projected_query, basis, bias, key_bias, segments, output, *saved_weights = ctx.saved_tensors
        dropout_p, seed = ctx.dropout
        scale, bias_rows = _scale(query), _repeat_bias(bias, query, key) if ctx.needs_input_grad[5] else None
        d_query, d_key, d_value = torch.empty_like(query), torch.zeros_like(key), torch.zeros_like(value)
        d_projected_query = None if projected_query is None else torch.empty_like(projected_query)
        d_basis, d_bias_rows, d_key_bias = (
            torch.zeros_like(tensor) if needed else None
            for tensor, needed in zip((basis, bias_rows, key_bias), ctx.needs_input_grad[4:7])
        )
        given = () if saved_weights else _given(query, key, projected_query, basis, bias, key_bias, segments)
        mean_d_weight = (d_output * output).sum(-1, keepdim=True)  # (N, L, 1): weighted by the weights
        for number, block in enumerate(_blocks(query, key, segments, True, ctx.reach, basis, bias)):
            of_queries, of_keys = block.of_queries, block.of_keys
            if saved_weights:
                weights = saved_weights[number]  # (h, m, n)
            else:
                weights = _weights(block, None, *given)
            d_attended = _by_key_head(d_output[of_queries], block)  # (h, m, d) -> (k, h / k m, d)
            d_weights = _by_head(d_attended @ value[of_keys].transpose(1, 2), block)  # -> (h, m, n)
            dropped = weights
            if dropout_p:
                factor = _dropout_factor(weights, dropout_p, seed + number)
                dropped, d_weights = weights * factor, d_weights.mul_(factor)
            d_value[of_keys].baddbmm_(_by_key_head(dropped, block).transpose(1, 2), d_attended)  # -> (k, n, d)
            d_scores = d_weights.sub_(mean_d_weight[of_queries]).mul_(weights)  # (h, m, n)
            by_key_head = _by_key_head(d_scores, block)  # (k, h / k m, n)
            d_key[of_keys].baddbmm_(by_key_head.transpose(1, 2), _by_key_head(query[of_queries], block), alpha=scale)
            d_query[of_queries] = _by_head((by_key_head @ key[of_keys]).mul_(scale), block)  # -> (h, m, d)
            if d_projected_query is not None:
                basis_part = _slot_of_block(basis, block)  # (g, r, u)
                d_lag_scores = _copy_by_lags(_by_slot(d_scores, basis_part)[..., -basis_part.size(-1) :])
                d_part = _grouped_matmul(d_lag_scores, basis_part.transpose(1, 2))  # (g, h / g, m, u) -> (.., m, r)
                _by_slot(d_projected_query[of_queries], basis_part).copy_(d_part)
                if d_basis is not None:
                    projected_part = _by_slot(projected_query[of_queries], basis_part).flatten(1, 2)  # (g, .., r)
                    d_basis_part = _slot_of_block(d_basis, block)  # (g, r, u)
                    d_basis_part.baddbmm_(projected_part.transpose(1, 2), d_lag_scores.flatten(1, 2))
            if d_bias_rows is not None:
                d_bias_part = _slot_of_block(d_bias_rows, block)[:, : d_scores.size(1)]  # (g, m, n)
                d_bias_part += _copy_by_lags(_by_slot(d_scores, d_bias_part).sum(1))  # (g, h / g, m, n) -> (g, m, n)
            if d_key_bias is not None:  # its sums over many keys would show that fp32 rounds
                wide = d_key_bias.dtype
                own_keys = slice(block.keys.stop - block.shape[1], block.keys.stop)
                d_key_bias[block.heads, block.keys] += d_scores.sum(1, dtype=wide)  # c(n): (h, m, n) -> (h, n)
                d_key_bias[block.heads, own_keys] -= d_scores.sum(2, dtype=wide)  # -c(m): (h, m, n) -> (h, m)
        d_bias = None if d_bias_rows is None else d_bias_rows.sum(1)  # (H, m, S) -> (H, S)
        return d_query, d_key, d_value, d_projected_query, d_basis, d_bias, d_key_bias, None, None, None, None, None


# Blocks


class _Block(NamedTuple):
    """Slices of the N heads, of the L queries, of the M key heads, and of the S keys that those queries see.

    mixed: a slice of its B sequences if segments hide some of these keys, else None.
    """

    heads: slice
    queries: slice
    key_heads: slice
    keys: slice
    mixed: Optional[slice]

    @property
    def shape(self) -> Tuple[int, int, int]:
        """(h, m, n), the shape of its scores."""
        heads, queries, _, keys, _ = self
        return heads.stop - heads.start, queries.stop - queries.start, keys.stop - keys.start

    @property
    def of_queries(self) -> Tuple[slice, slice]:
        return self.heads, self.queries

    @property
    def of_keys(self) -> Tuple[slice, slice]:
        return self.key_heads, self.keys


def _blocks(
    query: Tensor, key: Tensor, segments: Optional[Tensor], needs_grad: bool, reach: List[int], *slots: Optional[Tensor]
) -> Iterator[_Block]:
    """Blocks of whole sequences, or of a part of one, where the heads of a sequence have different slots or segments.

    A block that has not all heads of a key head has no others. It leaves out keys beyond the reach of all its heads.
    """
    num_heads, num_queries, _ = query.shape
    num_keys = key.size(1)
    size = _block_size(num_keys)
    heads_of_key = num_heads // key.size(0)  # N / M
    heads_of_sequence = max((slot.size(0) for slot in slots if slot is not None), default=1)
    if segments is not None:
        heads_of_sequence, segments = num_heads // segments.size(0), segments.cpu()
    for start in range(0, num_queries, size):
        stop = min(start + size, num_queries)
        queries, keys = slice(start, stop), slice(0, num_keys - num_queries + stop)
        group = max(8 if needs_grad else 4, _SCORES_PER_BLOCK // ((stop - start) * keys.stop))
        reached = [min(of, keys.stop) for of in reach]
        if len(set(reached)) > 1:  # blocks may end early, and the next one must not go on into another sequence
            group = min(group, heads_of_sequence)
        for whole in (heads_of_sequence, heads_of_key):
            if group > whole:
                group -= group % whole
        whole = heads_of_key if group < heads_of_key else max(group, heads_of_sequence)
        for first in range(0, num_heads, whole):
            last = min(first + whole, num_heads)
            for heads in _alike(first, last, group, heads_of_key, stop - start, reached):
                furthest = max(reach[head % len(reach)] for head in range(heads.start, heads.stop))
                seen = slice(max(0, keys.stop - (stop - start) - furthest + 1), keys.stop)
                block = _Block(heads, queries, _part(heads, heads_of_key), seen, None)
                yield block if segments is None else _in_segments(block, segments, _part(heads, heads_of_sequence))


def _alike(first: int, last: int, group: int, heads_of_key: int, num_queries: int, reach: List[int]) -> Iterator[slice]:
    """The heads from first to last in groups of at most `group`; reach: of each of H heads, or of all, in keys.

    A group ends early where its heads would have more than _UNSEEN_PER_BLOCK scores beyond their own reach.
    """
    start, unit = first, min(heads_of_key, group)
    while start < last:
        stop, seen = start, []
        while stop < min(start + group, last):
            seen += [reach[head % len(reach)] for head in range(stop, min(stop + unit, last))]
            if stop > start and num_queries * (max(seen) * len(seen) - sum(seen)) > _UNSEEN_PER_BLOCK:
                break
            stop += unit
        yield slice(start, min(stop, last))
        start = stop


def _part(heads: slice, size: int) -> slice:
    """The parts that the heads lie in, of `size` heads each."""
    return slice(heads.start // size, -(-heads.stop // size))


def _in_segments(block: _Block, segments: Tensor, sequences: slice) -> _Block:
    """The block without the keys before the first one that its queries see; segments: (B, S) by their firsts."""
    stop, num_queries = block.keys.stop, block.shape[1]
    first = max(block.keys.start, int(segments[sequences, stop - num_queries : stop].min()))
    in_view = segments[sequences, first:stop]
    mixed = bool((in_view != in_view[:, -1:]).any())
    return block._replace(keys=slice(first, stop), mixed=sequences if mixed else None)


def _block_size(num_keys: int) -> int:
    return 64 if num_keys <= 512 else 128  # measured: docs/performance.md


def _most_queries(query: Tensor, key: Tensor) -> int:
    """m, except in the last block, which may have fewer queries."""
    return min(_block_size(key.size(1)), query.size(1))


def _given(query, key, projected_query, basis, bias, key_bias, segments) -> Tuple:
    """What `_weights` is given for all blocks."""
    bias_rows, near_lags = _repeat_bias(bias, query, key), _near_lags(query, key, bias, key_bias)  # (H, m, S)
    return query, key, projected_query, basis, bias_rows, key_bias, _causal_mask(query, key), segments, near_lags


def _weights(
    block, memory, query, key, projected_query, basis, bias_rows, key_bias, causal_mask, segments, near_lags
) -> Tensor:
    """The attention weights of a block before dropout, (h, m, n), in `memory` if that is given."""
    shape = num_heads, num_queries, num_keys = block.shape
    scaled_query = _by_key_head(query[block.of_queries] * _scale(query), block)  # (h, m, d) -> (k, h / k m, d)
    memory = None if memory is None else _by_key_head(memory[: math.prod(shape)].view(shape), block)
    scores = torch.bmm(scaled_query, key[block.of_keys].transpose(1, 2), out=memory)  # @ (k, d, n) -> (k, h / k m, n)
    scores = _by_head(scores, block)  # -> (h, m, n)
    if projected_query is not None:
        basis_part = _slot_of_block(basis, block)  # (g, r, u)
        lag_scores = _grouped_matmul(_by_slot(projected_query[block.of_queries], basis_part), basis_part)
        _by_slot(scores, basis_part)[..., -basis_part.size(-1) :].add_(_view_by_keys(lag_scores))  # (g, h / g, m, u)
    if bias_rows is not None:
        bias_part = _slot_of_block(bias_rows, block)[:, :num_queries]  # (g, m, n)
        _by_slot(scores, bias_part).transpose(0, 1).add_(_view_by_keys(bias_part))  # (h / g, g, m, n)
    if key_bias is not None:
        _add_key_bias(scores, key_bias[block.heads, block.keys], num_queries)
    first_head = block.heads.start % len(near_lags)
    num_far = num_keys - min(near_lags[first_head : first_head + num_heads])
    if num_far > 0:
        own = scores.diagonal(num_keys - num_queries, -2, -1)[..., None]  # (h, m, 1): of each query with its own key
        scores[..., :num_far].clamp_(min=own + _log_negligible(scores.dtype))
    if block.mixed is not None:
        in_view = segments[block.mixed, block.keys]  # (sequences, n)
        hidden = in_view[:, -num_queries:, None] != in_view[:, None]  # (sequences, m, n)
        scores.view(len(hidden), -1, *scores.shape[1:]).masked_fill_(hidden[:, None], -math.inf)
    diagonal = scores[..., -num_queries:]  # (h, m, m): against the keys of the block's own positions
    # A quarter of masked_fill_'s time. tril_ removes NaN, too.
    diagonal.tril_().add_(causal_mask[:num_queries, :num_queries])
    return torch.softmax(scores, dim=-1, out=scores)


def _add_key_bias(scores: Tensor, key_bias: Tensor, num_queries: int) -> None:
    """Adds c(n) - c(m) to the scores (h, m, n), rounded once it is a difference. key_bias: fp64 (h, n)."""
    before, own = key_bias[:, :-num_queries], key_bias[:, -num_queries:]
    scores[..., -num_queries:].add_((own[:, None] - own[..., None]).to(scores.dtype))  # (h, m, m)
    first = own[:, :1]
    scores[..., :-num_queries].add_((before - first).to(scores.dtype)[:, None])  # (h, 1, n - m)
    scores[..., :-num_queries].add_((first - own).to(scores.dtype)[..., None])  # (h, m, 1)


def _scale(query: Tensor) -> float:
    return 1 / math.sqrt(query.size(-1))


def _log_negligible(dtype: torch.dtype) -> float:
    """The logarithm of a weight that no sum sees: eps^3, 2e-21 in fp32, far above denormal numbers."""
    return 3 * math.log(torch.finfo(dtype).eps)


def _near_lags(query: Tensor, key: Tensor, bias: Optional[Tensor], key_bias: Optional[Tensor]) -> List[int]:
    """For each head, or for all: the number of lags before the first at which weights may be denormal.

    A CPU multiplies such numbers slowly. S on other devices, and for a bias that hides keys by -inf. In fp32, the bias
    is below -64; e^-87 is the smallest normal number, and the scores without it are taken to differ by less than 23.
    """
    num_keys, least = key.size(1), _log_negligible(query.dtype) - 16
    if query.device.type != "cpu":
        return [num_keys]
    lowest = 0.0 if bias is None else float(bias.amin())
    if lowest > -math.inf and key_bias is not None and key_bias.amin() - key_bias.amax() < least:
        return [0]
    if bias is None or not -math.inf < lowest < least:
        return [num_keys]
    is_far = (bias < least) * torch.arange(1, num_keys + 1, device=bias.device)  # (H, S), over descending lags
    return (num_keys - is_far.amax(1)).tolist()


def _reach(query, key, projected_query, basis, bias, key_bias) -> List[int]:
    """For each head, or for all: the number of lags before all others, whose weights no sum sees; S if there are none.

    |q . k| <= |q| |k|, and so for slot p. From there on the bias is so low that even with all scores at these bounds,
    all further weights together are less than eps^3 of the weight of the query's own key, as in the pruning of Lin et
    al. (2025). Only on a CPU, and with more than _MANY_KEYS keys: fewer are seen as fast as they are left out.
    """
    num_keys = key.size(1)
    if bias is None or key_bias is not None or query.device.type != "cpu":
        return [num_keys]
    if num_keys <= _MANY_KEYS or not query.numel():
        return [num_keys]
    num_heads, heads_of_key = bias.size(0), query.size(0) // key.size(0)
    longest_key = _longest(key, max(num_heads // heads_of_key, 1))
    most = _scale(query) * _longest(query, num_heads) * longest_key.repeat_interleave(num_heads // len(longest_key))
    if basis is not None:
        most += _longest(projected_query, num_heads) * basis.double().norm(dim=1).amax()
    least = _log_negligible(query.dtype) - math.log(num_keys) - 2 * most
    is_near = ~(bias - bias[:, -1:] < least[:, None])  # also where either is NaN
    return (is_near * torch.arange(num_keys, 0, -1, device=bias.device)).amax(1).tolist()  # over descending lags


def _longest(vectors: Tensor, num_heads: int) -> Tensor:
    """The norm of the longest vector of each head of all sequences: (N, x, y) -> fp64 (H,)."""
    norms = torch.linalg.vector_norm(vectors, dim=-1, dtype=torch.promote_types(vectors.dtype, torch.float32))
    return norms.amax(1).view(-1, num_heads).amax(0).double()


def _causal_mask(query: Tensor, key: Tensor) -> Tensor:
    """What is added to a block's scores over the keys of its own positions: (m, m), -inf in the future, else 0."""
    size = _most_queries(query, key)
    return query.new_full((size, size), -math.inf).triu_(1)


def _dropout_factor(weights: Tensor, dropout_p: float, seed: int) -> Tensor:
    """What dropout multiplies a block's weights by: 0 or 1 / (1 - p), the same at each call."""
    generator = None if weights.is_meta else torch.Generator(weights.device).manual_seed(seed)
    return torch.empty_like(weights).bernoulli_(1 - dropout_p, generator=generator).div_(1 - dropout_p)


# Which heads share keys and slots, and which lags a block sees


def _by_key_head(tensor: Tensor, block: _Block) -> Tensor:
    """(h, m, x) -> (k, h / k m, x): the queries of all heads with the same keys, one after the other."""
    num_key_heads = block.key_heads.stop - block.key_heads.start
    return tensor if tensor.size(0) == num_key_heads else tensor.reshape(num_key_heads, -1, tensor.size(-1))


def _by_head(tensor: Tensor, block: _Block) -> Tensor:
    """The inverse of `_by_key_head`."""
    num_heads = block.heads.stop - block.heads.start
    return tensor if tensor.size(0) == num_heads else tensor.view(num_heads, -1, tensor.size(-1))


def _slot_of_block(slot: Tensor, block: _Block) -> Tensor:
    """The heads and the lags of a slot that a block needs: (G, .., descending lags) -> (g, .., u)."""
    first = block.heads.start % slot.size(0)
    return slot[first : first + block.heads.stop - block.heads.start, ..., block.keys.start - block.keys.stop :]


def _by_slot(tensor: Tensor, slot: Tensor) -> Tensor:
    """(h, m, x) -> (g, h / g, m, x): the heads grouped by which of the g slots they use."""
    return tensor.view(-1, slot.size(0), *tensor.shape[1:]).transpose(0, 1)


def _grouped_matmul(grouped: Tensor, matrices: Tensor) -> Tensor:
    """(g, h / g, m, x) @ (g, x, y) -> (g, h / g, m, y). For g = 1, h small products are faster than a tall one."""
    rows = grouped[0] if len(grouped) == 1 else grouped.flatten(1, 2)
    return (rows @ matrices.expand(len(rows), -1, -1)).view(*grouped.shape[:-1], -1)


def _repeat_bias(bias: Optional[Tensor], query: Tensor, key: Tensor) -> Optional[Tensor]:
    """A copy of the biases for each query of a block: (H, S) -> (H, m, S)."""
    return None if bias is None else bias[:, None].expand(-1, _most_queries(query, key), -1).contiguous()


# From lags to keys and back


def _view_by_keys(lag_scores: Tensor) -> Tensor:
    """Scores over descending lags as scores over keys, by a change of strides (Dai et al., 2019, appendix B).

    lag_scores: (.., m, u), the lags u - 1 .. 0 of m consecutive queries. Returns a view (.., m, u): the u keys up to
    the last query. Row i begins m - 1 - i columns later than in lag_scores. So its last m - 1 - i columns, the keys in
    its future, show the next row's memory; the causal mask removes them.
    """
    strides = (*lag_scores.stride()[:-2], lag_scores.stride(-2) - 1, 1)
    return lag_scores.as_strided(lag_scores.shape, strides, lag_scores.storage_offset() + lag_scores.size(-2) - 1)


def _copy_by_lags(scores: Tensor) -> Tensor:
    """The inverse of `_view_by_keys`: (.., m, u) over keys, 0 in the future -> (.., m, u), 0 at lags without a key."""
    lag_scores = torch.empty_like(scores, memory_format=torch.contiguous_format)
    lag_scores[..., 0, :] = 0
    _view_by_keys(lag_scores)[..., :-1] = scores[..., :-1]
    lag_scores[..., -1, -1] = scores[..., -1, -1]  # the view's last column of other rows is the next row's first
    return lag_scores
