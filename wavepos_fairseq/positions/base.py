"""The slots of the one formula, which representations fill.

    score[m, n] = ( R_m(q_m) . R_n(k_n)  +  q_m . p(t) ) / sqrt(d)  +  b_h(t)  +  c_h(n),      t = m - n >= 0

A representation is a `Position` that overrides one slot or more; `attention` knows nothing else of it. It has a file of
its own in this folder, which is found there (see `registry`).
"""

from typing import Callable, Optional, Tuple

from torch import Tensor, nn

from .low_rank import cached_factors, cached_table


class Position(nn.Module):
    """All slots empty. S is the number of keys; the L <= S queries are the last L positions.

    head_dim: width d of a head. num_heads: number H of heads.
    """

    adds_to_embedding = False
    """Whether positions are added to the token embeddings. The model does that; it is no slot of attention."""

    def __init__(self, head_dim: int, num_heads: int):
        super().__init__()
        self.head_dim = head_dim
        self.num_heads = num_heads

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if cls.rotate is not Position.rotate:
            raise TypeError(
                f"{cls.__name__} overrides rotate(query, key); accepted are rotate_query(query, first) and "
                "rotate_key(key, first), because a cache turns only its new keys"
            )

    def reset_parameters(self) -> None:
        """Gives what this module learns its initial values, in place; called again where a model is built on meta.

        Raises NotImplementedError if a class with parameters of its own does not say what they start from.
        """
        if next(self.parameters(recurse=False), None) is not None:
            raise NotImplementedError(f"{type(self).__name__} learns something, but has no reset_parameters()")

    @classmethod
    def overrides(cls, *methods: str) -> bool:
        """Whether the class has one of these methods of its own: `rotate_key`, `relative`, `bias`, `gates`, .."""
        return any(getattr(cls, method) is not getattr(Position, method) for method in methods)

    def rotate(self, query: Tensor, key: Tensor, rotated_keys: bool = False) -> Tuple[Tensor, Tensor]:
        """R: query (B, H, L, d) and key (B, K, S, d) as they enter their product, in the same shapes.

        The H / K heads with the same keys are given them once; so R may differ among heads for the query alone.
        rotated_keys: whether the keys have been through `rotate_key`, and stay as they are.
        """
        first = key.size(-2) - query.size(-2)
        return self.rotate_query(query, first), key if rotated_keys else self.rotate_key(key, 0)

    def rotate_query(self, query: Tensor, first: int) -> Tensor:
        """R of queries at the positions first, first + 1, .. : (B, H, L, d), in the same shape."""
        return query

    def rotate_key(self, key: Tensor, first: int) -> Tensor:
        """R of keys at the positions first, first + 1, .. : (B, K, S, d), in the same shape.

        Each key on its own, so that a cache can keep turned keys and append new ones.
        """
        return key

    def relative(self, num_lags: int, like: Tensor) -> Optional[Tensor]:
        """p: vectors for the lags 0 .. num_lags - 1, dtype and device as `like`: (num_lags, d).

        (H, num_lags, d) if the heads differ. It may be a table that is kept for all layers: write to a copy.
        """
        return None

    def relative_query(self, query: Tensor) -> Tensor:
        """q_m in its product with p: the query (B, H, L, d), with anything that is added to it there."""
        return query

    def factors(self, num_lags: int, like: Tensor) -> Optional[Tuple[Optional[Tensor], Tensor]]:
        """p as a product, q . p(t) = (q C) . V_t: C (d, r), or None for the identity, and V (T, r) or (H, T, r).

        T <= num_lags; p is zero at lags >= T. A vector that p has at all lags may be left out: it adds the same to all
        scores of a query, which the softmax does not see. All this holds to the rounding of `like`.
        """
        relative = self.relative(num_lags, like)
        return None if relative is None else (None, relative)

    def bias(self, num_lags: int, like: Tensor) -> Optional[Tensor]:
        """b: biases for the lags 0 .. num_lags - 1, dtype and device as `like`: (H, num_lags)."""
        return None

    def gates(self, hidden: Tensor) -> Optional[Tensor]:
        """What slot c needs to know of each token: (B, H, L), from the input (B, L, H d) of the layer's attention.

        Each token on its own, so that a cache can keep them beside the keys.
        """
        return None

    def key_bias(self, gates: Optional[Tensor]) -> Optional[Tensor]:
        """c: biases of the keys n = 0 .. S - 1, from the gates (B, H, S) of all of them: fp64 (B, H, S).

        c(n) may depend on the tokens up to n. The softmax sees differences alone, so before attention rounds it
        subtracts c(m) of the query, or of one near by.
        """
        return None

    def of_length(self, num_keys: int) -> "Position":
        """What it is where there are so many keys, for fewer of these too; itself, unless its slots depend on S."""
        return self

    def stretched(self, by: Callable[[Tensor], Tensor]) -> "Position":
        """The same, each of its wavelengths x (fp64, in tokens) multiplied by by(x); for `interpolation`.

        Only a representation that is made of waves or scales has this.
        """
        raise NotImplementedError(f"{type(self).__name__} has no wavelengths")


class FixedRelativePosition(Position):
    """Slot p with nothing learned: a table computed in fp64 and rounded once for all layers.

    table: a function and its first arguments; with num_lags as the last one it returns fp64 (num_lags, d).
    """

    table: Tuple[Callable[..., Tensor], Tuple]

    def relative(self, num_lags: int, like: Tensor) -> Tensor:
        return cached_table(num_lags, *self.table, like.dtype, like.device)

    def factors(self, num_lags: int, like: Tensor) -> Tuple[Tensor, Tensor]:
        """C and V of the table's rank. At each lag |p(t) - C V_t| <= eps max_t |p(t)| (see `low_rank`)."""
        return cached_factors(num_lags, *self.table, like.dtype, like.device)
