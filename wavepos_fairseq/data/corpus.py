"""What `prepare` needs to know of a corpus. Each source of text has a file of its own, which implements it."""

import abc
from pathlib import Path
from typing import Dict, Sequence, Union

from ..plugin.streams import SPLITS, Counts, check_words

MIN_COUNT = 3  # as in WikiText: a word that train has fewer times than this becomes <unk>
Source = Union[str, Path, None]
"""What the user gives as the source: a path, a URL or nothing."""


class DataError(ValueError):
    """The request or the data is wrong; the message is for the user."""


class Corpus(abc.ABC):
    """Text under one name, which becomes three files of tokens and then a data-bin."""

    name: str
    packages: Sequence[str] = ()  # the versions of these decide on the tokens
    min_count = MIN_COUNT  # of fairseq-preprocess; 0 keeps all words
    takes_bpe = False  # whether a byte-pair encoding may divide its words
    unit = "word"  # what a token is, without one

    @abc.abstractmethod
    def find_text(self, source: Source, option: str) -> Dict[str, Path]:
        """The user's text files by split; none where the text comes from elsewhere.

        Raises DataError where the corpus cannot be made from `source`, which the command calls `option`.
        """

    @abc.abstractmethod
    def write_tokens(self, source: Source, files: Dict[str, Path], folder: Path, downloads: Path) -> str:
        """Write ``folder/{split}.tokens``, and return where the text comes from, for the provenance.

        A line is a paragraph, its tokens separated by spaces. files: see `find_text`. downloads: a folder that is kept
        for a later attempt; it may not exist.
        """

    def check(self, data_bin: Path, counts: Counts) -> None:
        """Raise DataError unless the data-bin holds what it should."""
        try:
            check_words(data_bin)
        except ValueError as error:
            kept = f"words that train has {self.min_count} times or more are kept (with --bpe N: its subwords)"
            raise DataError(f"{error}; {kept}") from error


def files_in(source: Union[str, Path], corpus: str, pattern: str, option: str) -> Dict[str, Path]:
    """The files of a folder, or of the folder named `corpus` in it, by split; `pattern` has {} for the split."""
    path = Path(source)
    if not path.exists():
        raise DataError(f"{option} {source}: no such folder or file")
    names = {split: pattern.format(split) for split in SPLITS}
    folders = (path, path / corpus)
    folder = next((f for f in folders if any((f / name).is_file() for name in names.values())), path)
    missing = [name for name in names.values() if not (folder / name).is_file()]
    if missing:
        raise DataError(f"{option} {source}: {', '.join(missing)} missing; {corpus} needs {', '.join(names.values())}")
    return {split: folder / name for split, name in names.items()}


def say(line: str) -> None:
    print(line, flush=True)
