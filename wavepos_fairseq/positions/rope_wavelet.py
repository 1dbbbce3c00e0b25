"""RoPE-based wavelet: several scales inside RoPE's matrix (Oka et al., 2025, appendix A.5, Eq. 28).

Row by row Eq. 28 adds up the pairs of dimensions before it turns them: pair i of the output is the sum of the input's
pairs 1 .. i, turned by m theta_i. So it costs a running sum more than RoPE, where the authors gave up a matrix for each
position. The lower rows of a block read (sin, cos) as RoPE's do; the (sin, sin) printed right of the first is a slip.

The sums make the scores large: q . k of independent standard normal entries has a standard deviation of about
d^1.5 / sqrt(12), where RoPE's is sqrt(d): 37 times as much at d = 128. Half precision, though it is summed in fp32,
begins with rounded queries and keys, and is accordingly less exact here than with any other representation.
"""

from typing import Tuple

from torch import Tensor

from .base import register_position
from .rope import RotaryPosition


@register_position("rope-wavelet")
class RotaryWaveletPosition(RotaryPosition):
    """Slot R: pair i of position m is the sum of the pairs up to i, turned by the angle m theta_i."""

    def rotate(self, query: Tensor, key: Tensor) -> Tuple[Tensor, Tensor]:
        return super().rotate(_sums_of_pairs(query), _sums_of_pairs(key))


def _sums_of_pairs(x: Tensor) -> Tensor:
    return x.unflatten(-1, (-1, 2)).cumsum(-2).reshape_as(x)
