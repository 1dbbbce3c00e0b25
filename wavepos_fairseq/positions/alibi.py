"""ALiBi: attention with linear biases (Press et al., 2022; Eq. 9 of Oka et al., 2025)."""

import math
from typing import Any, Dict, List, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import Annotated

from . import Position, register_position
from .low_rank import cached_rows

_KINDS = ("fixed", "learned")


def slopes_of(num_heads: int) -> List[float]:
    """The slopes of H heads: 2^(-8/H), 2^(-16/H) ... 2^-8 for H a power of two, so 1/2 ... 1/256 for 8 heads.

    Any other H has the slopes of the next lower power of two, then every second one of the next higher (Press et al.,
    `get_slopes` of the release).
    """
    power = 2 ** int(math.log2(num_heads))
    slopes = [2 ** (-8 * head / power) for head in range(1, power + 1)]
    return slopes if power == num_heads else slopes + slopes_of(2 * power)[0::2][: num_heads - power]


@cached_rows
def _biases(num_lags: int, slopes: Tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    fp64: Dict[str, Any] = {"dtype": torch.float64, "device": "cpu"}
    biases = -torch.arange(num_lags, **fp64)[:, None] * torch.tensor(slopes, **fp64)  # -> (num_lags, H)
    return biases.to(device, dtype)


@register_position("alibi")
class LinearBias(Position):
    """Slot b: b_h(t) = -slope_h t, not divided by sqrt(d).

    Learned slopes are exp(w_h), which is positive. They begin at the fixed ones.
    """

    def __init__(
        self,
        head_dim: int,
        num_heads: int,
        alibi_slopes: Annotated[str, "fixed (Press et al.), or learned, in each layer, beginning at those"] = "fixed",
        alibi_slope_factor: Annotated[float, "multiplies Press et al.'s slopes"] = 1.0,
        alibi_share: Annotated[
            float, "share of the heads that have a bias, with the slopes of a model of so many heads"
        ] = 1.0,
    ):
        super().__init__(head_dim, num_heads)
        if alibi_slopes not in _KINDS:
            raise ValueError(f"alibi_slopes={alibi_slopes!r} is unknown; accepted are {', '.join(_KINDS)}")
        if not 0 < alibi_slope_factor < math.inf:
            raise ValueError(f"alibi_slope_factor={alibi_slope_factor}: must be > 0 and finite")
        biased = round(alibi_share * num_heads) if 0 < alibi_share <= 1 else 0
        if biased < 1 or not math.isclose(alibi_share * num_heads, biased):  # 0.28 x 25 is 7.000000000000001
            raise ValueError(f"alibi_share={alibi_share}: must be > 0, at most 1 and whole heads of {num_heads}")
        slopes = [alibi_slope_factor * slope for slope in slopes_of(biased)]
        self.slopes = (*slopes, *[0.0] * (num_heads - len(slopes)))
        if alibi_slopes == "learned":
            self.log_slopes = nn.Parameter(torch.empty(len(slopes)))
            self.reset_parameters()

    def reset_parameters(self) -> None:
        if hasattr(self, "log_slopes"):
            slopes = torch.tensor(self.slopes[: len(self.log_slopes)], device="cpu")
            with torch.no_grad():
                self.log_slopes.copy_(slopes.log())

    def bias(self, num_lags: int, like: Tensor) -> Tensor:
        if not hasattr(self, "log_slopes"):
            return _biases(num_lags, self.slopes, like.dtype, like.device).T.clone()  # (num_lags, H) -> (H, num_lags)
        dtype = torch.promote_types(like.dtype, torch.float32)
        lag = torch.arange(num_lags, dtype=dtype, device=like.device)
        bias = -self.log_slopes.to(like.device, dtype).exp()[:, None] * lag  # (heads with a bias, num_lags)
        return F.pad(bias, (0, 0, 0, self.num_heads - len(bias))).to(like)  # (H, num_lags)
