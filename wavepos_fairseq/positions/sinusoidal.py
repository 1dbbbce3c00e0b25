"""Sinusoidal absolute positions (Vaswani et al., 2017): added to the token embeddings, all slots empty.

The model adds the embedding, fairseq's SinusoidalPositionalEmbedding.
"""

from . import Position, register_position


@register_position("sinusoidal")
class SinusoidalPosition(Position):
    """Every slot empty; the model adds the sine waves before its first layer."""

    adds_to_embedding = True
