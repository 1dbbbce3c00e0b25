"""Recall over distance: how often a model gives a key the value that it had t tokens ago.

The text is a stream of pairs, a key and its value, in which a key that is seen again has the same value (see
`data.recall`). It is cut into sequences, which are read whole, as in ``full`` inference. Asked is every key that its
sequence has had before. The distance t is the number of tokens since the key was last read, and the answer is the most
probable of all values: by chance, one of their number is right.

Two lengths are read. In sequences of L_train all keys are asked: what the training taught. In sequences of REACH x
L_train those at positions >= L_train are, which have more tokens before them than any sequence of the training had.
"""

from typing import Any, Dict, List, Protocol

import torch
from torch import Tensor

from .perplexity import Scorer, inputs_of
from .probes import REACH
from .statistics import share_interval


class Answerer(Scorer, Protocol):
    """A scorer that can choose."""

    def most_probable(self, source: Tensor, among: Tensor) -> Tensor:
        """The most probable of the tokens `among` (N,) after each of the inputs (B, L): int64 (B, L)."""


def distances(tokens: Tensor, keys: Tensor) -> Tensor:
    """How many tokens (L,) ago each of the `keys` (N,) was read last, 0 at other tokens and first times: int64 (L,)."""
    order = tokens.argsort(stable=True)  # equal tokens side by side, in the order of the text
    again = tokens[order[1:]] == tokens[order[:-1]]
    ago = torch.zeros_like(tokens)
    ago[order[1:][again]] = (order[1:] - order[:-1])[again]
    return ago * torch.isin(tokens, keys)


def edges(l_train: int) -> List[int]:
    """Where a range of distances ends and the next begins: powers of two up to L_train, then steps of L_train / 2."""
    within = [2**power for power in range(1, l_train.bit_length()) if 2**power < l_train]
    return [*within, *(l_train * half // 2 for half in range(2, 2 * REACH + 1))]


@torch.no_grad()
def recall(scorer: Answerer, stream: Tensor, keys: Tensor, values: Tensor) -> List[Dict[str, Any]]:
    """A line for each sequence_length and range of distances, from start to stop - 1, in which a key was asked.

    stream: int64 (tokens,), cut after the last whole sequence. keys, values: the tokens that are such, (N,).
    accuracy: the share of right answers to `count` questions, from low to high its 95% interval.
    Raises ValueError if the stream is shorter than one sequence.
    """
    l_train = scorer.l_train
    if len(stream) < REACH * l_train:
        raise ValueError(f"the text has {len(stream)} tokens, fewer than {REACH} x L_train = {REACH * l_train}")
    bounds = torch.tensor(edges(l_train))
    lines = []
    for length, first in ((l_train, 0), (REACH * l_train, l_train)):
        asked = torch.zeros(len(bounds) + 1, dtype=torch.int64)
        right = torch.zeros_like(asked)
        sources = inputs_of(stream, scorer.bos).unfold(0, length, length)  # (sequences, length)
        targets = stream.unfold(0, length, length)
        at_a_time = max(1, REACH * l_train // length)
        for source, target in zip(sources.split(at_a_time), targets.split(at_a_time)):
            answers = scorer.most_probable(source.to(scorer.device), values.to(scorer.device)).cpu()
            ago = torch.stack([distances(tokens, keys) for tokens in source])
            ago[:, :first] = 0
            place = torch.bucketize(ago, bounds, right=True)  # 0: not asked
            asked += torch.bincount(place.flatten(), minlength=len(asked))
            right += torch.bincount(place[answers == target], minlength=len(asked))
        for at, (start, stop) in enumerate(zip(bounds.tolist(), bounds.tolist()[1:]), start=1):
            count, correct = int(asked[at]), int(right[at])
            if count:
                low, high = share_interval(correct, count)
                line = {"sequence_length": length, "start": start, "stop": stop, "accuracy": correct / count}
                lines.append({**line, "low": low, "high": high, "count": count})
    return lines
