"""Corpora as fairseq data-bin folders: fetch, verify, tokenise, binarise.

    python -m wavepos_fairseq.data wikitext-103                    WikiText-103 (Merity et al. 2017), the paper's corpus
    python -m wavepos_fairseq.data wikitext-2 --from FOLDER        the same articles, a fiftieth of the training text
    python -m wavepos_fairseq.data text --from FOLDER --bpe 8000   your own English text
    python -m wavepos_fairseq.data demo                            needs no network: Python's own documentation

DEST/NAME is the data-bin. It appears there whole or not at all, with a provenance.json that says what it was made from.
The dictionary and the binaries are fairseq-preprocess's; this module only gives it text and checks what comes out.
It does not clean text, split it into sentences or tokenise languages other than English.
"""

import argparse
import ast
import contextlib
import fcntl
import hashlib
import http.client
import io
import json
import logging
import lzma
import os
import platform
import re
import shutil
import stat
import subprocess
import sys
import sysconfig
import time
import urllib.error
import urllib.parse
import urllib.request
import warnings
import zipfile
import zlib
from importlib.metadata import version
from pathlib import Path
from typing import IO, Callable, Dict, Iterable, Iterator, List, Mapping, NamedTuple, Optional, Sequence, Union

from .. import __version__
from ..common import child, commands

SPLITS = ("train", "valid", "test")
DATA_BIN_FILES = ("dict.txt", "provenance.json", *(f"{split}.{ext}" for split in SPLITS for ext in ("bin", "idx")))


class Counts(NamedTuple):
    """What a data-bin holds. Tokens include one </s> a line; types are the words of dict.txt, <unk> and </s>."""

    lines: Dict[str, int]
    tokens: Dict[str, int]
    types: int


class WikiText(NamedTuple):
    """What identifies a WikiText corpus: the MD5 of its zip archive, and its counts."""

    md5: str
    train_lines: int
    tokens: Dict[str, int]
    types: int


# Types as Merity et al. count them. fairseq's "Dictionary: 33280 types" for WikiText-2 adds <s> and <pad>, and where
# that is not a multiple of 8 (267,737 for WikiText-103) it also adds words that never occur (267,744).
WIKITEXT = {
    "wikitext-103": WikiText(
        md5="9ddaacaf6af0710eda8c456decff7832",
        train_lines=1_801_350,
        tokens={"train": 103_227_021, "valid": 217_646, "test": 245_569},
        types=267_735,
    ),
    "wikitext-2": WikiText(
        md5="542ccefacc6c27f945fb54453812b3cd",
        train_lines=36_718,
        tokens={"train": 2_088_628, "valid": 217_646, "test": 245_569},
        types=33_278,
    ),
}
NAMES = (*WIKITEXT, "demo", "text")
MIRRORS = ("https://wikitext.smerity.com/", "https://s3.amazonaws.com/research.metamind.io/wikitext/")

USER_AGENT = f"wavepos-fairseq/{__version__}"  # the first mirror answers 403 to urllib's own
TIMEOUT_SECONDS = 30
ATTEMPTS_PER_MIRROR = 5
MAX_BYTES = 4 << 30  # of a download, and of the text in an archive; WikiText-103 has 0.5 GiB of text
MAX_LINE_BYTES = 16 << 20  # a line is in memory as a whole, several times while it is tokenised
MIN_COUNT = 3  # WikiText: a word that train has fewer times than this becomes <unk>
DEMO_MIN_TRAIN_TOKENS = 100_000
FAIRSEQ_SYMBOL = re.compile("</?s>|<pad>|<unk>")
PLAIN_WORD = re.compile(r"""["'(*`]*[A-Za-z]+(['’-][A-Za-z]+)*["')*`.,:;!?]*""")  # with its punctuation
BYTES_PER_WORKER = 64 << 20  # fairseq-preprocess gets one worker for each 64 MiB of train


class DataError(ValueError):
    """The request or the data is wrong; the message is for the user."""


def prepare(
    name: str,
    source: Union[str, Path, None] = None,
    dest: Union[str, Path] = Path("data"),
    bpe: Optional[int] = None,
    option: str = "--from",
) -> Path:
    """Make the data-bin folder ``dest/name``, or find it made from the same text, and return it.

    Args:
        name: "wikitext-103", "wikitext-2", "demo" or "text".
        source: for WikiText a folder with wiki.{train,valid,test}.tokens, its zip archive, or the archive's URL
            (default: downloaded from `MIRRORS`); for "text" a folder with train.txt, valid.txt and test.txt.
        dest: folder of data-bin folders; made where missing.
        bpe: number of merges of a byte-pair encoding learned on train; only for "text". Default: words.
        option: what the command calls ``source``, for its messages.

    Raises:
        DataError: wrong request, unusable source, wrong checksum or counts, failing fairseq-preprocess; nothing is
            then left at ``dest/name``.
    """
    check_request(name, source, bpe, option)
    files = source_files(name, source, option)
    source_sha256 = sha256_of(files)
    target = Path(dest) / name
    with one_at_a_time(target.with_name(f".{name}.lock")):
        if target.exists():
            check_same_request(target, name, bpe, source_sha256)
            say(f"{target}: already prepared")
            return target
        work = target.with_name(f".{name}.partial")
        shutil.rmtree(work, ignore_errors=True)
        try:
            make_data_bin(work, name, source, files, bpe)
            os.rename(work / "data-bin", target)
        finally:
            shutil.rmtree(work, ignore_errors=True)
    say(f"{target}: ready")
    return target


def check_request(name: str, source: Union[str, Path, None], bpe: Optional[int], option: str) -> None:
    if name not in NAMES:
        raise DataError(f"unknown corpus {name!r}; accepted: {', '.join(NAMES)}")
    if name == "demo" and source is not None:
        raise DataError(f"{option} {source}: demo is made from Python's own documentation and of no other text")
    if name == "text" and (source is None or is_url(source)):
        given = "is missing" if source is None else source
        raise DataError(f"{option} {given}: text needs a folder with train.txt, valid.txt and test.txt")
    if bpe is not None and name != "text":
        raise DataError(f"--bpe {bpe}: only text takes it; {name} is made of words")
    if bpe is not None and bpe < 1:
        raise DataError(f"--bpe {bpe}: the number of merges is 1 or more")


def source_files(name: str, source: Union[str, Path, None], option: str) -> Dict[str, Path]:
    """The three text files where ``source`` is a folder, by split; empty where it is an archive, a URL or None."""
    if source is None or is_url(source):
        return {}
    path = Path(source)
    if not path.exists():
        raise DataError(f"{option} {source}: no such folder or file")
    if path.is_file() and name in WIKITEXT:
        return {}
    names = {split: f"{split}.txt" if name == "text" else f"wiki.{split}.tokens" for split in SPLITS}
    folders = (path, path / name)
    folder = next((f for f in folders if any((f / file_name).is_file() for file_name in names.values())), path)
    missing = [file_name for file_name in names.values() if not (folder / file_name).is_file()]
    if missing:
        raise DataError(f"{option} {source}: {', '.join(missing)} missing; {name} needs {', '.join(names.values())}")
    return {split: folder / file_name for split, file_name in names.items()}


def check_same_request(target: Path, name: str, bpe: Optional[int], source_sha256: Mapping[str, str]) -> None:
    """Raise unless ``target`` is a complete data-bin of ``name``, made with ``bpe`` and, if given, from that text."""
    lacking = [file_name for file_name in DATA_BIN_FILES if not (target / file_name).is_file()]
    if lacking:
        raise DataError(f"{target} exists, but is no complete data-bin (no {', '.join(lacking)}); move or remove it")
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


def make_data_bin(
    work: Path, name: str, source: Union[str, Path, None], files: Mapping[str, Path], bpe: Optional[int]
) -> None:
    """Make ``work/data-bin``; the text that fairseq-preprocess reads goes to ``work/text``."""
    for path in files.values():  # all before the first is used, so that an error in the last comes at once
        check_text(path)
    text, data_bin = work / "text", work / "data-bin"
    text.mkdir(parents=True)
    data_bin.mkdir()
    tokenizers = []  # names of the packages whose version decides on the tokens
    if name == "demo":
        write_demo(text)
        tokenizers = ["sacremoses"]
    elif name == "text":
        write_own_text(files, text)
        tokenizers = ["sacremoses"]
        if bpe:
            write_bpe(text, bpe, data_bin / "bpe.codes")
            tokenizers.append("subword-nmt")
    elif files:
        for split, path in files.items():
            (text / f"{split}.tokens").symlink_to(path.resolve())
    else:
        unpack(wikitext_archive(name, source, downloads=work.with_name(".downloads")), text)

    fairseq_preprocess(work, min_count=0 if name in WIKITEXT or bpe else MIN_COUNT)
    counts = count(data_bin)
    for split in SPLITS:
        say(f"fairseq-preprocess: {split} {counts.tokens[split]:,} tokens in {counts.lines[split]:,} lines")
    say(f"fairseq-preprocess: {counts.types:,} types")
    if name in WIKITEXT:
        check_counts(name, counts)
        say(f"{name}: all counts are right")
    else:
        check_words(data_bin)

    sha256 = sha256_of({split: text / f"{split}.tokens" for split in SPLITS})
    provenance = {
        "name": name,
        "source": source_label(name, source),
        "bpe": bpe,
        "source_sha256": sha256_of(files) or sha256,
        "sha256": sha256,
        **counts._asdict(),
        "versions": {"python": platform.python_version(), **{package: version(package) for package in tokenizers}},
    }
    (data_bin / "provenance.json").write_text(json.dumps(provenance, indent=2) + "\n", encoding="utf-8")


def source_label(name: str, source: Union[str, Path, None]) -> str:
    """The source as given, without what should not travel: folders of this machine, credentials of a URL."""
    if source is None:
        return "Python's standard library" if name == "demo" else f"{name}-v1.zip"
    if not is_url(source):
        return Path(source).resolve().name
    url = urllib.parse.urlsplit(str(source))
    return f"{url.scheme}://{url.netloc.rpartition('@')[2]}{url.path}"


# fairseq-preprocess


def fairseq_preprocess(work: Path, min_count: int) -> None:
    """Binarise ``work/text`` into ``work/data-bin``, with <unk> for words that train has fewer than min_count times.

    It runs inside ``work``, on relative paths: its log then names no folder of this machine, and it cannot trip over
    a comma in the user's paths, which it takes for a separator.
    """
    import joblib  # which takes NumPy along

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


def count(data_bin: Path) -> Counts:
    """Counts of the binaries themselves, not of the text or of a log."""
    logging.getLogger("fairseq").setLevel(logging.WARNING)  # on import it recommends packages for speech
    from fairseq.data.indexed_dataset import MMapIndexedDataset

    lines, tokens = {}, {}
    for split in SPLITS:
        index = MMapIndexedDataset.Index(str(data_bin / f"{split}.idx"))  # unmaps its sizes when it goes: keep it
        lines[split], tokens[split] = len(index), int(index.sizes.sum())
    with open(data_bin / "dict.txt", encoding="utf-8") as dictionary:
        words = sum(not line.endswith(" 0\n") for line in dictionary)  # count 0: added to make the size a multiple of 8
    return Counts(lines, tokens, types=words + 2)


def check_words(data_bin: Path) -> None:
    """Raise where a split is nothing but <unk>, which any model would foretell, at a perplexity near 1."""
    from fairseq.data import Dictionary
    from fairseq.data.indexed_dataset import MMapIndexedDataset

    first_word = Dictionary().nspecial
    for split in SPLITS:
        if not any((line >= first_word).any() for line in MMapIndexedDataset(str(data_bin / split))):
            raise DataError(
                f"{split} would be nothing but <unk>: it has no word that train has {MIN_COUNT} times or more "
                "(with --bpe N: no subword that train has)"
            )


def check_counts(name: str, counts: Counts) -> None:
    """Raise unless the counts are those of the WikiText corpus ``name``."""
    expected = WIKITEXT[name]
    pairs = {f"{split} tokens": (counts.tokens[split], expected.tokens[split]) for split in SPLITS}
    pairs["train lines"] = (counts.lines["train"], expected.train_lines)
    pairs["types"] = (counts.types, expected.types)
    wrong = [f"{what}: expected {want:,}, found {found:,}" for what, (found, want) in pairs.items() if found != want]
    if wrong:
        raise DataError(f"this is not {name} ({'; '.join(wrong)}); for text of your own use the name text")


# WikiText


def wikitext_archive(name: str, source: Union[str, Path, None], downloads: Path) -> Path:
    """The zip archive of ``name``, local or downloaded, after its checksum was found right."""
    if source is None:
        return fetch(name, [f"{mirror}{name}-v1.zip" for mirror in MIRRORS], downloads)
    if is_url(source):
        return fetch(name, [str(source)], downloads)
    try:
        check_md5(Path(source), WIKITEXT[name].md5)
    except DataError as error:
        raise DataError(
            f"{source} is not the archive {name}-v1.zip: {error}. "
            f"Of a folder with the unpacked wiki.*.tokens only the counts are checked"
        ) from error
    return Path(source)


def fetch(name: str, urls: Sequence[str], downloads: Path) -> Path:
    """Download the archive of ``name`` to ``downloads/name.zip``, which has the right checksum (see `fetch_file`)."""
    instead = f"scripts/prepare_data.sh {name} --from takes a local copy"
    return fetch_file(downloads / f"{name}.zip", urls, lambda archive: check_md5(archive, WIKITEXT[name].md5), instead)


def fetch_file(
    file: Path, urls: Sequence[str], check: Callable[[Path], None], instead: str, by_length: bool = False
) -> Path:
    """Download ``file`` from the first of ``urls`` whose bytes pass ``check``, which raises DataError for others.

    What an interrupted run left in ``file`` with .part at the end is continued. instead: what the user can do without a
    network, for the message of a DataError. by_length: the check has no checksum,
    so that the length, which the server must tell, is all that shows the file to be whole.
    """
    part = file.with_name(f"{file.name}.part")
    file.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(DataError, FileNotFoundError):
        check(file)
        say(f"{file}: already downloaded")
        return file
    reasons = []
    for url in urls:
        try:
            download_verified(url, part, check, by_length)
            part.replace(file)
            return file
        except (OSError, http.client.HTTPException, ValueError) as error:
            reasons.append(f"{url}: {' '.join(str(error).split())}")  # urllib's on redirects have lines
            say(f"failed: {error}")
    with contextlib.suppress(OSError):
        file.parent.rmdir()  # unless part of the file is in it
    raise DataError("\n  ".join([f"{file.stem} could not be downloaded; {instead}:", *reasons]))


def download_verified(url: str, part: Path, check: Callable[[Path], None], by_length: bool) -> None:
    """Download until ``part`` passes the check, over dropped connections and wrong bytes of an earlier run."""
    for attempts_left in reversed(range(ATTEMPTS_PER_MIRROR)):
        had = file_size(part)
        try:
            download(url, part, by_length)
            check(part)
            return
        except (OSError, http.client.HTTPException, DataError) as error:
            if isinstance(error, DataError):
                part.unlink(missing_ok=True)
            # Another attempt can end otherwise only if this one added bytes, or threw away those found at its start.
            if not attempts_left or file_size(part) == had:
                raise
            say(f"{error}; trying again")


class _HttpRedirects(urllib.request.HTTPRedirectHandler):
    """Follows no redirection to another scheme than HTTP; urllib's own goes on to ftp."""

    def redirect_request(self, request, response, code, message, headers, url):
        if not is_url(url):
            raise urllib.error.URLError(f"redirection to {url} is not allowed")
        return super().redirect_request(request, response, code, message, headers, url)


_http = urllib.request.build_opener(_HttpRedirects)


def download(url: str, part: Path, by_length: bool) -> None:
    """Append to ``part`` what it lacks of ``url``; start over where the server cannot continue.

    Raises OSError where bytes are missing of the length that the server tells or, by_length, where it tells none.
    """
    size = file_size(part)
    request = urllib.request.Request(url, headers={"User-Agent": USER_AGENT})
    if size:
        request.add_header("Range", f"bytes={size}-")
    say(f"downloading {url}" + (f" from byte {size:,}" if size else ""))
    try:
        response = _http.open(request, timeout=TIMEOUT_SECONDS)
    except urllib.error.HTTPError as error:
        if error.code != 416 or not size:
            raise
        response = error  # nothing after these bytes: the length or the checksum says whether they are the file
    with response:
        total = told_length(response)
        if total is None and by_length:
            raise OSError("the server does not tell the file's length, and there is no checksum")
        if total and total > MAX_BYTES:
            raise DataError(f"{total:,} bytes, more than {MAX_BYTES:,} bytes: not what it is said to be")
        if response.code == 206 and not response.headers.get("Content-Range", "").startswith(f"bytes {size}-"):
            raise DataError(f"the server gave another part than that from byte {size:,}")
        if response.code != 416:
            size = size if response.code == 206 else 0
            said = time.monotonic()
            with open(part, "ab" if size else "wb") as output:
                for chunk in iter(lambda: response.read1(1 << 16), b""):
                    size += len(chunk)
                    if size > MAX_BYTES:
                        raise DataError(f"more than {MAX_BYTES:,} bytes: not what it is said to be")
                    output.write(chunk)
                    if total and sys.stdout.isatty() and time.monotonic() - said > 5:
                        said = time.monotonic()
                        say(f"  {100 * size // total}% of {total:,} bytes")
    if total is not None and size > total:
        raise DataError(f"{size:,} bytes of an earlier run, of a file that has {total:,}")
    if total is not None and size < total:
        raise OSError(f"connection ended after {size:,} of {total:,} bytes")
    say(f"downloaded {size:,} bytes")


def told_length(response) -> Optional[int]:
    """Bytes of the whole file, of which an HTTP response may have a part, by its headers; None where it tells none."""
    told = response.headers["Content-Range" if response.code in (206, 416) else "Content-Length"]
    found = re.search(r"(?:^|/)(\d+)$", told or "")
    return int(found.group(1)) if found else None


def unpack(archive: Path, folder: Path) -> None:
    """Write wiki.{train,valid,test}.tokens of a zip archive to ``folder/{split}.tokens``.

    The archive decides on no path, and on no more than `MAX_BYTES` bytes.
    """
    try:
        try:
            opened = zipfile.ZipFile(archive)
        except OSError as error:  # of Python 3.8, which seeks wherever the archive says
            raise zipfile.BadZipFile(str(error)) from error
        with opened:
            members = choose_members(opened.infolist())
            room = MAX_BYTES
            for split, member in members.items():
                with opened.open(member) as stream, open(folder / f"{split}.tokens", "wb") as output:
                    for chunk in iter(lambda stream=stream: stream.read(1 << 20), b""):
                        room -= len(chunk)
                        if room < 0:
                            raise DataError(f"{member.filename} unpacks to more than the {MAX_BYTES:,} bytes accepted")
                        output.write(chunk)
    except DataError as error:
        raise DataError(f"{archive}: {error}") from error
    except (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, NotImplementedError, UnicodeError) as error:
        raise DataError(f"{archive} is damaged, truncated or no zip archive: {error}") from error


def choose_members(members: Iterable[zipfile.ZipInfo]) -> Dict[str, zipfile.ZipInfo]:
    """The member of each split; an archive with an entry that no honest WikiText archive has is refused whole."""
    splits = {f"wiki.{split}.tokens": split for split in SPLITS}
    chosen = {}
    for member in members:
        parts = member.filename.replace("\\", "/").split("/")
        if parts[0] == "" or ".." in parts or re.match("[A-Za-z]:", parts[0]):
            raise DataError(f"entry {member.filename!r} leads out of the archive")
        if member.header_offset < 0:
            raise DataError(f"entry {member.filename!r} lies outside of the archive")
        if stat.S_ISLNK(member.external_attr >> 16):
            raise DataError(f"entry {member.filename!r} is a symbolic link")
        if member.flag_bits & 1:
            raise DataError(f"entry {member.filename!r} is encrypted")
        split = splits.get(parts[-1])
        if split in chosen:
            raise DataError(f"entries {chosen[split].filename!r} and {member.filename!r} are both {parts[-1]}")
        if split:
            chosen[split] = member
    missing = [file_name for file_name, split in splits.items() if split not in chosen]
    if missing:
        raise DataError(f"no entry {', '.join(missing)}")
    declared = sum(member.file_size for member in chosen.values())
    if declared > MAX_BYTES:
        raise DataError(f"{', '.join(splits)} declare {declared:,} bytes; at most {MAX_BYTES:,} are accepted")
    return chosen


# Text of one's own


def write_own_text(files: Mapping[str, Path], folder: Path) -> None:
    """Tokenise {train,valid,test}.txt.

    What reads as one of fairseq's symbols (a padding in the midst of a text stops a training) is divided as any other
    text, ``< pad >``; the user, who may have meant the symbol, is told.
    """
    tokenize = wikitext_tokenizer()
    for split, path in files.items():
        say(f"tokenising {path.name}")
        write_lines(map(tokenize, read_paragraphs(path)), folder / f"{split}.tokens")
        for number, paragraph in enumerate(read_paragraphs(path), start=1):
            symbol = FAIRSEQ_SYMBOL.search(paragraph)
            if symbol:
                say(f"{path}, line {number}: {symbol[0]} becomes {tokenize(symbol[0])}, and is not fairseq's symbol")
                break


def check_text(path: Path) -> None:
    """Raise DataError, with the line, unless the file is UTF-8 text with a word in it."""
    if not sum(map(bool, read_paragraphs(path))):
        raise DataError(f"{path} is empty")


def read_paragraphs(path: Path) -> Iterator[str]:
    """The lines of a UTF-8 file, stripped; a blank line is an empty string. Raises DataError for what is not text.

    As for fairseq, a line ends at LF, CR LF or CR, and nowhere else: what Unicode calls a separator is white space.
    """
    with open(path, "rb") as lines:
        for number, line in enumerate(iter(lambda: lines.readline(MAX_LINE_BYTES + 1), b""), start=1):
            if len(line) > MAX_LINE_BYTES:
                raise DataError(f"{path}, line {number}: more than {MAX_LINE_BYTES:,} bytes; accepted is a paragraph")
            if b"\0" in line:
                raise DataError(f"{path}, line {number}: a NUL byte; accepted is UTF-8 text")
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise DataError(f"{path}, line {number}: not UTF-8 ({error.reason})") from error
            for paragraph in io.StringIO(text, newline=None):
                yield paragraph.strip()


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
    to_subwords = subword_segmenter(learned)
    for split in SPLITS:
        path = folder / f"{split}.tokens"
        words = path.with_suffix(".words")
        path.rename(words)
        with open(words, encoding="utf-8") as lines:
            write_lines(map(to_subwords, lines), path)


def subword_segmenter(codes: IO[str]) -> Callable[[str], str]:
    """A function that divides the words of a line by the byte-pair encoding `codes`."""
    from subword_nmt.apply_bpe import BPE

    # WikiText's three joiners are words of their own: their at signs would read as the separator @@.
    return BPE(codes, glossaries=["@[-,.]@"]).segment


# The demo


def write_demo(folder: Path) -> None:
    """English prose that every Python carries, split by module and tokenised as WikiText is."""
    say("collecting the documentation of Python's standard library")
    tokenize = wikitext_tokenizer()
    splits = split_documents(demo_documents())
    for split in SPLITS:
        write_lines(map(tokenize, splits[split]), folder / f"{split}.tokens")
    with open(folder / "train.tokens", encoding="utf-8") as lines:
        tokens = sum(len(line.split()) + 1 for line in lines)
    if tokens < DEMO_MIN_TRAIN_TOKENS:
        raise DataError(
            f"demo: this Python's standard library gives only {tokens:,} tokens, at least {DEMO_MIN_TRAIN_TOKENS:,} "
            "are needed; it seems to have come without its .py files or docstrings. Use text with text of your own"
        )


def demo_documents() -> Dict[str, List[str]]:
    """Paragraphs of pydoc's topics and of the standard library's docstrings, by topic or module, each said once."""
    try:
        from pydoc_data.topics import topics
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
    """Prose of the docstrings of each module under ``library`` but tests and installed packages; imports none."""
    not_library = {"test", "tests", "idle_test", "site-packages", "dist-packages"}
    documents = {}
    for path in library.rglob("*.py"):
        module = path.relative_to(library).with_suffix("").parts
        if not_library.isdisjoint(module):
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

    Doctests end a paragraph and underlines leave it. What remains has five plain words or more, they are most of it,
    and it ends as a sentence does: that keeps out code, tables, signatures and headings, indented or not.
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
    """Whole documents to train, valid and test, about 14 : 1 : 1, by a hash of their name that no Python changes."""
    splits = {split: [] for split in SPLITS}
    for name, paragraphs in documents.items():
        splits[{0: "valid", 1: "test"}.get(zlib.crc32(name.encode()) % 16, "train")].extend(paragraphs)
    return splits


# Files


def is_url(source: Union[str, Path]) -> bool:
    return str(source).startswith(("http://", "https://"))


def file_size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def file_digest(path: Path, algorithm: str) -> str:
    digest = hashlib.new(algorithm)
    with open(path, "rb") as content:
        for chunk in iter(lambda: content.read(1 << 20), b""):
            digest.update(chunk)
    return digest.hexdigest()


def sha256_of(files: Mapping[str, Path]) -> Dict[str, str]:
    return {split: file_digest(path, "sha256") for split, path in files.items()}


def check_md5(path: Path, expected: str) -> None:
    found = file_digest(path, "md5")
    if found != expected:
        raise DataError(f"wrong checksum: expected MD5 {expected}, found {found}")


def write_lines(lines: Iterable[str], path: Path) -> None:
    with open(path, "w", encoding="utf-8", newline="\n") as output:
        output.writelines(f"{line}\n" for line in lines)


def is_open(path: Path, handle: IO[str]) -> bool:
    """Whether it is still this file that the path leads to."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(handle.fileno()))
    except FileNotFoundError:
        return False


@contextlib.contextmanager
def one_at_a_time(lock: Path) -> Iterator[None]:
    """Wait for other processes in this block; the jobs of a cluster may all ask for the same corpus at once.

    The lock's folders are made where missing; the lock, and what of these folders stays empty, is gone afterwards.
    """
    made = [folder for folder in lock.parents if not folder.exists()]
    lock.parent.mkdir(parents=True, exist_ok=True)
    with open(lock, "w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"waiting for another process ({lock} is locked)")
            fcntl.flock(handle, fcntl.LOCK_EX)
        if is_open(lock, handle):
            try:
                yield
            finally:
                lock.unlink()
                with contextlib.suppress(OSError):
                    for folder in made:
                        folder.rmdir()
            return
    with one_at_a_time(lock):  # the process before took its lock away, and another may have one of its own
        yield


def say(line: str) -> None:
    print(line, flush=True)


def main(argv: Optional[Sequence[str]] = None) -> None:
    """The command line; exits with status 2 and one ``error: …`` where `prepare` raises."""
    parser = argparse.ArgumentParser(
        prog="wavepos_fairseq.data", description="Prepare a corpus: DEST/NAME becomes its fairseq data-bin folder."
    )
    parser.add_argument("name", metavar="NAME", choices=NAMES, help=", ".join(NAMES))
    parser.add_argument(
        "--from",
        dest="source",
        metavar="FOLDER_OR_URL",
        help="wikitext-*: a folder with wiki.{train,valid,test}.tokens, a zip archive or its URL (default: download); "
        "text: a folder with train.txt, valid.txt, test.txt (UTF-8, one paragraph a line)",
    )
    parser.add_argument("--dest", default="data", help="where NAME goes (default: data, the script: ROOT/data)")
    parser.add_argument("--bpe", type=int, metavar="N", help="text only: learn N byte-pair merges on train")
    args = parser.parse_args(argv)
    commands.require_fairseq()
    with commands.progress_fails_nothing():
        try:
            prepare(args.name, args.source, Path(args.dest), args.bpe)
        except (DataError, OSError) as error:
            print(f"error: {error}", file=sys.stderr)
            sys.exit(2)


if __name__ == "__main__":
    main()
