"""Any corpus as characters, one token each; it goes by its name with -characters at the end."""

import dataclasses
from pathlib import Path
from typing import Dict

from ..plugin.streams import BLANK, Counts
from .corpus import Corpus, DataError, Source, say
from .tokens import rewrite_tokens

ENDING = "-characters"


@dataclasses.dataclass(frozen=True)
class Characters(Corpus):
    """The characters of the lines that `words` writes, its blanks as BLANK. A line's end stays ``</s>``.

    tokens, types: the counts to find, as in `Counts`, where they are known.
    """

    words: Corpus
    tokens: Dict[str, int] = dataclasses.field(default_factory=dict)
    types: int = 0

    unit = "character"
    min_count = 20  # rarer characters become <unk>: in WikiText-2 0.008% of all

    @property
    def name(self) -> str:  # type: ignore[override]
        return self.words.name + ENDING

    @property
    def packages(self):  # type: ignore[override]
        return self.words.packages

    def find_text(self, source: Source, option: str) -> Dict[str, Path]:
        return self.words.find_text(source, option)

    def write_tokens(self, source: Source, files: Dict[str, Path], folder: Path, downloads: Path) -> str:
        origin = self.words.write_tokens(source, files, folder, downloads)
        rewrite_tokens(folder, spelled_out)
        return origin

    def check(self, data_bin: Path, counts: Counts) -> None:
        super().check(data_bin, counts)
        expected = {**{f"{split} tokens": number for split, number in self.tokens.items()}, "types": self.types}
        found = {**{f"{split} tokens": number for split, number in counts.tokens.items()}, "types": counts.types}
        wrong = [
            f"{what}: expected {number:,}, found {found[what]:,}"
            for what, number in expected.items()
            if number and found[what] != number
        ]
        if wrong:
            raise DataError(f"these are not the characters of {self.words.name} ({'; '.join(wrong)})")
        if self.tokens:
            say(f"{self.name}: the counts of {', '.join(self.tokens)} are right")


def spelled_out(line: str) -> str:
    """``No way`` as ``N o ▁ w a y``."""
    return " ".join(BLANK if character.isspace() else character for character in line)
