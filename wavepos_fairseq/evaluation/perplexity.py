"""Perplexity of a language model at any length, in the paper's two inferences.

The tokens of a text are one stream, as with fairseq's ``--sample-break-mode none``. It is cut into sequences of the
evaluated length, the last one shorter, and every token is a target once. The input at a target is the token before it,
so the first input of a sequence is the last target of the one before.

- ``full``: each sequence is scored whole ("perplexity without non-overlapping inference").
- ``non-overlapping``: each sequence is divided into pieces of L_train inputs, the last one shorter, and each piece is
  scored on its own. Up to L_train the two are the same.

The model can be anything that scores (see `Scorer`). This module does not depend on fairseq.
"""

import time
from typing import Any, Callable, Dict, List, Protocol, Sequence, Tuple

import numpy as np
import torch
from torch import Tensor

from ..common.errors import prefixing_errors
from .inferences import INFERENCES
from .statistics import bootstrap_interval, perplexity_of


class Scorer(Protocol):
    """A language model ready to be evaluated."""

    @property
    def l_train(self) -> int:
        """L_train: the number of tokens in a training sequence."""

    @property
    def bos(self) -> int:
        """The token before the first of a text; fairseq's is ``</s>``."""

    @property
    def device(self) -> torch.device:
        """The device of its inputs."""

    def score(self, source: Tensor, target: Tensor) -> Tensor:
        """Negative log-likelihoods in nats, fp32 (B, L), of the targets (B, L) after the inputs (B, L)."""


def inputs_of(stream: Tensor, bos: int) -> Tensor:
    """The token before each token of the stream, with `bos` before the first: int64 (tokens,)."""
    return torch.cat((stream.new_tensor([bos]), stream[:-1]))


def pieces(num_tokens: int, sequence_length: int, piece_length: int) -> List[Tuple[int, int]]:
    """The cuts of a stream: (start, stop) of the pieces of each sequence of `sequence_length`, in order."""
    cuts = []
    for start in range(0, num_tokens, sequence_length):
        end = min(start + sequence_length, num_tokens)
        cuts += [(first, min(first + piece_length, end)) for first in range(start, end, piece_length)]
    return cuts


@torch.no_grad()
def stream_nll(
    scorer: Scorer, source: Tensor, target: Tensor, cuts: Sequence[Tuple[int, int]], max_tokens: int
) -> Tensor:
    """Losses in nats, fp32 (tokens,), of a stream whose pieces are scored on their own; source and target (tokens,).

    Pieces of one length are batched up to `max_tokens` tokens, but at least one at a time, so nothing is padded.
    """
    nll = torch.empty(len(target))
    by_length: Dict[int, List[int]] = {}
    for start, stop in cuts:
        by_length.setdefault(stop - start, []).append(start)
    for length, starts in by_length.items():
        for batch in torch.tensor(starts).split(max(1, max_tokens // length)):
            index = batch[:, None] + torch.arange(length)  # (B, length)
            nll[index] = scorer.score(source[index].to(scorer.device), target[index].to(scorer.device)).cpu()
    return nll


def evaluate(
    scorer: Scorer,
    stream: Tensor,
    lengths: Sequence[int],
    inferences: Sequence[str] = INFERENCES,
    max_tokens: int = 4096,
    report: Callable[[Dict[str, Any]], None] = lambda cell: None,
) -> List[Dict[str, Any]]:
    """A cell of a table for each inference and length, `report`ed as soon as it is known.

    stream: int64 (tokens,). nll is the mean in nats over all targets, perplexity its exponential, perplexity_low and
    perplexity_high its `bootstrap_interval`, or None. Raises ValueError if one is not finite.
    """
    source = inputs_of(stream, scorer.bos)
    cells: List[Dict[str, Any]] = []
    for length in lengths:
        for inference in inferences:
            started = time.perf_counter()
            twin = [cell for cell in cells if cell["sequence_length"] == length <= scorer.l_train]
            if twin:  # both inferences cut such sequences the same way
                cells.append({**twin[0], "inference": inference})
            else:
                piece_length = length if inference == "full" else min(length, scorer.l_train)
                cuts = pieces(len(stream), length, piece_length)
                losses = stream_nll(scorer, source, stream, cuts, max_tokens).double()
                nll = losses.mean().item()
                with prefixing_errors(f"{inference}, length {length}"):
                    perplexity, interval = perplexity_of(nll), bootstrap_interval(losses, length)
                seconds = time.perf_counter() - started
                cells.append(
                    {
                        "inference": inference,
                        "l_train": scorer.l_train,
                        "sequence_length": length,
                        "tokens": len(stream),
                        "nll": nll,
                        "perplexity": perplexity,
                        "perplexity_low": interval[0],
                        "perplexity_high": interval[1],
                        "seconds": seconds,
                        "tokens_per_second": len(stream) / seconds,
                    }
                )
            report(cells[-1])
    return cells


def evaluate_lines(scorer: Scorer, lines: Sequence[Tensor], max_tokens: int = 4096) -> List[Dict[str, Any]]:
    """The perplexity of each line on its own, after `bos`: fairseq's ``--sample-break-mode eos``.

    lines: int64 (tokens,) each. line counts from 1; tokens, nll and perplexity are as in `evaluate`.
    """
    stream = torch.cat(list(lines))
    stops = np.cumsum([len(line) for line in lines]).tolist()
    cuts = list(zip([0, *stops], stops))
    source = inputs_of(stream, scorer.bos)
    source[[start for start, _ in cuts]] = scorer.bos
    losses = stream_nll(scorer, source, stream, cuts, max_tokens).double()
    scored = []
    for number, (start, stop) in enumerate(cuts, start=1):
        nll = losses[start:stop].mean().item()
        with prefixing_errors(f"line {number}"):
            scored.append({"line": number, "tokens": stop - start, "nll": nll, "perplexity": perplexity_of(nll)})
    return scored
