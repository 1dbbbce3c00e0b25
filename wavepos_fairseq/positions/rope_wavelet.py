"""RoPE-based wavelet: several scales inside RoPE's matrix (Oka et al., 2025, appendix A.5, Eq. 28).

Eq. 28 adds up pairs of dimensions, then turns the sums: pair i of the output is the sum of the input's pairs 1 .. i,
turned by m theta_i. So it costs one running sum more than RoPE. (The authors gave it up because they formed a matrix
for each position.) The lower row of each block is (sin, cos), as in RoPE; we read the (sin, sin) printed right of the
first block as a misprint.

The sums make large scores. For independent standard normal entries, q . k has a standard deviation of about
d^1.5 / sqrt(12) instead of RoPE's sqrt(d): 37 times as much at d = 128. In half precision, queries and keys are summed
in fp32 and rounded then, so this representation loses more accuracy there than any other.
"""

import torch
from torch import Tensor

from . import register_position
from .rope import RotaryPosition


@register_position("rope-wavelet")
class RotaryWaveletPosition(RotaryPosition):
    """Slot R: pair i of position m is the sum of the pairs up to i, turned by the angle m theta_i."""

    def rotate_key(self, key: Tensor, first: int) -> Tensor:
        summed_in = torch.promote_types(key.dtype, torch.float32)
        pairs = key.to(summed_in).unflatten(-1, self.shape)  # (.., d) -> (.., d / 2, 2) or (.., 2, d / 2)
        return super().rotate_key(pairs.cumsum(-3 - self.axis).reshape_as(key), first).to(key)
