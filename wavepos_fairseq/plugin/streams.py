"""Data-bin folders, which fairseq-preprocess makes: their tokens and their counts.

Importing this module imports neither PyTorch nor fairseq.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Dict, Iterable, List, NamedTuple

from ..common.errors import prefixing_errors
from ..common.files import read_json, shown_path

if TYPE_CHECKING:
    from fairseq.data import Dictionary
    from torch import Tensor

SPLITS = ("train", "valid", "test")


class Counts(NamedTuple):
    """The sizes of a data-bin. Tokens include one </s> per line; types are the words of dict.txt, <unk> and </s>."""

    lines: Dict[str, int]
    tokens: Dict[str, int]
    types: int


def count(data_bin: Path) -> Counts:
    """Counts the binaries themselves, not the text or a log."""
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
    """Raises ValueError if a split is nothing but <unk>: any model would predict it, at a perplexity near 1."""
    from fairseq.data import Dictionary
    from fairseq.data.indexed_dataset import MMapIndexedDataset

    first_word = Dictionary().nspecial
    for split in SPLITS:
        if not any((line >= first_word).any() for line in MMapIndexedDataset(str(data_bin / split))):
            raise ValueError(f"{split} would be nothing but <unk>: none of its words is in dict.txt")


def first_folder(data: str) -> str:
    """The folder of DATA1:DATA2 (fairseq-train's syntax) with the dictionary and the splits of an evaluation."""
    from fairseq import utils

    return next(iter(utils.split_paths(data)), "")


def load_dictionary(data: str) -> Dictionary:
    """The dictionary of a data-bin folder; raises ValueError with the file's name if it cannot be read."""
    from fairseq.data import Dictionary

    file = Path(first_folder(data), "dict.txt")
    with prefixing_errors(shown_path(file)):
        return Dictionary.load(str(file))


def tokens_of(dictionary: Dictionary, symbols: Iterable[str]) -> Tensor:
    """The tokens of symbols: int64 (symbols,). Raises ValueError if one is not in the dictionary."""
    import torch

    numbers = {symbol: dictionary.index(symbol) for symbol in symbols}
    for symbol, number in numbers.items():
        if number == dictionary.unk():
            raise ValueError(f"the dictionary has no {symbol}")
    return torch.tensor(list(numbers.values()))


def load_lines(data: str, subset: str, dictionary: Dictionary) -> List[Tensor]:
    """The lines of a split of a data-bin folder, in any of fairseq's formats: int64 (tokens,), each ended by ``</s>``.

    Raises ValueError if the split does not exist or does not fit the dictionary.
    """
    import torch
    from fairseq.data import data_utils

    split = Path(first_folder(data), subset)
    with prefixing_errors(f"--subset {subset}: {split}.bin with {subset}.idx"):
        dataset = data_utils.load_indexed_dataset(str(split), dictionary)
        if dataset is None:
            raise ValueError("there is no such file")
        if getattr(dataset, "supports_prefetch", False):  # --dataset-impl cached and lazy, one format
            dataset.prefetch(range(len(dataset)))
        lines = [dataset[i].long() for i in range(len(dataset))]
        stream = torch.cat(lines)
        if not (0 <= stream.min() and stream.max() < len(dictionary)):
            raise ValueError(f"tokens other than 0 to {len(dictionary) - 1}, those of dict.txt")
        padding = int((stream == dictionary.pad()).sum())
        if padding:
            raise ValueError(
                f"{padding} words of the text are a literal {dictionary.pad_word}, which is padding to fairseq; "
                "replace it by another word and prepare the text again"
            )
    return lines


def load_stream(data: str, subset: str, dictionary: Dictionary) -> Tensor:
    """All tokens of a split of a data-bin folder, an ``</s>`` after each line: int64 (tokens,)."""
    import torch

    return torch.cat(load_lines(data, subset, dictionary))


BLANK = "▁"  # U+2581, as in SentencePiece: fairseq divides lines at blanks, so a token cannot be one


def unit_of(data: str) -> str:
    """What a token of a data-bin folder is: a ``word``, a ``subword`` or a ``character``."""
    folder = Path(first_folder(data))
    if (folder / "bpe.codes").is_file():
        return "subword"
    return (read_json(folder / "provenance.json") or {}).get("unit", "word")


def count_words(stream: Tensor, dictionary: Dictionary, unit: str) -> int:
    """Words and line ends in a stream of tokens of this unit.

    Of subword-nmt's units all but a word's last end in ``@@``; characters of a word stand between blanks.
    """
    import torch

    if unit == "word":
        return len(stream)
    if unit == "subword":
        continued = torch.tensor([symbol.endswith("@@") for symbol in dictionary.symbols])
        return int((~continued[stream]).sum())
    line_end = stream == dictionary.eos()
    between = line_end | (stream == dictionary.index(BLANK))
    begins = ~between & torch.cat((between.new_ones(1), between[:-1]))
    return int(begins.sum() + line_end.sum())
