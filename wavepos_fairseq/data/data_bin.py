"""A corpus as a fairseq data-bin folder, made by fairseq-preprocess: whole or not at all, by one process at a time."""

import json
import os
import platform
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Dict, Mapping, Optional, Union

from ..common import child
from ..plugin.streams import SPLITS, count
from .characters import Characters
from .corpus import Corpus, DataError, Source, say
from .demo import Demo
from .documents import Documents
from .download import file_digest
from .lock import one_at_a_time
from .own_text import OwnText
from .python_source import PythonSource
from .recall import Recall
from .redpajama import RedPajama
from .texts import TextCorpus
from .tokens import check_text, write_bpe
from .wikitext import WIKITEXT

WORDS: Dict[str, Corpus] = {**WIKITEXT, Demo.name: Demo(), Recall.name: Recall(), OwnText.name: OwnText()}
CHARACTERS = {
    corpus.name: corpus
    for corpus in (
        Characters(
            WIKITEXT["wikitext-2"], tokens={"train": 10_780_437, "valid": 1_120_192, "test": 1_255_018}, types=134
        ),
        Characters(WIKITEXT["wikitext-103"], tokens={"valid": 1_140_678, "test": 1_279_333}),
        Characters(WORDS["text"]),
    )
}
TEXTS: Dict[str, TextCorpus] = {corpus.name: corpus for corpus in (PythonSource(), RedPajama(), Documents())}
CORPORA: Dict[str, Union[Corpus, TextCorpus]] = {**WORDS, **CHARACTERS, **TEXTS}
NAMES = tuple(CORPORA)
TEXT_FILES = ("provenance.json", *(f"{split}.txt" for split in SPLITS))
DATA_BIN_FILES = ("dict.txt", "provenance.json", *(f"{split}.{ext}" for split in SPLITS for ext in ("bin", "idx")))
BYTES_PER_WORKER = 64 << 20  # fairseq-preprocess gets one worker for each 64 MiB of train


def prepare(
    name: str,
    source: Source = None,
    dest: Path = Path("data"),
    bpe: Optional[int] = None,
    option: str = "--from",
) -> Path:
    """Make the data-bin folder ``dest/name``, or find it made from the same text, and return it.

    Args:
        name: "wikitext-103", "wikitext-2", "demo", "recall" or "text"; those of WikiText and "text" also with
            "-characters" for one token a character; or a corpus that stays text (see `texts`), "python-source",
            "redpajama" or "documents".
        source: for WikiText a folder with wiki.{train,valid,test}.tokens, its zip archive, or the archive's URL
            (default: downloaded, see `wikitext`); for "text" a folder with train.txt, valid.txt and test.txt.
        dest: folder of data-bin folders; made where missing.
        bpe: number of merges of a byte-pair encoding learned on train; only for "text". Default: words.
        option: what the command calls ``source``, for its messages.

    Raises:
        DataError: wrong request, unusable source, wrong checksum or counts, failing fairseq-preprocess; nothing is
            then left at ``dest/name``.
    """
    corpus = corpus_for(name, bpe)
    files = corpus.find_text(source, option)
    source_sha256 = sha256_of(files)
    target = dest / name
    with one_at_a_time(target.with_name(f".{name}.lock")):
        if target.exists():
            check_same_request(target, name, bpe, source_sha256)
            say(f"{target}: already prepared")
            return target
        work = target.with_name(f".{name}.partial")
        shutil.rmtree(work, ignore_errors=True)
        try:
            if isinstance(corpus, TextCorpus):
                make_texts(work, corpus, source, files)
            else:
                make_data_bin(work, corpus, source, files, bpe)
            os.rename(work / "data-bin", target)
        finally:
            shutil.rmtree(work, ignore_errors=True)
    say(f"{target}: ready")
    return target


def corpus_for(name: str, bpe: Optional[int]) -> Union[Corpus, TextCorpus]:
    if name not in CORPORA:
        raise DataError(f"unknown corpus {name!r}; accepted: {', '.join(NAMES)}")
    takers = [corpus.name for corpus in (*WORDS.values(), *CHARACTERS.values()) if corpus.takes_bpe]
    if bpe is not None and name not in takers:
        accepted = ", ".join(takers)
        raise DataError(f"--bpe {bpe}: only {accepted} takes it, not {name}")
    if bpe is not None and bpe < 1:
        raise DataError(f"--bpe {bpe}: the number of merges is 1 or more")
    return CORPORA[name]


def check_same_request(target: Path, name: str, bpe: Optional[int], source_sha256: Mapping[str, str]) -> None:
    """Raise unless ``target`` is ``name``, complete, made with ``bpe`` and, if given, from that text."""
    needed, what = (TEXT_FILES, "corpus") if name in TEXTS else (DATA_BIN_FILES, "data-bin")
    lacking = [file_name for file_name in needed if not (target / file_name).is_file()]
    if lacking:
        raise DataError(f"{target} exists, but is no complete {what} (no {', '.join(lacking)}); move or remove it")
    try:
        made = json.loads((target / "provenance.json").read_text(encoding="utf-8"))
        asked = {"name": name, "bpe": bpe, "source_sha256": dict(source_sha256) or made["source_sha256"]}
        same = all(made[key] == asked[key] for key in asked)
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{target}/provenance.json is not readable ({error!r}); move or remove {target}") from error
    if not same:
        raise DataError(
            f"{target} was made from something else (name {made['name']}, source {made['source']}, bpe {made['bpe']}); "
            "move or remove it, or have scripts/prepare_data.sh make another with --dest"
        )


def make_texts(work: Path, corpus: TextCorpus, source: Source, files: Dict[str, Path]) -> None:
    """Make ``work/data-bin``, which is no data-bin but three texts."""
    folder = work / "data-bin"
    folder.mkdir(parents=True)
    origin = corpus.write_texts(source, files, folder)
    sha256 = sha256_of({split: folder / f"{split}.txt" for split in SPLITS})
    sizes = {split: (folder / f"{split}.txt").stat().st_size for split in SPLITS}
    provenance = {
        "name": corpus.name,
        "source": origin,
        "bpe": None,
        "source_sha256": sha256_of(files) or sha256,
        "sha256": sha256,
        "bytes": sizes,
        "versions": {"python": platform.python_version()},
    }
    (folder / "provenance.json").write_text(json.dumps(provenance, indent=2) + "\n", encoding="utf-8")
    for split, size in sizes.items():
        say(f"{split}.txt: {size:,} bytes")


def make_data_bin(work: Path, corpus: Corpus, source: Source, files: Dict[str, Path], bpe: Optional[int]) -> None:
    """Make ``work/data-bin``; the text that fairseq-preprocess reads goes to ``work/text``."""
    for path in files.values():  # all before the first is used, so that an error in the last comes at once
        check_text(path)
    text, data_bin = work / "text", work / "data-bin"
    text.mkdir(parents=True)
    data_bin.mkdir()
    origin = corpus.write_tokens(source, files, text, downloads=work.with_name(".downloads"))
    if bpe:
        write_bpe(text, bpe, data_bin / "bpe.codes")
    fairseq_preprocess(work, min_count=0 if bpe else corpus.min_count)
    counts = count(data_bin)
    for split in SPLITS:
        say(f"fairseq-preprocess: {split} {counts.tokens[split]:,} tokens in {counts.lines[split]:,} lines")
    say(f"fairseq-preprocess: {counts.types:,} types")
    corpus.check(data_bin, counts)

    sha256 = sha256_of({split: text / f"{split}.tokens" for split in SPLITS})
    packages = [*corpus.packages, *(["subword-nmt"] if bpe else [])]
    provenance = {
        "name": corpus.name,
        "source": origin,
        "bpe": bpe,
        "unit": "subword" if bpe else corpus.unit,
        "source_sha256": sha256_of(files) or sha256,
        "sha256": sha256,
        **counts._asdict(),
        "versions": {"python": platform.python_version(), **{package: version(package) for package in packages}},
    }
    (data_bin / "provenance.json").write_text(json.dumps(provenance, indent=2) + "\n", encoding="utf-8")


def fairseq_preprocess(work: Path, min_count: int) -> None:
    """Binarise ``work/text`` into ``work/data-bin``, with <unk> for words that train has fewer than min_count times.

    It runs inside ``work``, on relative paths: its log then names no folder of this machine, and it cannot trip over
    a comma in the user's paths, which it takes for a separator.
    """
    import joblib  # which imports NumPy

    workers = (work / "text/train.tokens").stat().st_size // BYTES_PER_WORKER
    workers = max(1, min(workers, joblib.cpu_count()))
    command = [sys.executable, child.__file__, str(os.getpid()), "fairseq_cli.preprocess"]  # it ends with this process
    command += ["--only-source", "--destdir", "data-bin"]
    command += [arg for split in SPLITS for arg in (f"--{split}pref", f"text/{split}.tokens")]
    command += ["--thresholdsrc", str(min_count), "--workers", str(workers)]
    say(f"fairseq-preprocess: running, workers: {workers}")
    log = work / "fairseq-preprocess.log"
    with open(log, "w", encoding="utf-8") as output:
        done = subprocess.run(command, cwd=work, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT)
    if done.returncode:
        last_lines = log.read_text(encoding="utf-8", errors="replace").splitlines()[-20:]
        raise DataError("\n  ".join([f"fairseq-preprocess failed with status {done.returncode}:", *last_lines]))


def sha256_of(files: Mapping[str, Path]) -> Dict[str, str]:
    return {split: file_digest(path, "sha256") for split, path in files.items()}
