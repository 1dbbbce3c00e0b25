"""Several representations at once (``wavelet+alibi``): what they put into slots p and b is added.

    score[m, n] = ( R_m(q_m) . R_n(k_n)  +  sum_i q_m . p_i(t) ) / sqrt(d)  +  sum_i b_i,h(t)  +  c_h(n)

R and c are those of the one part that fills them: the registry refuses two, since queries and keys have one product
only, and a token one gate for each head. This file knows no part by its name.
"""

import functools
from typing import Callable, Iterable, List, Optional, Sequence, Tuple, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .base import FixedRelativePosition, Position

Factors = Tuple[Optional[Tensor], Tensor]
Slot = TypeVar("Slot")


class CombinedPosition(Position):
    """The slots of all parts, which are for heads of one shape; at most one fills slot R, and at most one slot c.

    A part that adds to the queries in their product with p has that product to itself. It stands beside the sum of the
    other parts' p, as (q, q + v) . (p_1 + p_2, p_3), so that `relative_query` and `relative` are 2 d wide.
    """

    parts: Iterable[Position]

    def __init__(self, parts: Sequence[Position]):
        super().__init__(parts[0].head_dim, parts[0].num_heads)
        self.parts = nn.ModuleList(parts)  # type: ignore[assignment]
        self.adds_to_embedding = any(part.adds_to_embedding for part in parts)
        fill_p = [part for part in parts if part.overrides("relative")]
        shared = [part for part in fill_p if not part.overrides("relative_query")]
        own = [[part] for part in fill_p if part.overrides("relative_query")]
        products = [_with_one_table(shared), *own] if shared else own
        places = {id(part): place for place, part in enumerate(parts)}  # nn.DataParallel's replicas have other parts
        self._placed = [[places.get(id(part), part) for part in product] for product in products]

    @property
    def _products(self) -> List[List[Position]]:
        """The parts of each query's product with p."""
        parts = list(self.parts)
        return [[parts[part] if isinstance(part, int) else part for part in product] for product in self._placed]

    def overrides(self, *methods: str) -> bool:  # type: ignore[override]
        """Whether a part does."""
        return any(part.overrides(*methods) for part in self.parts)

    def of_length(self, num_keys: int) -> Position:
        return CombinedPosition([part.of_length(num_keys) for part in self.parts])

    def stretched(self, by: Callable[[Tensor], Tensor]) -> Position:
        """Those parts stretched that have wavelengths."""
        return CombinedPosition([part.stretched(by) if part.overrides("stretched") else part for part in self.parts])

    def rotate_query(self, query: Tensor, first: int) -> Tensor:
        for part in self.parts:
            query = part.rotate_query(query, first)
        return query

    def rotate_key(self, key: Tensor, first: int) -> Tensor:
        for part in self.parts:
            key = part.rotate_key(key, first)
        return key

    def relative(self, num_lags: int, like: Tensor) -> Optional[Tensor]:
        sums = [_filled(part.relative(num_lags, like) for part in parts) for parts in self._products]
        empty = like.new_zeros(num_lags, self.head_dim)  # beside a filled one, as `relative_query` has its query
        return _beside([_sum(terms) if terms else empty for terms in sums]) if any(sums) else None

    def relative_query(self, query: Tensor) -> Tensor:
        return _beside([parts[0].relative_query(query) for parts in self._products]) if self._products else query

    def factors(self, num_lags: int, like: Tensor) -> Optional[Factors]:
        products = [_factors_of_sum(parts, num_lags, like) for parts in self._products]
        if len(products) < 2 or not _filled(products):
            return products[0] if products else None
        empty = (like.new_zeros(self.head_dim, 0), like.new_zeros(0, 0))
        projections, rows = zip(*(_with_projection(*(product or empty)) for product in products))
        return torch.block_diag(*projections), _beside(_to_the_longest(rows))

    def bias(self, num_lags: int, like: Tensor) -> Optional[Tensor]:
        biases = _filled(part.bias(num_lags, like) for part in self.parts)
        return _sum(biases) if biases else None

    def gates(self, hidden: Tensor) -> Optional[Tensor]:
        return next(iter(_filled(part.gates(hidden) for part in self.parts)), None)

    def key_bias(self, gates: Optional[Tensor]) -> Optional[Tensor]:
        return next(iter(_filled(part.key_bias(gates) for part in self.parts)), None)


class _SumOfTables(FixedRelativePosition):
    """The p of several fixed parts: one table, so one factorisation, computed once for all layers."""

    def __init__(self, parts: Sequence[FixedRelativePosition]):
        super().__init__(parts[0].head_dim, parts[0].num_heads)
        self.table = (_sum_of_tables, (tuple(part.table for part in parts),))


def _sum_of_tables(tables: Tuple, num_lags: int) -> Tensor:
    return torch.stack([table(*arguments, num_lags) for table, arguments in tables]).sum(0)  # fp64 (num_lags, d)


def _with_one_table(parts: List[Position]) -> List[Position]:
    """The parts, all that are a fixed table and nothing else having become one."""
    fixed = [
        part
        for part in parts
        if isinstance(part, FixedRelativePosition) and type(part).relative is FixedRelativePosition.relative
    ]
    return parts if len(fixed) < 2 else [_SumOfTables(fixed), *(part for part in parts if part not in fixed)]


def _factors_of_sum(parts: List[Position], num_lags: int, like: Tensor) -> Optional[Factors]:
    """`Position.factors` of the sum of the parts' p: their columns beside one another."""
    factors = _filled(part.factors(num_lags, like) for part in parts)
    if len(factors) < 2:
        return factors[0] if factors else None
    projections, rows = zip(*(_with_projection(*one) for one in factors))
    return torch.cat(projections, dim=1), _beside(_to_the_longest(rows))


def _with_projection(projection: Optional[Tensor], rows: Tensor) -> Tuple[Tensor, Tensor]:
    """C and V where C may be None: I and V, or V^T and I if there are fewer lags than dimensions."""
    if projection is not None:
        return projection, rows
    few = rows.dim() == 2 and rows.size(0) < rows.size(1)
    identity = torch.eye(rows.size(0 if few else -1), dtype=rows.dtype, device=rows.device)
    return (rows.T, identity) if few else (identity, rows)


def _to_the_longest(several: Sequence[Tensor]) -> List[Tensor]:
    """Rows (.., T, x) of several T, with zeros up to the largest T."""
    reach = max(rows.size(-2) for rows in several)
    return [F.pad(rows, (0, 0, 0, reach - rows.size(-2))) for rows in several]


def _beside(several: List[Tensor]) -> Tensor:
    """(.., x) and (.., y) as (.., x + y), of which some may lack the dimension of the heads."""
    if len(several) == 1:
        return several[0]
    most = max(tensor.dim() for tensor in several)
    leading = next(tensor.shape[:-1] for tensor in several if tensor.dim() == most)
    return torch.cat([tensor.expand(*leading, -1) for tensor in several], dim=-1)


def _sum(terms: List[Tensor]) -> Tensor:
    return functools.reduce(torch.add, terms)


def _filled(slots: Iterable[Optional[Slot]]) -> List[Slot]:
    return [slot for slot in slots if slot is not None]
