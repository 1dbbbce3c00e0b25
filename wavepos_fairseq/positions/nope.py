"""NoPE: no position representation; the causal mask alone tells the order (Kazemnejad et al., 2023)."""

from .base import Position, register_position


@register_position("nope")
class NoPosition(Position):
    """Every slot empty."""
