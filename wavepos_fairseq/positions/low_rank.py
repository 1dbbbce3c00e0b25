"""Tables over lags: kept between calls for all layers and models, and as products of low rank."""

import functools
from typing import Any, Callable, Tuple

import torch
from torch import Tensor

from .tracing import is_traced, without_modes


def cached_rows(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Decorator for function(num_rows, ...): keeps the tables that it computes, and cuts them to the rows asked for.

    Tables have a power of two rows, so a growing sequence seldom needs a new one. While PyTorch traces, the function
    runs as it is, since num_rows may be a symbol; nothing is kept.
    """

    @functools.lru_cache(maxsize=16)
    def compute(num_rows: int, *arguments: Any) -> Tensor:
        return without_modes(function, num_rows, *arguments)

    @functools.wraps(function)
    def first_rows(num_rows: int, *arguments: Any) -> Tensor:
        if is_traced():
            return function(num_rows, *arguments)
        return compute(next_power_of_two(num_rows), *arguments)[:num_rows]

    return first_rows


def next_power_of_two(number: int) -> int:
    """The least power of two >= number."""
    return 1 << (number - 1).bit_length()


@cached_rows
def cached_table(
    num_lags: int, table: Callable[..., Tensor], arguments: Tuple, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """table(*arguments, num_lags), rounded from fp64: (num_lags, d)."""
    return table(*arguments, num_lags).to(device, dtype)


def cached_factors(
    num_lags: int, table: Callable[..., Tensor], arguments: Tuple, dtype: torch.dtype, device: torch.device
) -> Tuple[Tensor, Tensor]:
    """`low_rank` of table(*arguments, num_lags) to the rounding of dtype: C (d, r) and V (T, r)."""
    projection, rows = _factors(next_power_of_two(num_lags), table, arguments, dtype, device)
    return projection, rows[:num_lags]


@functools.lru_cache(maxsize=128)  # as many as layers that learn their wavelets have tables
def _factors(
    num_lags: int, table: Callable[..., Tensor], arguments: Tuple, dtype: torch.dtype, device: torch.device
) -> Tuple[Tensor, Tensor]:
    def compute() -> Tuple[Tensor, Tensor]:
        projection, rows = low_rank(table(*arguments, num_lags), torch.finfo(dtype).eps)
        return projection.to(device, dtype), rows.to(device, dtype)

    return without_modes(compute)


def low_rank(table: Tensor, eps: float) -> Tuple[Tensor, Tensor]:
    """Columns C (d, r) and rows V (T, r) with V C^T equal to the table to a relative eps, and zero for t >= T.

    table: fp64 (num_lags, d). At each lag t the error, table_t - C V_t or table_t where t >= T, is at most eps times as
    long as the longest row. A query's product with it then errs no more than from rounding the longest row. r and T are
    the smallest that suffice, rounded up to multiples of 8 (faster products) where the table is that large. Both are 0
    for a table of zeros.
    """
    if not table.isfinite().all():  # nothing is negligible beside what is broken, which has to be seen
        return torch.eye(table.size(1), dtype=table.dtype, device=table.device), table
    rows = table[: reach(table, eps)]  # (T, d)
    if not len(rows):
        return table.new_zeros(table.size(1), 0), table.new_zeros(0, 0)
    bound = eps * rows.norm(dim=1).max()
    left, values, right = torch.linalg.svd(rows, full_matrices=False)  # (T, k), (k,), (k, d)
    squared_error = (left * values).square().flip(1).cumsum(1).flip(1)  # (T, k): [t, r] without columns r, r + 1, ..
    rank = _round_up_to_8(int((squared_error.amax(0) > bound**2).sum()))  # r
    root = values[:rank].sqrt()
    return right[:rank].T * root, left[:, :rank] * root  # (d, r), (T, r)


def reach(table: Tensor, eps: float) -> int:
    """T: from this lag on no row is longer than eps times the longest. A multiple of 8, 0 for a table of zeros."""
    length = table.norm(dim=1)  # (num_lags, d) -> (num_lags,)
    not_negligible = (length > eps * length.max()).nonzero().flatten()
    return _round_up_to_8(1 + int(not_negligible[-1])) if len(not_negligible) else 0


def _round_up_to_8(number: int) -> int:
    return -(-number // 8) * 8
