"""KERPLE: biases that are conditionally positive definite kernels of the lag (Chi et al., 2022, section 3)."""

import torch
from torch import Tensor, nn

from . import Position, register_position

MOST_POWER = 2.0  # beyond which a power is no such kernel


class Kernel(Position):
    """Slot b: b_h(t) = -r1 f(t; r2), with r1 and r2 learned for each head in each layer.

    r1 = exp(w) is positive, and so is r2. Chi et al. draw what they begin with at random. Here the heads divide those
    ranges evenly, so that a seed means the same for every representation.
    """

    first: float  # where the heads' r1 end, and r2
    second: float

    def __init__(self, head_dim: int, num_heads: int):
        super().__init__(head_dim, num_heads)
        self.log_first = nn.Parameter(torch.empty(num_heads))
        self.raw_second = nn.Parameter(torch.empty(num_heads))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        share = (torch.arange(self.num_heads, device="cpu") + 0.5) / self.num_heads
        with torch.no_grad():
            self.log_first.copy_((self.first * share).log())
            self.raw_second.copy_(self.raw(self.second * share))

    def raw(self, second: Tensor) -> Tensor:
        """What is learned, of r2."""
        return second.log()

    def kernel(self, lag: Tensor, raw_second: Tensor) -> Tensor:
        """f at the lags (num_lags,) of the heads (H, 1): (H, num_lags)."""
        raise NotImplementedError

    def bias(self, num_lags: int, like: Tensor) -> Tensor:
        dtype = torch.promote_types(like.dtype, torch.float32)
        lag = torch.arange(num_lags, dtype=dtype, device=like.device)
        first, raw_second = (learned.to(lag)[:, None] for learned in (self.log_first, self.raw_second))
        return (-first.exp() * self.kernel(lag, raw_second)).to(like)


@register_position("kerple-log")
class LogarithmicKernel(Kernel):
    """f(t; r2) = log(1 + r2 t), the one that extrapolates best."""

    first, second = 2.0, 1.0

    def kernel(self, lag: Tensor, raw_second: Tensor) -> Tensor:
        return (raw_second.exp() * lag).log1p()


@register_position("kerple-power")
class PowerKernel(Kernel):
    """f(t; r2) = t^r2, with r2 at most 2; ALiBi is r2 = 1."""

    first, second = 1.0, MOST_POWER

    def raw(self, second: Tensor) -> Tensor:
        return (second / MOST_POWER).logit()

    def kernel(self, lag: Tensor, raw_second: Tensor) -> Tensor:
        return lag ** (MOST_POWER * raw_second.sigmoid())
