"""T5's bias: a learned number for each head and bucket of relative positions (Raffel et al., 2020, section 2.1)."""

import math

import torch
from torch import Tensor, nn
from typing_extensions import Annotated

from . import Position, register_position
from .low_rank import cached_rows


@cached_rows
def lag_buckets(num_lags: int, num_buckets: int, max_distance: int, device: torch.device) -> Tensor:
    """The bucket of each lag 0 .. num_lags - 1, int64 (num_lags,): T5's `relative_position_bucket` for a decoder.

    Half of the buckets hold one lag each. The others grow logarithmically up to max_distance; the last has the rest.
    """
    exact = num_buckets // 2
    lag = torch.arange(num_lags, device="cpu")
    logarithm = (lag.clamp(min=exact).double() / exact).log() / math.log(max_distance / exact)
    spread = exact + (logarithm * (num_buckets - exact)).long()
    return torch.where(lag < exact, lag, spread.clamp(max=num_buckets - 1)).to(device)


@register_position("t5")
class BucketBias(Position):
    """Slot b: b_h(t) = w_h,bucket(t), learned in each layer (T5 shares one table among its layers).

    The table starts at zero, which is NoPE (see `rpe`).
    """

    def __init__(
        self,
        head_dim: int,
        num_heads: int,
        t5_num_buckets: Annotated[int, "buckets of the lags"] = 32,
        t5_max_distance: Annotated[int, "lag from which on all lags share the last bucket"] = 128,
    ):
        super().__init__(head_dim, num_heads)
        if t5_num_buckets < 2:
            raise ValueError(f"t5_num_buckets={t5_num_buckets}: must be >= 2")
        if t5_max_distance <= t5_num_buckets // 2:
            raise ValueError(
                f"t5_max_distance={t5_max_distance}: must be > {t5_num_buckets // 2}, half of the "
                f"{t5_num_buckets} buckets"
            )
        self.max_distance = t5_max_distance
        self.weight = nn.Parameter(torch.empty(num_heads, t5_num_buckets))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.weight)

    def bias(self, num_lags: int, like: Tensor) -> Tensor:
        buckets = lag_buckets(num_lags, self.weight.size(1), self.max_distance, like.device)
        return self.weight[:, buckets].to(like)  # (H, num_buckets) -> (H, num_lags)
