"""Text to tokens: paragraphs of a file, words as WikiText spells them, and subwords."""

import contextlib
import io
import re
from pathlib import Path
from typing import IO, Callable, Iterable, Iterator

from ..plugin.streams import SPLITS
from .corpus import DataError, say

MAX_LINE_BYTES = 16 << 20  # a whole line is in memory, several times while it is tokenised


def check_text(path: Path) -> None:
    """Raise DataError, with the line, unless the file is UTF-8 text with a word in it."""
    if not sum(map(bool, read_paragraphs(path))):
        raise DataError(f"{path} is empty")


def read_paragraphs(path: Path) -> Iterator[str]:
    """The lines of a UTF-8 file, stripped; a blank line is an empty string. Raises DataError for what is not text.

    As for fairseq, a line ends at LF, CR LF or CR, and nowhere else: Unicode's separators are white space.
    """
    with open(path, "rb") as lines:
        for number, line in enumerate(iter(lambda: lines.readline(MAX_LINE_BYTES + 1), b""), start=1):
            if len(line) > MAX_LINE_BYTES:
                raise DataError(f"{path}, line {number}: more than {MAX_LINE_BYTES:,} bytes; a line is one paragraph")
            if b"\0" in line:
                raise DataError(f"{path}, line {number}: a NUL byte; accepted is UTF-8 text")
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise DataError(f"{path}, line {number}: not UTF-8 ({error.reason})") from error
            for paragraph in io.StringIO(text, newline=None):
                yield paragraph.strip()


def write_lines(lines: Iterable[str], path: Path) -> None:
    with open(path, "w", encoding="utf-8", newline="\n") as output:
        output.writelines(f"{line}\n" for line in lines)


def rewrite_tokens(folder: Path, of_line: Callable[[str], str]) -> None:
    """Applies a function to each line of ``{split}.tokens`` in the folder; what was there is ``{split}.words``."""
    for split in SPLITS:
        path = folder / f"{split}.tokens"
        words = path.with_suffix(".words")
        path.rename(words)
        with open(words, encoding="utf-8", newline="\n") as lines:
            write_lines((of_line(line.rstrip("\n")) for line in lines), path)


def wikitext_tokenizer() -> Callable[[str], str]:
    """A function that tokenises as WikiText is: ``well-known 1,000.5`` becomes ``well @-@ known 1 @,@ 000 @.@ 5``."""
    from sacremoses import MosesTokenizer

    moses = MosesTokenizer(lang="en")

    def tokenize(paragraph: str) -> str:
        tokens = moses.tokenize(paragraph, aggressive_dash_splits=True, return_str=True, escape=False)
        return re.sub(r"(?<=\d)([.,])(?=\d)", r" @\1@ ", tokens)

    return tokenize


def write_bpe(folder: Path, merges: int, codes: Path) -> None:
    """Learn a byte-pair encoding (Sennrich et al., 2016) on train.tokens, and apply it to all three files in place."""
    from subword_nmt.learn_bpe import learn_bpe

    say(f"learning {merges:,} merges on train")
    learned = io.StringIO()
    with open(folder / "train.tokens", encoding="utf-8") as train, contextlib.redirect_stderr(io.StringIO()):
        # It takes the max() of no pairs where every word is one character; codes without a merge say the same.
        with contextlib.suppress(ValueError):
            learn_bpe(train, learned, merges)
    if learned.getvalue().count("\n") < 2:
        raise DataError(f"--bpe {merges}: train.txt is too small, no two characters stand side by side twice")
    codes.write_text(learned.getvalue(), encoding="utf-8")
    rewrite_tokens(folder, subword_segmenter(learned))


def subword_segmenter(codes: IO[str]) -> Callable[[str], str]:
    """A function that divides the words of a line by the byte-pair encoding `codes`."""
    from subword_nmt.apply_bpe import BPE

    # WikiText's three joiners are words of their own: their at signs would read as the separator @@.
    return BPE(codes, glossaries=["@[-,.]@"]).segment
