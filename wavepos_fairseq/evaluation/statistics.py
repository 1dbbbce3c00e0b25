"""Perplexities and their intervals, from losses."""

import math
import sys
from typing import Optional, Tuple

import numpy as np
from torch import Tensor


def perplexity_of(nll: float) -> float:
    """exp of a mean loss in nats; raises ValueError if that is not finite."""
    if not nll < math.log(sys.float_info.max):  # true for NaN, too
        raise ValueError(f"the perplexity of a mean loss of {nll:.4g} nats is not finite")
    return math.exp(nll)


def bootstrap_interval(nll: Tensor, sequence_length: int) -> Tuple[Optional[float], Optional[float]]:
    """95% percentile interval of a stream's perplexity (Efron, 1979), from 1,000 draws of its sequences.

    nll: in nats, fp64 (tokens,), cut into sequences of `sequence_length`, the last one shorter. The interval says how
    much the perplexity would move on another text of this kind and size, and not what another seed would do. A single
    sequence has no interval: (None, None).
    """
    if len(nll) <= sequence_length:
        return None, None
    sums, counts = np.array([(piece.sum().item(), len(piece)) for piece in nll.split(sequence_length)]).T
    draw = np.random.default_rng(0)
    drawn = [draw.integers(len(sums), size=len(sums)) for _ in range(1000)]
    means = [sums[sequences].sum() / counts[sequences].sum() for sequences in drawn]
    low, high = np.percentile(means, (2.5, 97.5))
    return perplexity_of(low), perplexity_of(high)
