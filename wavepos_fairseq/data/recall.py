"""Key-value recall: a made-up text that only its own past explains, for one question: how far back does a model find?

A stream of pairs, a key and its value: ``k17 k17=v3 k240 k240=v0 …``. Three of four keys were seen before, and have the
value that they had then. The other keys are new, and so are their values. So the value of a key is learned from its
last pair and nothing else (compare the recall of Arora et al., 2024, Zoology). The distance to that pair is drawn
evenly from the powers of two up to LONGEST pairs. A key that is further back than that counts as new. So up to LONGEST
pairs no key has two values.

A value names its key. One that does not, ``k17 v3``, is found in two steps, of which the first, to look at the token
before, is learned slowly: small models did not learn it in minutes. With the name, one step of attention is enough,
and how far it reaches is what is asked.

Everything is drawn from the name of the split: the corpus is the same on any machine.
"""

import bisect
import random
from pathlib import Path
from typing import Dict, Iterator, List, Tuple

from ..plugin.streams import SPLITS
from .corpus import Corpus, DataError, Source, say
from .tokens import write_lines

LONGEST = 320  # pairs
KEYS = [f"k{number}" for number in range(256)]
VALUES = {key: [f"{key}=v{number}" for number in range(4)] for key in KEYS}
ASKED = 0.75  # the share of the keys that were seen before
LINES = {"train": 20_000, "valid": 4_000, "test": 4_000}
PAIRS = 32  # of a line


class Recall(Corpus):
    """Lines of PAIRS pairs; a token is a key or a value."""

    name = "recall"
    min_count = 0

    def find_text(self, source: Source, option: str) -> Dict[str, Path]:
        if source is not None:
            raise DataError(f"{option} {source}: recall is always made up, from random numbers")
        return {}

    def write_tokens(self, source: Source, files: Dict[str, Path], folder: Path, downloads: Path) -> str:
        say("making up pairs of keys and values")
        for split in SPLITS:
            write_lines(lines(split, LINES[split]), folder / f"{split}.tokens")
        return "random numbers"


def lines(split: str, number: int) -> Iterator[str]:
    """The first lines of a split."""
    drawn = pairs(split)
    for _ in range(number):
        yield " ".join(token for _ in range(PAIRS) for token in next(drawn))


def pairs(seed: str) -> Iterator[Tuple[str, str]]:
    """Keys and values without an end.

    Only random.random() is drawn from, whose numbers Python promises to be the same in all versions.
    """
    draw = random.Random(seed).random
    known: List[Tuple[int, str]] = []  # the last place of each key that was seen, ascending, and the key
    value_of: Dict[str, str] = {}
    unseen = list(KEYS)
    place = 0
    while True:
        if known and known[0][0] < place - LONGEST:
            unseen.append(known.pop(0)[1])
        if known and (draw() < ASKED or not unseen):
            least = 1 << int(draw() * LONGEST.bit_length())
            ago = least + int(draw() * min(least, LONGEST + 1 - least))
            _, key = known.pop(_nearest(known, place - ago))
        else:
            at = int(draw() * len(unseen))
            unseen[at], unseen[-1] = unseen[-1], unseen[at]
            key = unseen.pop()
            value_of[key] = VALUES[key][int(draw() * len(VALUES[key]))]
        known.append((place, key))
        yield key, value_of[key]
        place += 1


def _nearest(known: List[Tuple[int, str]], place: int) -> int:
    """The index of the key whose last place is nearest to `place`."""
    above = bisect.bisect(known, (place,))
    return min(range(max(0, above - 1), min(above + 1, len(known))), key=lambda at: abs(known[at][0] - place))
