"""WikiText's lines from zip archives and parquet files, which may come from anyone.

No file chooses a path or fills more than `MAX_BYTES` bytes; one that is damaged or holds something else is a DataError.
"""

import contextlib
import functools
import lzma
import re
import stat
import zipfile
import zlib
from pathlib import Path
from typing import Dict, Iterable, Iterator, Mapping, Sequence

from ..plugin.streams import SPLITS
from .corpus import DataError
from .download import MAX_BYTES

ROWS_AT_ONCE = 1000  # of a parquet file, in memory


def unpack_zip(archive: Path, folder: Path) -> None:
    """Write wiki.{train,valid,test}.tokens of a zip archive to ``folder/{split}.tokens``.

    The archive cannot choose a path, and cannot fill more than `MAX_BYTES` bytes.
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
                    for chunk in iter(functools.partial(stream.read, 1 << 20), b""):
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
    chosen: Dict[str, zipfile.ZipInfo] = {}
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


def unpack_parquet(files: Mapping[str, Sequence[Path]], folder: Path) -> None:
    """Write the lines of each split's parquet files to ``folder/{split}.tokens``, at most `MAX_BYTES` bytes in all."""
    room = MAX_BYTES
    for split, parts in files.items():
        with open(folder / f"{split}.tokens", "wb") as output:
            for file in parts:
                for line in parquet_lines(file):
                    room -= len(line)
                    if room < 0:
                        raise DataError(f"{file.name} holds more than the {MAX_BYTES:,} bytes accepted")
                    output.write(line)


def check_parquet(file: Path) -> None:
    """Raise DataError unless the file declares a column of strings named text, and at most `MAX_BYTES` bytes."""
    from pyarrow import types
    from pyarrow.parquet import ParquetFile

    with readable(file), ParquetFile(file) as parquet:
        fields = [field for field in parquet.schema_arrow if field.name == "text"]
        declared = sum(parquet.metadata.row_group(number).total_byte_size for number in range(parquet.num_row_groups))
    if len(fields) != 1 or not (types.is_string(fields[0].type) or types.is_large_string(fields[0].type)):
        raise DataError(f"{file.name} has no column of strings named text")
    if declared > MAX_BYTES:
        raise DataError(f"{file.name} declares {declared:,} bytes; at most {MAX_BYTES:,} are accepted")


def parquet_lines(file: Path) -> Iterator[bytes]:
    """The lines as they are in wiki.*.tokens: one a row, ended by LF; a blank line, '' in the file, is a space."""
    from pyarrow.parquet import ParquetFile

    check_parquet(file)
    # As a dictionary, a value that a small file repeats a million times is in memory once.
    with readable(file), ParquetFile(file, read_dictionary=["text"]) as parquet:
        for batch in parquet.iter_batches(ROWS_AT_ONCE, columns=["text"], use_threads=False):
            for row in batch.column(0):
                yield ((row.as_py() or "").rstrip("\n") or " ").encode() + b"\n"


@contextlib.contextmanager
def readable(file: Path) -> Iterator[None]:
    """What is raised where the parquet file is damaged becomes a DataError of one line."""
    from pyarrow import ArrowException

    try:
        yield
    except (ArrowException, OSError, UnicodeError) as error:
        reason = " ".join(str(error).split())
        raise DataError(f"{file.name} is damaged, truncated or no parquet file: {reason}") from error
