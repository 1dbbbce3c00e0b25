"""The source of Python's standard library: code that every Python carries, for long contexts without a network.

It stands in for CodeParrot as the demo stands in for WikiText. Whole files go to one split. It depends on the version
of Python, not on the machine: what is made for one machine is left out, and so are tests and pydoc's prose.
"""

import sysconfig
import tokenize
from pathlib import Path
from typing import Dict, List

from ..plugin.streams import SPLITS
from .corpus import DataError, Source, say
from .demo import NOT_LIBRARY, split_documents
from .texts import TextCorpus, ended, write_text

MIN_TRAIN_CHARACTERS = 2_000_000


class PythonSource(TextCorpus):
    """Files of the standard library, in the order of their modules' names."""

    name = "python-source"

    def find_text(self, source: Source, option: str) -> Dict[str, Path]:
        if source is not None:
            raise DataError(f"{option} {source}: python-source is always made from the source of Python itself")
        return {}

    def write_texts(self, source: Source, files: Dict[str, Path], folder: Path) -> str:
        say("collecting the source of Python's standard library")
        splits = split_documents(library_files(Path(sysconfig.get_paths()["stdlib"])))
        written = {split: write_text(splits[split], folder / f"{split}.txt") for split in SPLITS}
        if written["train"] < MIN_TRAIN_CHARACTERS:
            raise DataError(
                f"python-source: this Python's standard library gives only {written['train']:,} characters, at least "
                f"{MIN_TRAIN_CHARACTERS:,} are needed; it seems to be installed without its .py files. Use the name "
                "documents, with text of your own"
            )
        return "Python's standard library"


def library_files(library: Path) -> Dict[str, List[str]]:
    """The text of each module under `library`, by its name; those that cannot be read as text are left out."""
    found = {}
    for path in library.rglob("*.py"):
        module = path.relative_to(library).with_suffix("").parts
        made_here = any(part.startswith(("config-", "_sysconfigdata")) for part in module)
        if made_here or not {*NOT_LIBRARY, "pydoc_data"}.isdisjoint(module):
            continue
        try:
            with tokenize.open(str(path)) as file:
                found[".".join(module)] = [ended(file.read())]
        except (SyntaxError, UnicodeDecodeError):
            continue
    return {name: found[name] for name in sorted(found)}
