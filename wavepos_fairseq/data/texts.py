"""Corpora that stay text, for front-ends with tokenizers of their own: train.txt, valid.txt and test.txt.

Beside these come folders of tokens, one for each tokenizer.
"""

import abc
import gzip
import json
import os
import shutil
import zlib
from pathlib import Path
from typing import Dict, Iterable, Iterator, Union

from ..common.errors import prefixing_errors
from .corpus import DataError, Source, say
from .lock import one_at_a_time


class TextCorpus(abc.ABC):
    """Text under one name."""

    name: str

    @abc.abstractmethod
    def find_text(self, source: Source, option: str) -> Dict[str, Path]:
        """The user's files, by split where each is one; none where the text comes from elsewhere.

        Raises DataError where the corpus cannot be made from `source`, which the command calls `option`.
        """

    @abc.abstractmethod
    def write_texts(self, source: Source, files: Dict[str, Path], folder: Path) -> str:
        """Write ``folder/{split}.txt``, and return where the text comes from, for the provenance."""


def write_text(parts: Iterable[str], path: Path) -> int:
    """Writes the parts one after the other; returns the number of characters."""
    length = 0
    with open(path, "w", encoding="utf-8", newline="") as output:
        for part in parts:
            output.write(part)
            length += len(part)
    return length


def ended(document: str) -> str:
    """The document with a line's end after its last line."""
    return document if document.endswith("\n") else document + "\n"


def tokens_folder(data: Path, tokenizer: Union[int, str]) -> Path:
    """The folder, in a corpus's, of what a tokenizer makes of it: a number of types, or another tokenizer's folder."""
    return data / (f"bpe-{tokenizer}" if isinstance(tokenizer, int) else f"tokens-{Path(tokenizer).name}")


def prepare_tokens(data: Path, tokenizer: Union[int, str]) -> Path:
    """The folder of what a tokenizer makes of ``data/train.txt``, made where it is missing: whole or not at all.

    tokenizer: see `hf.tokens.write_tokens`. Raises DataError where it cannot be.
    """
    target = tokens_folder(data, tokenizer)
    work = data / f".{target.name}.partial"
    with one_at_a_time(data / f".{target.name}.lock"):
        made = target / "tokenizer.txt"
        if target.exists():
            if not made.is_file() or made.read_text(encoding="utf-8") != str(tokenizer):
                raise DataError(f"{target} was made by another tokenizer; move or remove it")
            return target
        from ..hf.tokens import write_tokens

        shutil.rmtree(work, ignore_errors=True)
        work.mkdir()
        try:
            say(f"{target}: tokenising {data / 'train.txt'}")
            with prefixing_errors(str(data)):
                count = write_tokens(data / "train.txt", tokenizer, work)
            (work / made.name).write_text(str(tokenizer), encoding="utf-8")
            os.rename(work, target)
        finally:
            shutil.rmtree(work, ignore_errors=True)
    say(f"{target}: {count:,} tokens")
    return target


def read_documents(path: Path) -> Iterable[str]:
    """The text of a file, or the documents in the lines of .jsonl and .json.gz (``text`` or ``content``).

    Raises DataError with the line for what is neither, and for an empty file.
    """
    found = False
    for number, line in enumerate(_lines(path), start=1):
        try:
            text = line.decode("utf-8")
        except UnicodeDecodeError as error:
            raise DataError(f"{path}, line {number}: not UTF-8 ({error.reason})") from error
        if path.name.endswith((".jsonl", ".json.gz")):
            text = ended(_document(text, f"{path}, line {number}"))
        found = found or not text.isspace()
        yield text
    if not found:
        raise DataError(f"{path} is empty")


def _lines(path: Path) -> Iterator[bytes]:
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as lines:
            yield from lines
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{path}: no whole gzip file ({error})") from error


def _document(line: str, where: str) -> str:
    try:
        content = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: not JSON ({error})") from error
    given = content if isinstance(content, dict) else {}
    text = given.get("text", given.get("content"))
    if not isinstance(text, str):
        raise DataError(f"{where}: accepted is an object whose text or content is text")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:  # half of a pair, which JSON can spell
        raise DataError(f"{where}: no text ({error.reason})") from error
    return text
