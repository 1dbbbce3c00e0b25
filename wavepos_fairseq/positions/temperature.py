"""A temperature for sequences that are longer than those of the training (YaRN: Peng et al., 2024, section 3.4)."""

import math
from typing import Optional, Tuple

from torch import Tensor

from . import Position
from .tracing import refuse_open_length


def yarn_factor(num_keys: int, l_train: int, factor: Optional[float] = None) -> float:
    """What scores are multiplied by, 1 / t in Eq. 21 and 22 of Peng et al.: (0.1 ln(s) + 1)^2, at least 1.

    s is the factor, or S / L_train.
    """
    if factor is None:
        refuse_open_length(num_keys)
    return (0.1 * math.log(max(num_keys / l_train if factor is None else factor, 1)) + 1) ** 2


class TemperedPosition(Position):
    """`position`, with all scores of S keys multiplied by `yarn_factor`; without a factor none up to L_train keys.

    YaRN writes the factor into the rotation. Here it is on every slot.
    """

    def __init__(self, position: Position, l_train: int, factor: Optional[float] = None):
        super().__init__(position.head_dim, position.num_heads)
        self.position = position
        self.given = l_train, factor

    def of_length(self, num_keys: int) -> Position:
        l_train, factor = self.given
        return TemperedPosition(self.position.of_length(num_keys), l_train, factor or num_keys / l_train)

    def rotate_query(self, query: Tensor, first: int) -> Tensor:
        num_keys = first + query.size(-2)
        return self.position.rotate_query(query, first) * yarn_factor(num_keys, *self.given)

    def rotate_key(self, key: Tensor, first: int) -> Tensor:
        return self.position.rotate_key(key, first)

    def relative(self, num_lags: int, like: Tensor) -> Optional[Tensor]:
        relative = self.position.relative(num_lags, like)
        return None if relative is None else relative * yarn_factor(num_lags, *self.given)

    def relative_query(self, query: Tensor) -> Tensor:
        return self.position.relative_query(query)

    def factors(self, num_lags: int, like: Tensor) -> Optional[Tuple[Optional[Tensor], Tensor]]:
        factors = self.position.factors(num_lags, like)
        return None if factors is None else (factors[0], factors[1] * yarn_factor(num_lags, *self.given))

    def bias(self, num_lags: int, like: Tensor) -> Optional[Tensor]:
        bias = self.position.bias(num_lags, like)
        return None if bias is None else bias * yarn_factor(num_lags, *self.given)

    def gates(self, hidden: Tensor) -> Optional[Tensor]:
        return self.position.gates(hidden)

    def key_bias(self, gates: Optional[Tensor]) -> Optional[Tensor]:
        key_bias = self.position.key_bias(gates)
        return None if key_bias is None else key_bias * yarn_factor(key_bias.size(-1), *self.given)
