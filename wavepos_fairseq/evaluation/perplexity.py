"""Perplexity of a language model at any length, in the paper's two inferences and with sliding windows.

The tokens of a text are one stream, as with fairseq's ``--sample-break-mode none``. It is cut into sequences of the
evaluated length, the last one shorter, and every token is a target once. The input at a target is the token before it,
so the first input of a sequence is the last target of the one before.

- ``full``: each sequence is scored whole ("perplexity without non-overlapping inference").
- ``non-overlapping``: each sequence is divided into pieces of L_train inputs, the last one shorter, and each piece is
  scored on its own. Up to L_train the two are the same.
- ``sliding``: windows end at S, 2S, ..., S being the stride. Each holds the last tokens up to the evaluated length, or
  as many as there are, and its last S are scored: fairseq-eval-lm's ``--context-window``. With S = length it is full.

The model can be anything that scores (see `Scorer`). This module does not depend on fairseq.
"""

import time
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Protocol, Sequence, Tuple

import numpy as np
import torch
from torch import Tensor

from ..common.errors import prefixing_errors
from ..common.schema import is_count
from .inferences import INFERENCES, PAPERS_INFERENCES
from .statistics import STRETCH, bootstrap_interval, perplexity_of


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


class Piece(NamedTuple):
    """A model reads the inputs start .. stop - 1 of a stream on their own; its targets from `first` on are scored."""

    start: int
    first: int
    stop: int


def pieces(num_tokens: int, sequence_length: int, piece_length: int) -> List[Piece]:
    """The pieces of each sequence of `sequence_length`, in order; all of their tokens are scored."""
    cuts = []
    for start in range(0, num_tokens, sequence_length):
        end = min(start + sequence_length, num_tokens)
        cuts += [Piece(at, at, min(at + piece_length, end)) for at in range(start, end, piece_length)]
    return cuts


def windows(num_tokens: int, length: int, stride: int) -> List[Piece]:
    """Windows of up to `length` tokens, in order: each ends `stride` tokens after the one before, and scores these."""
    firsts = range(0, num_tokens, stride)
    return [Piece(max(0, first + stride - length), first, min(first + stride, num_tokens)) for first in firsts]


@torch.no_grad()
def stream_nll(scorer: Scorer, source: Tensor, target: Tensor, cuts: Sequence[Piece], max_tokens: int) -> Tensor:
    """Losses in nats, fp32 (tokens,), of a stream whose pieces are scored on their own; source and target (tokens,).

    Pieces of one shape are batched up to `max_tokens` tokens, but at least one at a time, so nothing is padded.
    """
    nll = torch.empty(len(target))
    by_shape: Dict[Tuple[int, int], List[int]] = {}
    for start, first, stop in cuts:
        by_shape.setdefault((stop - start, first - start), []).append(start)
    for (length, unscored), starts in by_shape.items():
        for batch in torch.tensor(starts).split(max(1, max_tokens // length)):
            index = batch[:, None] + torch.arange(length)  # (B, length)
            losses = scorer.score(source[index].to(scorer.device), target[index].to(scorer.device))  # (B, length)
            nll[index[:, unscored:]] = losses[:, unscored:].cpu()
    return nll


def refuse_stride(stride: Optional[int], lengths: Sequence[int]) -> None:
    """ValueError unless windows of each length can move on by `stride`."""
    if stride is None:
        raise ValueError("sliding needs --stride, the tokens that a window scores")
    if not is_count(stride) or stride > min(lengths):
        raise ValueError(f"--stride {stride}: accepted are 1 to {min(lengths)}, the shortest length")


def _cuts(inference: str, num_tokens: int, length: int, l_train: int, stride: Optional[int]) -> List[Piece]:
    if inference == "sliding":
        assert stride  # by `refuse_stride`
        return windows(num_tokens, length, stride)
    return pieces(num_tokens, length, length if inference == "full" else min(length, l_train))


def evaluate(
    scorer: Scorer,
    stream: Tensor,
    lengths: Sequence[int],
    inferences: Sequence[str] = PAPERS_INFERENCES,
    max_tokens: int = 4096,
    stride: Optional[int] = None,
    sliding_tokens: Optional[int] = None,
    sequences: Optional[int] = None,
    report: Callable[[Dict[str, Any]], None] = lambda cell: None,
) -> List[Dict[str, Any]]:
    """A cell of a table for each inference and length, `report`ed as soon as it is known.

    stream: int64 (tokens,). stride: of ``sliding``, in tokens. sliding_tokens: as many from the beginning are scored
    by ``sliding``, which reads a token length / stride times (default: all). sequences: as many from the beginning are
    scored by the others, so that each length has a text of its own (default: all). nll is the mean in nats over all
    targets, perplexity its exponential, perplexity_low and perplexity_high its `bootstrap_interval`, or None;
    stretch_nll has the sums in nats of each `STRETCH` tokens of text. Raises ValueError if a perplexity is not finite,
    if the stride does not fit the lengths, or if the text has fewer sequences.
    """
    if "sliding" in inferences:
        refuse_stride(stride, lengths)
    unknown = sorted({*inferences} - {*INFERENCES})
    if unknown:
        raise ValueError(f"--inference {unknown[0]}: accepted are {', '.join(INFERENCES)}")
    for name, given in (("sliding-tokens", sliding_tokens), ("sequences", sequences)):
        if given is not None and not is_count(given):
            raise ValueError(f"--{name} {given}: accepted is a whole number > 0")
    longest = max(lengths, default=0)
    if {*inferences} - {"sliding"} and len(stream) < (sequences or 0) * longest:
        needed = f"{sequences} x {longest}"
        raise ValueError(f"--sequences {sequences}: the text has {len(stream)} tokens, fewer than {needed}")
    source = inputs_of(stream, scorer.bos)
    cells: List[Dict[str, Any]] = []
    scored: List[Tuple[List[Piece], Tensor, float]] = []
    for length in lengths:
        for inference in inferences:
            started = time.perf_counter()
            target = stream[: sliding_tokens if inference == "sliding" else sequences and sequences * length]
            cuts = _cuts(inference, len(target), length, scorer.l_train, stride)
            alike = [known for known in scored if known[0] == cuts]  # pieces of L_train, at most lengths
            if not alike:
                losses = stream_nll(scorer, source, target, cuts, max_tokens).double()
                alike = [(cuts, losses, time.perf_counter() - started)]
                scored += alike
            _, losses, seconds = alike[0]
            nll = losses.mean().item()
            with prefixing_errors(f"{inference}, length {length}"):
                perplexity, interval = perplexity_of(nll), bootstrap_interval(losses, length)
            cells.append(
                {
                    "inference": inference,
                    "l_train": scorer.l_train,
                    "sequence_length": length,
                    "stride": stride if inference == "sliding" else None,
                    "tokens": len(target),
                    "nll": nll,
                    "perplexity": perplexity,
                    "perplexity_low": interval[0],
                    "perplexity_high": interval[1],
                    "stretch_nll": [stretch.sum().item() for stretch in losses.split(STRETCH)],
                    "seconds": seconds,
                    "tokens_per_second": len(target) / seconds,
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
    cuts = [Piece(start, start, stop) for start, stop in zip([0, *stops], stops)]
    source = inputs_of(stream, scorer.bos)
    source[[cut.start for cut in cuts]] = scorer.bos
    losses = stream_nll(scorer, source, stream, cuts, max_tokens).double()
    scored = []
    for number, cut in enumerate(cuts, start=1):
        nll = losses[cut.start : cut.stop].mean().item()
        with prefixing_errors(f"line {number}"):
            scored.append(
                {"line": number, "tokens": cut.stop - cut.start, "nll": nll, "perplexity": perplexity_of(nll)}
            )
    return scored
