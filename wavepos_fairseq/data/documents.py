"""The user's own documents, as they are: JSON lines or plain text."""

from pathlib import Path
from typing import Dict

from ..plugin.streams import SPLITS
from .corpus import DataError, Source
from .download import is_url
from .texts import TextCorpus, read_documents, write_text


class Documents(TextCorpus):
    """A folder with train, valid and test, each as .txt or .jsonl; nothing is cleaned or tokenised."""

    name = "documents"

    def find_text(self, source: Source, option: str) -> Dict[str, Path]:
        accepted = "documents needs a folder with train, valid and test, each as .txt or .jsonl"
        if source is None or is_url(source) or not Path(source).is_dir():
            raise DataError(f"{option} {'is missing' if source is None else source}: {accepted}")
        files = {}
        for split in SPLITS:
            named = [path for path in (Path(source, f"{split}.{kind}") for kind in ("txt", "jsonl")) if path.is_file()]
            if len(named) != 1:
                what = "both of them there" if named else "missing"
                raise DataError(f"{option} {source}: {split}.txt or {split}.jsonl {what}; {accepted}")
            files[split] = named[0]
        return files

    def write_texts(self, source: Source, files: Dict[str, Path], folder: Path) -> str:
        for split, path in files.items():
            write_text(read_documents(path), folder / f"{split}.txt")
        return Path(str(source)).resolve().name
