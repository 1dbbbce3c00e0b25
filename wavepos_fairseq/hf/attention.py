"""`causal_attention` as an attention implementation of transformers.

transformers calls two functions by the name in ``config._attn_implementation``. One makes the mask, once for all
layers; here it is the segment of each key. The other attends, in each layer; it finds the layer's position
representation in ``module.position``. B, H, K, L, S and d are those of `attention`.
"""

from typing import Any, Dict, Optional, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface, Cache
from transformers.masking_utils import causal_mask_function

from ..attention import causal_attention
from ..positions import Position

IMPLEMENTATION = "wavepos"


@torch.compiler.disable  # it decides by values
def segments_of_keys(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: Any = 0,
    mask_function: Any = causal_mask_function,
    attention_mask: Optional[Tensor] = None,
    device: Any = "cpu",
    **unused: Any,
) -> Optional[Tensor]:
    """The segments (B, 1, 1, S) of the keys, in four dimensions because transformers takes such a mask as it is.

    q_offset: the number of keys before the first query, which a static cache gives as a tensor. kv_length: S, or the
    number of slots of a static cache. mask_function: whether query m sees key n, for indices (row, head, m, n).
    attention_mask: bool (B, S), False for padding.

    Returns None if all S keys of each row are one segment, and (0, 1, 1, S) if, moreover, there are more slots than
    keys. Raises ValueError for padding between tokens, whose lags would count it, and for a mask that is too short.
    """
    num_keys = int(q_offset) + q_length
    if attention_mask is not None and attention_mask.size(1) < num_keys:
        raise ValueError(
            f"attention_mask has {attention_mask.size(1)} tokens; accepted is one for all {num_keys} of cache and input"
        )
    if attention_mask is not None and not attention_mask.all():
        segments = attention_mask[:, :num_keys].int()
        begins = segments.diff(dim=1, prepend=torch.zeros_like(segments[:, :1])) > 0  # (B, S): a token after padding
        if (begins.sum(1) > 1).any():
            raise ValueError(
                "attention_mask has padding between tokens, whose distances would count it; accepted is padding before "
                "the first token (tokenizer.padding_side='left') or, where nothing follows, after the last"
            )
    elif mask_function is not causal_mask_function:  # packed sequences
        row, place = torch.arange(batch_size, device=device)[:, None], torch.arange(num_keys, device=device)
        begins = ~mask_function(row, 0, place[1:], place[:-1])  # (B, S - 1): a token that does not see the one before
        segments = F.pad(begins, (1, 0)).cumsum(1, dtype=torch.int32)
    elif num_keys == kv_length:
        return None
    else:
        segments = torch.empty(0, num_keys, dtype=torch.int32, device=device)
    return segments[:, None, None]


@torch.compiler.disable  # its tables are computed once and kept, which a compiler would trace
def positional_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Optional[Tensor],
    dropout: float = 0.0,
    rotated_keys: bool = False,
    gates: Optional[Tensor] = None,
    **unused: Any,
) -> Tuple[Tensor, None]:
    """query: (B, H, L, d); key, value: (B, K, slots, d); attention_mask: what `segments_of_keys` gave.

    rotated_keys: whether the keys come from a cache that `before_attention` saw. There each of them is followed by the
    gates of its H / K heads, if there are any: (B, K, slots, d + H / K). gates: (B, H, L), those of this call's tokens.

    Returns (B, L, H, d), and None instead of the attention weights, which are never formed.
    """
    segments = None
    if attention_mask is not None:
        if attention_mask.dtype != torch.int32 or attention_mask.size(-2) != 1:
            raise ValueError(
                f"attention_mask of shape {tuple(attention_mask.shape)}: accepted is (batch, tokens), 1 for a token, "
                "0 for padding; position_ids that restart tell packed sequences"
            )
        key, value = (tensor[:, :, : attention_mask.size(-1)] for tensor in (key, value))
        if len(attention_mask):
            segments = attention_mask[:, 0, 0]
    head_dim = query.size(-1)
    if key.size(-1) > head_dim:
        gates = key[..., head_dim:].transpose(2, 3).flatten(1, 2)  # (B, K, S, H / K) -> (B, H, S)
        key = key[..., :head_dim]
    attended = causal_attention(
        query, key, value, module.position, dropout, segments=segments, rotated_keys=rotated_keys, gates=gates
    )
    return attended.transpose(1, 2), None


def before_attention(module: Any, args: Tuple, kwargs: Dict[str, Any]) -> Tuple[Tuple, Dict[str, Any]]:
    """Forward pre-hook of a layer's attention: gives it the gates of its tokens, and a cache that keeps keys as we do.

    New keys go through slot R before they enter the cache. So a key is turned once and not for each token after it. The
    cache has another name in each version of transformers.
    """
    gates = module.position.gates(kwargs["hidden_states"] if "hidden_states" in kwargs else args[0])
    caches = {
        name: _CacheOfKeys(given, module.position, gates) for name, given in kwargs.items() if isinstance(given, Cache)
    }
    return args, {**kwargs, **caches, "rotated_keys": bool(caches), "gates": gates}


class _CacheOfKeys:
    """A cache as a layer's attention sees it, which does nothing but to update it; gates stand beside their keys."""

    def __init__(self, cache: Cache, position: Position, gates: Optional[Tensor]):
        self.cache, self.position, self.gates = cache, position, gates

    @torch.compiler.disable  # R looks at pairs of numbers as complex ones
    def update(self, key: Tensor, value: Tensor, layer_idx: int, *args: Any, **kwargs: Any) -> Tuple[Tensor, Tensor]:
        first = int(self.cache.get_seq_length(layer_idx))  # a static cache gives a tensor
        key = self.position.rotate_key(key, first)
        if self.gates is not None:
            of_key_head = self.gates.unflatten(1, (key.size(1), -1)).transpose(2, 3)  # (B, H, L) -> (B, K, L, H / K)
            key = torch.cat((key, of_key_head.to(key.dtype)), dim=-1)
        return self.cache.update(key, value, layer_idx, *args, **kwargs)


AttentionInterface.register(IMPLEMENTATION, positional_attention)
AttentionMaskInterface.register(IMPLEMENTATION, segments_of_keys)
