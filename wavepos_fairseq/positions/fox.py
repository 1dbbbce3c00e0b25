"""The Forgetting Transformer's gates (FoX: Lin et al., 2025), and CABLE's biases (Veisi et al., 2025)."""

import math
from typing import Optional

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import Annotated

from . import Position, register_position

_SHORTEST = 2.0  # of the decay times of the heads


@register_position("fox")
class ForgettingPosition(Position):
    """Slot c: each token has a gate f = sigmoid(w_h . x + z_h) in (0, 1), and forgets a part of all that came before.

    Between a query and a key lie the gates of the tokens n + 1 .. m, so the score has sum_{l = n + 1}^{m} log f_l =
    c(n) - c(m) with c(n) = -sum_{l <= n} log f_l; the softmax does not see c(m). Gates that do not depend on the token
    are ALiBi with the slopes -log f_h. w starts at zero, and z at zero, f = 1/2, or where f^T = 1/e, with the T of the
    heads evenly spaced by log from 2 to a decay time: so Lin et al. begin gates that do not depend on the token.
    """

    sign = 1.0  # of the logit

    def __init__(
        self,
        head_dim: int,
        num_heads: int,
        gate_decay_time: Annotated[
            float, "gates begin at a decay by e in 2 tokens (first head) to so many (last head); 0: all at 1/2"
        ] = 0.0,
    ):
        super().__init__(head_dim, num_heads)
        if gate_decay_time and not _SHORTEST <= gate_decay_time < math.inf:
            raise ValueError(f"gate_decay_time={gate_decay_time}: must be 0, or >= {_SHORTEST:g} and finite")
        self.decay_time = gate_decay_time
        self.weight = nn.Parameter(torch.empty(num_heads, num_heads * head_dim))  # w
        self.offset = nn.Parameter(torch.empty(num_heads))  # z
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.offset)
        if self.decay_time:
            times = torch.logspace(
                math.log2(_SHORTEST), math.log2(self.decay_time), self.num_heads, 2, dtype=torch.float64, device="cpu"
            )
            with torch.no_grad():
                self.offset.copy_(-self.sign * (1 / times).expm1().log())

    def gates(self, hidden: Tensor) -> Tensor:
        if hidden.size(-1) != self.weight.size(1):
            raise ValueError(
                f"gates read the input of the layer, which has {hidden.size(-1)} dimensions; accepted are num_heads x "
                f"head_dim = {self.weight.size(1)}"
            )
        gates = F.linear(hidden, self.weight.to(hidden), self.offset.to(hidden))
        return gates.transpose(1, 2)  # (B, L, H d) -> (B, L, H) -> (B, H, L)

    def key_bias(self, gates: Optional[Tensor]) -> Tensor:
        if gates is None:
            raise ValueError("gates are missing: accepted is causal_attention(..., gates=position.gates(hidden))")
        return -F.logsigmoid(self.sign * gates.double()).cumsum(-1)


@register_position("cable")
class CablePosition(ForgettingPosition):
    """CABLE without weights on the queries: each token adds -softplus(w_h . x + z_h).

    That is log sigmoid of the negative, so `fox` with w and z negated; both are here under the names that they have.
    """

    sign = -1.0
