"""English text of the user's own, tokenised as WikiText is."""

import re
from pathlib import Path
from typing import Dict

from .corpus import Corpus, DataError, Source, files_in, say
from .download import is_url
from .tokens import read_paragraphs, wikitext_tokenizer, write_lines

FAIRSEQ_SYMBOL = re.compile("</?s>|<pad>|<unk>")


class OwnText(Corpus):
    """A folder with train.txt, valid.txt and test.txt."""

    name = "text"
    packages = ("sacremoses",)
    takes_bpe = True

    def find_text(self, source: Source, option: str) -> Dict[str, Path]:
        if source is None or is_url(source):
            given = "is missing" if source is None else source
            raise DataError(f"{option} {given}: text needs a folder with train.txt, valid.txt and test.txt")
        return files_in(source, self.name, "{}.txt", option)

    def write_tokens(self, source: Source, files: Dict[str, Path], folder: Path, downloads: Path) -> str:
        """Tokenise each file.

        One of fairseq's symbols in the text is divided like any other text, ``< pad >``: a padding inside a text stops
        a training. The user, who may have meant the symbol, is told.
        """
        tokenize = wikitext_tokenizer()
        for split, path in files.items():
            say(f"tokenising {path.name}")
            write_lines(map(tokenize, read_paragraphs(path)), folder / f"{split}.tokens")
            for number, paragraph in enumerate(read_paragraphs(path), start=1):
                symbol = FAIRSEQ_SYMBOL.search(paragraph)
                if symbol:
                    text = tokenize(symbol[0])
                    say(f"{path}, line {number}: {symbol[0]} becomes {text}, and is not fairseq's symbol")
                    break
        return Path(str(source)).resolve().name
