"""Perplexities, and the intervals of perplexities and of their ratios, from losses.

A text is cut into pieces, and what another text of this kind and size would give is estimated by drawing its pieces
anew (Efron, 1979). Two models that read the same text are compared piece by piece: what makes a piece hard for both of
them cancels.
"""

import math
import sys
from typing import NamedTuple, Optional, Tuple

import numpy as np
from torch import Tensor

STRETCH = 1024
"""Tokens of a stretch of text, the pieces by which models are compared."""


def perplexity_of(nll: float) -> float:
    """exp of a mean loss in nats; raises ValueError if that is not finite."""
    if not nll < math.log(sys.float_info.max):  # true for NaN, too
        raise ValueError(f"the perplexity of a mean loss of {nll:.4g} nats is not finite")
    return math.exp(nll)


def _interval_of_mean(sums: np.ndarray, counts: np.ndarray) -> Tuple[float, float]:
    """95% percentile interval of sums.sum() / counts.sum(), from 1,000 draws of the pieces; NaN for a single piece."""
    if len(sums) < 2:
        return math.nan, math.nan
    from scipy.stats import bootstrap  # here, because it takes a second to import

    order = np.lexsort((counts, sums))  # so that the interval does not depend on the order of the pieces
    drawn = bootstrap(
        (sums[order], counts[order]),
        lambda sums, counts, axis: sums.sum(axis) / counts.sum(axis),
        n_resamples=1000,
        batch=20,
        paired=True,
        vectorized=True,
        method="percentile",
        random_state=0,
    )
    return float(drawn.confidence_interval.low), float(drawn.confidence_interval.high)


def bootstrap_interval(nll: Tensor, sequence_length: int) -> Tuple[Optional[float], Optional[float]]:
    """95% percentile interval of a stream's perplexity, from 1,000 draws of its sequences.

    nll: in nats, fp64 (tokens,), cut into sequences of `sequence_length`, the last one shorter. The interval says how
    much the perplexity would move on another text of this kind and size, and not what another seed would do. A single
    sequence has no interval: (None, None).
    """
    if len(nll) <= sequence_length:
        return None, None
    sums, counts = np.array([(piece.sum().item(), len(piece)) for piece in nll.split(sequence_length)]).T
    low, high = _interval_of_mean(sums, counts)
    return perplexity_of(low), perplexity_of(high)


class Difference(NamedTuple):
    """A mean difference and its 95% interval, NaN if there is none."""

    mean: float
    low: float
    high: float


def paired_difference(difference: np.ndarray, tokens: np.ndarray) -> Difference:
    """The mean difference of two models' losses on the same text, in nats a token, with its 95% interval.

    difference: of the losses' sums in each stretch of text, in nats, (seeds, stretches); a line is one seed of both
    models. tokens: of each stretch, (stretches,).

    The interval is of both chances, another text and other seeds, unless there is one seed: then it is of the text
    alone. The text's is the percentile bootstrap over stretches of the mean over seeds. The seeds' is Student's,
    because of three seeds a bootstrap draws ten different samples and finds two thirds of their variance. The two
    are added by squares (Zou and Donner, 2008). A single stretch has no interval.
    """
    of_text = difference.mean(axis=0)
    mean = float(of_text.sum() / tokens.sum())
    low, high = _interval_of_mean(of_text, tokens)
    by_seed = students_half_width(difference.sum(axis=1) / tokens.sum())
    return Difference(mean, mean - math.hypot(mean - low, by_seed), mean + math.hypot(high - mean, by_seed))


def students_half_width(of_seeds: np.ndarray) -> float:
    """Half the 95% interval of the mean of numbers (seeds,), one of each seed; 0 for one seed, whose is unknown."""
    count = len(of_seeds)
    if count == 1:
        return 0.0
    from scipy.stats import t

    return float(t.ppf(0.975, count - 1) * of_seeds.std(ddof=1) / math.sqrt(count))


def share_interval(part: int, count: int) -> Tuple[float, float]:
    """The 95% interval of a share, `part` of `count` > 0 independent trials (Wilson, 1927)."""
    z = 1.959964  # of the normal distribution
    share = part / count
    centre = (share + z**2 / (2 * count)) / (1 + z**2 / count)
    half = z / (1 + z**2 / count) * math.sqrt(share * (1 - share) / count + z**2 / (4 * count**2))
    return max(0.0, min(share, centre - half)), min(1.0, max(share, centre + half))  # rounding may cross the share
