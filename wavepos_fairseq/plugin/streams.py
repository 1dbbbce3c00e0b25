"""The contents of a data-bin, as fairseq's binaries have them."""

import logging
from pathlib import Path
from typing import Dict, NamedTuple

SPLITS = ("train", "valid", "test")


class Counts(NamedTuple):
    """What a data-bin holds. Tokens include one </s> a line; types are the words of dict.txt, <unk> and </s>."""

    lines: Dict[str, int]
    tokens: Dict[str, int]
    types: int


def count(data_bin: Path) -> Counts:
    """Counts of the binaries themselves, not of the text or of a log."""
    logging.getLogger("fairseq").setLevel(logging.WARNING)  # on import it recommends packages for speech
    from fairseq.data.indexed_dataset import MMapIndexedDataset

    lines, tokens = {}, {}
    for split in SPLITS:
        index = MMapIndexedDataset.Index(str(data_bin / f"{split}.idx"))  # unmaps its sizes when it goes: keep it
        lines[split], tokens[split] = len(index), int(index.sizes.sum())
    with open(data_bin / "dict.txt", encoding="utf-8") as dictionary:
        words = sum(not line.endswith(" 0\n") for line in dictionary)  # count 0: added to make the size a multiple of 8
    return Counts(lines, tokens, types=words + 2)


def check_words(data_bin: Path) -> None:
    """ValueError where a split is nothing but <unk>, which any model would predict, at a perplexity near 1."""
    from fairseq.data import Dictionary
    from fairseq.data.indexed_dataset import MMapIndexedDataset

    first_word = Dictionary().nspecial
    for split in SPLITS:
        if not any((line >= first_word).any() for line in MMapIndexedDataset(str(data_bin / split))):
            raise ValueError(f"{split} would be nothing but <unk>")
