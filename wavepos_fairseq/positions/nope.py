"""NoPE: no position representation; the causal mask alone gives the order (Kazemnejad et al., 2023)."""

from . import Position, register_position


@register_position("nope")
class NoPosition(Position):
    """Every slot empty."""
