"""The paper's texts for its Llamas (section 7): RedPajama's sample to train on, CodeParrot's to evaluate on."""

from itertools import islice
from pathlib import Path
from typing import Dict, Iterator

from .corpus import DataError, Source
from .texts import TextCorpus, read_documents, write_text

TRAIN, VALID = "togethercomputer/RedPajama-Data-1T-Sample", "codeparrot/codeparrot-clean-valid"
FILES = {TRAIN: "*.jsonl", VALID: "*.json.gz"}


class RedPajama(TextCorpus):
    """Two data sets of the hub, or a folder that has both.

    train is all of the first, file by file. The second has documents for valid and, every other one, for test, of which
    the paper says nothing.
    """

    name = "redpajama"

    def find_text(self, source: Source, option: str) -> Dict[str, Path]:
        if source is None:
            return {}
        paths = {of: sorted(folder_of(source, of).glob(pattern)) for of, pattern in FILES.items()}
        missing = [f"{folder_of(source, of).name}/{FILES[of]}" for of, found in paths.items() if not found]
        if missing:
            raise DataError(f"{option} {source}: no {' and no '.join(missing)}; redpajama needs a folder that has both")
        return {f"{path.parent.name}/{path.name}": path for found in paths.values() for path in found}

    def write_texts(self, source: Source, files: Dict[str, Path], folder: Path) -> str:
        found = {
            of: downloaded(of, pattern) if source is None else folder_of(source, of) for of, pattern in FILES.items()
        }
        write_text(documents(found[TRAIN], FILES[TRAIN]), folder / "train.txt")
        for first, split in enumerate(("valid", "test")):
            write_text(islice(documents(found[VALID], FILES[VALID]), first, None, 2), folder / f"{split}.txt")
        if source is None:
            return ", ".join(f"{data_set} at {path.name}" for data_set, path in found.items())
        return Path(source).resolve().name


def folder_of(source: Source, data_set: str) -> Path:
    return Path(str(source), data_set.rpartition("/")[2])


def downloaded(data_set: str, pattern: str) -> Path:
    both = " and ".join(folder_of("", of).name for of in FILES)
    instead = f"wavepos prepare redpajama --from FOLDER takes {both} as folders in it"
    try:
        from ..hf.hub import dataset_folder

        folder = dataset_folder(data_set, pattern)
    except (ImportError, ValueError) as error:
        raise DataError(f"{error}; {instead}") from error
    if not any(folder.glob(pattern)):
        raise DataError(f"{data_set} on the hub has no {pattern}; {instead}")
    return folder


def documents(folder: Path, pattern: str) -> Iterator[str]:
    for path in sorted(folder.glob(pattern)):
        yield from read_documents(path)
