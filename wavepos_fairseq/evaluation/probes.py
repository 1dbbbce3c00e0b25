"""Where a trained model looks, and where in a sequence it errs, measured on a text, the validation set for example.

The attention weights are `attention.attention_weights` of what the attention of each layer is given. Measured are

- the receptive field of each layer and head, in sequences of 5 L_train tokens: how the queries at positions >= L_train
  spread their attention over the lags t = m - n, and how much of it goes further back than any sequence of training;
- the loss over the position in such sequences, in ``full`` inference (see `perplexity`);
- the scales and shifts of wavelets that a model learned, for which it reads no text.

`table` has the first two as the lines of attention.csv and positions.csv. Nothing is drawn here, and this module knows
no fairseq.
"""

import sys
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Mapping, Optional, Protocol, Tuple, TypeVar

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..attention import attention_weights
from ..positions import Position
from ..positions.wavelet import LearnedWaveletPosition
from .perplexity import Scorer, inputs_of, pieces, stream_nll

REACH = 5  # times L_train: the length of the sequences
SEQUENCES = 8  # of the text, from its beginning, for the receptive field
BLOCK = 64  # queries at a time: their scores are formed with a BLOCK x L x d tensor
AttentionInputs = Tuple[Tensor, Tensor, Position, Optional[Tensor]]
"""Query and key (1, H, L, d) of a layer, its representation, and the gates (1, H, L) that this makes of the tokens."""


class AttentionScorer(Scorer, Protocol):
    """A scorer that exposes its attention."""

    def attention_inputs(self, tokens: Tensor) -> List[AttentionInputs]:
        """The attention inputs of each layer, from the first on, when the model reads the tokens (L,)."""


def _rows(
    query: Tensor, key: Tensor, position: Position, gates: Optional[Tensor], first: int = 0
) -> Iterator[Tuple[int, Tensor]]:
    """The start and the weights (H, queries, keys up to its end) of each block, from the query `first` on."""
    position = position.of_length(query.size(2))
    for start in range(first, query.size(2), BLOCK):
        stop = min(start + BLOCK, query.size(2))
        seen = None if gates is None else gates[..., :stop]
        yield start, attention_weights(query[:, :, start:stop], key[:, :, :stop], position, gates=seen)[0]


@torch.no_grad()
def attention_map(query: Tensor, key: Tensor, position: Position, gates: Optional[Tensor] = None) -> Tensor:
    """The attention weights of a layer over one sequence: (H, L, L), queries by keys."""
    length = query.size(2)
    blocks = [F.pad(weights, (0, length - weights.size(-1))) for _, weights in _rows(query, key, position, gates)]
    return torch.cat(blocks, dim=1)


@torch.no_grad()
def weight_by_lag(
    query: Tensor, key: Tensor, position: Position, gates: Optional[Tensor] = None, first: int = 0
) -> Tensor:
    """The weights at each lag, averaged over the queries from `first` on: fp64 (H, L)."""
    num_heads, length = query.shape[1:3]
    by_lag = torch.zeros(num_heads, length, dtype=torch.float64, device=query.device)
    for start, weights in _rows(query, key, position, gates, first):
        _, rows, columns = weights.shape
        lag = torch.arange(start, start + rows)[:, None] - torch.arange(columns)
        lag = lag.clamp(min=0).flatten().to(query.device)  # future keys have weight 0
        by_lag.index_add_(1, lag, weights.flatten(1).double())
    return by_lag / (length - first)


def spread(by_lag: Tensor, l_train: int) -> Dict[str, Tensor]:
    """Of weights over the lags (..., L): their mean_lag, lag95 and share beyond L_train, each (...).

    Lags are in tokens. At least 95 % of the weights lie up to lag95. Beyond are the lags t >= L_train, further than a
    sequence of training reaches.
    """
    return {
        "mean_lag": by_lag @ torch.arange(by_lag.size(-1)).to(by_lag),
        "lag95": (by_lag.cumsum(-1) < 0.95).sum(-1),
        "beyond": by_lag[..., l_train:].sum(-1),
    }


@torch.no_grad()
def receptive_field(scorer: AttentionScorer, stream: Tensor) -> List[Dict[str, Any]]:
    """A line for each layer and head, both counted from 1: `spread` of the queries at positions >= L_train.

    Raises ValueError if the stream is shorter than one sequence.
    """
    length = REACH * scorer.l_train
    if len(stream) < length:
        raise ValueError(f"the text has {len(stream)} tokens, fewer than {REACH} x L_train = {length}")
    sequences = inputs_of(stream, scorer.bos).unfold(0, length, length)[:SEQUENCES]  # (sequences, length)
    by_lag = torch.zeros((), dtype=torch.float64)
    for tokens in sequences:
        layers = [weight_by_lag(*inputs, first=scorer.l_train) for inputs in scorer.attention_inputs(tokens)]
        by_lag = by_lag + torch.stack(layers)  # (layers, H, length)
    measured = {name: values.tolist() for name, values in spread(by_lag / len(sequences), scorer.l_train).items()}
    return [
        {"layer": layer + 1, "head": head + 1, **{name: values[layer][head] for name, values in measured.items()}}
        for layer in range(by_lag.size(0))
        for head in range(by_lag.size(1))
    ]


def loss_by_position(scorer: Scorer, stream: Tensor) -> List[Dict[str, Any]]:
    """A line for each L_train / 8 positions of a sequence, from start to stop - 1: nll, the mean there in nats."""
    length, width = REACH * scorer.l_train, max(1, scorer.l_train // 8)
    nll = stream_nll(scorer, inputs_of(stream, scorer.bos), stream, pieces(len(stream), length, length), length)
    bins = torch.arange(len(stream)) % length // width
    means = torch.bincount(bins, nll.double()) / torch.bincount(bins)
    return [
        {"start": start, "stop": min(start + width, length), "nll": mean}
        for start, mean in zip(range(0, length, width), means.tolist())
    ]


@torch.no_grad()
def learned_wavelets(model: nn.Module) -> List[Dict[str, Any]]:
    """A line for each scale and each shift that a layer learns: what it was before the training, and is after it.

    Layers and the numbers of scales and shifts are counted from 1; none if the model learns neither.
    """
    lines = []
    positions = [module for module in model.modules() if isinstance(module, LearnedWaveletPosition)]
    for layer, position in enumerate(positions, 1):
        _, *before, _ = position.head
        after = position.scales_and_shifts(torch.device("cpu"))
        learned = position.scale_octaves, position.shift_tokens
        for kind, parameter, *ends in zip(("scale", "shift"), learned, before, after):
            if parameter is not None:
                numbers = enumerate(zip(*map(tuple, ends)), 1)
                lines += [
                    {"layer": layer, "kind": kind, "number": number, "before": float(one), "after": float(other)}
                    for number, (one, other) in numbers
                ]
    return lines


Measured = TypeVar("Measured", bound=Scorer)


def table(
    measure: Callable[[Measured, Tensor], List[Dict[str, Any]]],
    checkpoints: Mapping[Tuple[str, int], Path],
    opened: Callable[[Path], Tuple[Measured, Tensor]],
) -> pd.DataFrame:
    """What `receptive_field` or `loss_by_position` gives for each checkpoint, after its row and seed.

    opened: gives a checkpoint's scorer and the text, `plugin.checkpoint.open_checkpoint` for example.
    """
    lines = []
    for (row, seed), path in checkpoints.items():
        print(f"{measure.__name__}: {row}, seed {seed}", file=sys.stderr, flush=True)
        scorer, stream = opened(path)
        every = {"row": row, "seed": seed, "l_train": scorer.l_train, "sequence_length": REACH * scorer.l_train}
        lines += [{**every, **line} for line in measure(scorer, stream)]
    return pd.DataFrame(lines)
