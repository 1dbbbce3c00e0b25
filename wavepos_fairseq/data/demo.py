"""The demo corpus: the documentation of Python's standard library. It needs no network.

The text is English prose from pydoc's topics and from docstrings; no module is imported for it. It depends on the
version of Python, not on the machine.
"""

import ast
import re
import sysconfig
import warnings
import zlib
from pathlib import Path
from typing import Dict, List, Mapping, Sequence

from ..plugin.streams import SPLITS
from .corpus import Corpus, DataError, Source, say
from .tokens import wikitext_tokenizer, write_lines

MIN_TRAIN_TOKENS = 100_000
NOT_LIBRARY = ("test", "tests", "idle_test", "site-packages", "dist-packages")
PLAIN_WORD = re.compile(r"""["'(*`]*[A-Za-z]+(['’-][A-Za-z]+)*["')*`.,:;!?]*""")  # with its punctuation


class Demo(Corpus):
    """Whole modules and topics go to one split, tokenised as WikiText is."""

    name = "demo"
    packages = ("sacremoses",)

    def find_text(self, source: Source, option: str) -> Dict[str, Path]:
        if source is not None:
            raise DataError(f"{option} {source}: demo is always made from the documentation of Python itself")
        return {}

    def write_tokens(self, source: Source, files: Dict[str, Path], folder: Path, downloads: Path) -> str:
        say("collecting the documentation of Python's standard library")
        tokenize = wikitext_tokenizer()
        splits = split_documents(demo_documents())
        for split in SPLITS:
            write_lines(map(tokenize, splits[split]), folder / f"{split}.tokens")
        with open(folder / "train.tokens", encoding="utf-8") as lines:
            tokens = sum(len(line.split()) + 1 for line in lines)
        if tokens < MIN_TRAIN_TOKENS:
            raise DataError(
                f"demo: this Python's standard library gives only {tokens:,} tokens, at least {MIN_TRAIN_TOKENS:,} are "
                "needed; it seems to be installed without its .py files or docstrings. Use the name text, with text of "
                "your own"
            )
        return "Python's standard library"


def demo_documents() -> Dict[str, List[str]]:
    """Paragraphs of pydoc's topics and of docstrings, by topic or module; a paragraph that comes again is left out."""
    try:
        from pydoc_data import topics as pydoc

        topics = pydoc.topics
    except ImportError:  # left out of some embedded Pythons
        topics = {}
    documents = {f"pydoc_data.topics.{topic}": prose(text) for topic, text in topics.items()}
    documents.update(docstring_documents(Path(sysconfig.get_paths()["stdlib"])))
    seen = set()
    unique = {}
    for name in sorted(documents):
        unique[name] = [p for p in dict.fromkeys(documents[name]) if p not in seen]
        seen.update(unique[name])
    return unique


def docstring_documents(library: Path) -> Dict[str, List[str]]:
    """Prose of the docstrings of each module under ``library`` except tests and installed packages."""
    documents = {}
    for path in library.rglob("*.py"):
        module = path.relative_to(library).with_suffix("").parts
        if {*NOT_LIBRARY}.isdisjoint(module):
            documents[".".join(module)] = [p for text in docstrings(path.read_bytes()) for p in prose(text)]
    return documents


def docstrings(code: bytes) -> List[str]:
    """Docstrings of a module, its classes and functions, in the order of the file; none where it does not parse."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(code)
    except (SyntaxError, ValueError):
        return []
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    nodes = sorted((n for n in ast.walk(tree) if isinstance(n, documented)), key=lambda n: getattr(n, "lineno", 0))
    return [text for text in map(ast.get_docstring, nodes) if text]


def prose(text: str) -> List[str]:
    """The paragraphs of a docstring that read as English, each on one line.

    A paragraph ends at a doctest, and underlines are dropped. A paragraph is kept if it has at least five plain words,
    if they are more than 60% of it, and if it ends as a sentence does. Code, tables, signatures and headings are not.
    """
    paragraphs = []
    for block in re.split(r"\n\s*\n", text):
        before_doctest = re.split(r"^\s*>>>", block, flags=re.MULTILINE)[0]
        chunks = " ".join(line for line in before_doctest.splitlines() if re.search(r"\w", line)).split()
        words = [chunk for chunk in chunks if PLAIN_WORD.fullmatch(chunk)]
        if len(words) >= 5 and len(words) > 0.6 * len(chunks) and chunks[-1][-1] in ".:!?)":
            paragraphs.append(" ".join(chunks))
    return paragraphs


def split_documents(documents: Mapping[str, Sequence[str]]) -> Dict[str, List[str]]:
    """Whole documents to train, valid and test, about 14 : 1 : 1, by a checksum of the name: the same in any Python."""
    splits: Dict[str, List[str]] = {split: [] for split in SPLITS}
    for name, paragraphs in documents.items():
        splits[{0: "valid", 1: "test"}.get(zlib.crc32(name.encode()) % 16, "train")].extend(paragraphs)
    return splits
