"""Where a trained model looks, and where in a sequence it errs, measured on its checkpoint and the validation set.

The attention weights are `attention.attention_weights` of what the attention of each layer is given. Measured are

- the receptive field of each layer and head, in sequences of 5 L_train tokens: how the queries at positions >= L_train
  spread their attention over the lags t = m - n, and how much of it goes further back than any sequence of training;
- the loss over the position in such sequences, in ``full`` inference (see `evaluation`).

`table` has them as the lines of attention.csv and positions.csv. Nothing is drawn here; `curves` does that.
"""

import contextlib
import sys
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Mapping, Optional, Tuple
from unittest import mock

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor

from ..attention import attention_weights
from ..plugin.evaluate import Checkpoint, inputs_of, load_checkpoint, load_stream, pieces, stream_nll
from ..positions import Position

REACH = 5  # times L_train: the length of the sequences
SEQUENCES = 8  # of the validation set, from its beginning, for the receptive field
BLOCK = 64  # queries at a time: their scores are formed with a BLOCK x L x d tensor
Inputs = Tuple[Tensor, Tensor, Position]  # query and key (1, H, L, d), and the representation


@torch.no_grad()
def attention_inputs(model: torch.nn.Module, tokens: Tensor) -> List[Inputs]:
    """What the attention of each layer, from the first on, is given when the model reads the tokens (L,).

    Raises ValueError for a model without this package's attention, which fairseq's own transformer_lm is.
    """
    from ..models.transformer_lm_wavelet import PositionalSelfAttention  # here, for it needs fairseq

    layers = [module for module in model.modules() if isinstance(module, PositionalSelfAttention)]
    if not layers:
        raise ValueError(
            "fairseq's own transformer_lm does not show its attention; --position-encoding sinusoidal (or nope, with "
            "--no-token-positional-embeddings) reads its checkpoint as a transformer_lm_wavelet"
        )
    with contextlib.ExitStack() as stack:
        spies = [stack.enter_context(mock.patch.object(layer, "attend", wraps=layer.attend)) for layer in layers]
        model.decoder(tokens[None].to(next(model.parameters()).device), features_only=True)
    return [(query, key, position) for query, key, _, position, _ in (spy.call_args[0] for spy in spies)]


def _rows(query: Tensor, key: Tensor, position: Position, first: int = 0) -> Iterator[Tuple[int, Tensor]]:
    """A block of queries after another, from the query `first` on: its start, and weights (H, m, n) up to its end."""
    for start in range(first, query.size(2), BLOCK):
        stop = min(start + BLOCK, query.size(2))
        yield start, attention_weights(query[:, :, start:stop], key[:, :, :stop], position)[0]


@torch.no_grad()
def attention_map(query: Tensor, key: Tensor, position: Position) -> Tensor:
    """The attention weights of a layer over one sequence: (H, L, L), queries by keys."""
    length = query.size(2)
    blocks = [F.pad(weights, (0, length - weights.size(-1))) for _, weights in _rows(query, key, position)]
    return torch.cat(blocks, dim=1)


@torch.no_grad()
def weight_by_lag(query: Tensor, key: Tensor, position: Position, first: int) -> Tensor:
    """The weights at each lag, averaged over the queries from `first` on: fp64 (H, L)."""
    num_heads, length = query.shape[1:3]
    by_lag = torch.zeros(num_heads, length, dtype=torch.float64, device=query.device)
    for start, weights in _rows(query, key, position, first):
        _, rows, columns = weights.shape
        lag = torch.arange(start, start + rows)[:, None] - torch.arange(columns)
        lag = lag.clamp(min=0).flatten().to(query.device)  # the future weighs nothing
        by_lag.index_add_(1, lag, weights.flatten(1).double())
    return by_lag / (length - first)


def spread(by_lag: Tensor, l_train: int) -> Dict[str, Tensor]:
    """Of weights over the lags (..., L): mean_lag, lag95, up to which at least 95 % lie, and the share beyond L_train.

    Lags are in tokens; beyond are the lags t >= L_train, further than a sequence of training reaches.
    """
    return {
        "mean_lag": by_lag @ torch.arange(by_lag.size(-1)).to(by_lag),
        "lag95": (by_lag.cumsum(-1) < 0.95).sum(-1),
        "beyond": by_lag[..., l_train:].sum(-1),
    }


def receptive_field(checkpoint: Checkpoint, stream: Tensor) -> List[Dict[str, Any]]:
    """A line for each layer and head, both counted from 1: `spread` of the queries at positions >= L_train.

    Raises ValueError where the stream is shorter than one sequence.
    """
    model, l_train = checkpoint.model, checkpoint.l_train
    length = REACH * l_train
    if len(stream) < length:
        raise ValueError(f"the validation set has {len(stream)} tokens, fewer than {REACH} x L_train = {length}")
    sequences = inputs_of(stream, checkpoint.task.dictionary).unfold(0, length, length)[:SEQUENCES]
    by_lag = sum(
        torch.stack([weight_by_lag(*inputs, first=l_train) for inputs in attention_inputs(model, tokens)])
        for tokens in sequences
    )  # (layers, H, length)
    measured = {name: values.tolist() for name, values in spread(by_lag / len(sequences), l_train).items()}
    return [
        {"layer": layer + 1, "head": head + 1, **{name: values[layer][head] for name, values in measured.items()}}
        for layer in range(by_lag.size(0))
        for head in range(by_lag.size(1))
    ]


def loss_by_position(checkpoint: Checkpoint, stream: Tensor) -> List[Dict[str, Any]]:
    """A line for each L_train / 8 positions of a sequence, from start to stop - 1: nll, the mean there in nats."""
    length, width = REACH * checkpoint.l_train, checkpoint.l_train // 8
    cuts = pieces(len(stream), length, length)
    nll = stream_nll(checkpoint.model, inputs_of(stream, checkpoint.task.dictionary), stream, cuts, max_tokens=length)
    bins = torch.arange(len(stream)) % length // width
    means = torch.bincount(bins, nll.double()) / torch.bincount(bins)
    return [
        {"start": start, "stop": start + width, "nll": mean}
        for start, mean in zip(range(0, length, width), means.tolist())
    ]


def open_checkpoint(
    path: Path, data: Path, position_encoding: Optional[str] = None, trust: bool = False
) -> Tuple[Checkpoint, Tensor]:
    """`evaluation.load_checkpoint`, on the GPU where there is one, and the validation set."""
    checkpoint = load_checkpoint(str(path), str(data), position_encoding, trust)
    checkpoint.model.to("cuda" if torch.cuda.is_available() else "cpu")
    return checkpoint, load_stream(str(data), "valid", checkpoint.task.dictionary)


def table(
    measure: Callable[[Checkpoint, Tensor], List[Dict[str, Any]]],
    checkpoints: Mapping[str, Path],
    opened: Callable[[Path], Tuple[Checkpoint, Tensor]],
) -> pd.DataFrame:
    """What `receptive_field` or `loss_by_position` gives for each checkpoint, after the checkpoint's name as `row`.

    opened: `open_checkpoint`, with the data of all of them.
    """
    lines = []
    for row, path in checkpoints.items():
        print(f"{measure.__name__}: {row}", file=sys.stderr, flush=True)
        checkpoint, stream = opened(path)
        every = {"row": row, "l_train": checkpoint.l_train, "sequence_length": REACH * checkpoint.l_train}
        lines += [{**every, **line} for line in measure(checkpoint, stream)]
    return pd.DataFrame(lines)
