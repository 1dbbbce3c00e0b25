"""RPE: a learned vector for each relative position up to a clipping distance (Shaw et al., 2018, section 3.2)."""

from typing import Tuple

import torch
from torch import Tensor, nn
from typing_extensions import Annotated

from . import Position, register_position


@register_position("rpe")
class LearnedPosition(Position):
    """Slot p: p(t) = w_min(t, clip), Eq. 4 of Shaw et al. for the keys; one table for all heads of a layer.

    The table starts at zero, which is NoPE. It draws no random number, so a seed gives the rest of the model the same
    weights with every representation.
    """

    def __init__(
        self,
        head_dim: int,
        num_heads: int,
        rpe_clip: Annotated[int, "lag from which on all lags share one vector (Shaw et al. use 16)"] = 16,
    ):
        super().__init__(head_dim, num_heads)
        if rpe_clip < 1:
            raise ValueError(f"rpe_clip={rpe_clip}: must be >= 1")
        self.embedding = nn.Parameter(torch.empty(rpe_clip + 1, head_dim))  # (clip + 1, d)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.embedding)

    def relative(self, num_lags: int, like: Tensor) -> Tensor:
        lag = torch.arange(num_lags, device=like.device).clamp(max=len(self.embedding) - 1)
        return self.embedding[lag].to(like)  # (clip + 1, d) -> (num_lags, d)

    def factors(self, num_lags: int, like: Tensor) -> Tuple[None, Tensor]:
        """p(t) minus the vector of the furthest lags, so that p is zero from the clip on."""
        table = self.embedding.to(like)
        return None, (table[:-1] - table[-1])[:num_lags]
