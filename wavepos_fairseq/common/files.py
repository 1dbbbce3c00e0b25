"""Where files are, how their paths are shown, and how they are read and written: completely or not at all."""

import contextlib
import errno
import glob
import json
import os
import shutil
import stat
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Iterator, Optional, Union

PACKAGE = Path(__file__).resolve().parents[1]
CONFIGS, PAPER = PACKAGE / "configs", PACKAGE / "paper"  # in a checkout: links to configs and results/paper
ROOT = PACKAGE.parent if (PACKAGE.parent / "setup.py").is_file() else Path.cwd()
"""The folder of data, runs and results: the checkout or, for an installed package, the current folder."""
_SECONDS_TO_WRITE = 3600  # an upper bound for any writer, on any machine that shares the disk


def shown_path(path: Path) -> str:
    """`path` relative to the project's root if it is inside, so that records name no folder of this machine."""
    path = path.resolve()
    return str(path.relative_to(ROOT)) if ROOT in path.parents else str(path)


def write_whole(path: Path, content: Union[str, bytes]) -> None:
    """Writes a file completely or not at all: under another name, then renamed. Removes what killed writers left.

    A symbolic link stays, and its target is written. An existing file keeps its mode. A device, a pipe and the file
    that this process prints to are written directly.
    """
    data = content.encode() if isinstance(content, str) else content
    with _naming(path):
        file = _to_replace(path)
        if file:
            _replace(file, data)
        elif _is_printed_to(path):
            sys.stdout.flush()
            with open(os.dup(1), "wb") as output:  # another descriptor would overwrite what is already printed
                output.write(data)
        else:
            path.write_bytes(data)


def refuse_unwritable(path: Path) -> None:
    """Raises OSError if the file or its folders could not be created, as far as is known. Creates nothing."""
    with _naming(path):
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        file = _to_replace(path)
        if file:
            there = next(folder for folder in file.parents if folder.exists())
            tempfile.TemporaryFile(dir=str(there)).close()
            _refuse_protected(file)


def read_json(path: Path, *keys: str) -> Optional[Any]:
    """The file's content, None if there is no file. Raises ValueError unless it is JSON, an object with these keys."""
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{shown_path(path)} is not a JSON file: {error}") from None
    missing = [key for key in keys if not isinstance(content, dict) or key not in content]
    if missing:
        raise ValueError(f"{shown_path(path)} is not a JSON object with {', '.join(missing)}")
    return content


def write_json(path: Path, content: Any) -> None:
    """Writes a file completely or not at all (see `write_whole`). Creates its folder if needed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, json.dumps(content, indent=1) + "\n")


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Makes an OSError raised inside, of a full disk for example, name the file."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


def _to_replace(path: Path) -> Optional[Path]:
    """The path's target if it is a regular file or does not exist yet; None if it can only be opened."""
    there, file = _stat(path), Path(os.path.realpath(path))
    if there is None:
        return file
    found = _stat(file)  # /dev/fd may lead to a deleted file, which has no path
    same = found and stat.S_ISREG(there.st_mode) and os.path.samestat(there, found)
    return file if same and not _is_printed_to(path) else None


def _stat(path: Path) -> Optional[os.stat_result]:
    with contextlib.suppress(FileNotFoundError):
        return path.stat()
    return None


def _is_printed_to(path: Path) -> bool:
    with contextlib.suppress(OSError):  # stdout may be closed
        return os.path.samestat(path.stat(), os.fstat(1))
    return False


def _replace(path: Path, data: bytes) -> None:
    for left in path.parent.glob(f"{glob.escape(path.name)}.*.part"):
        with contextlib.suppress(FileNotFoundError):
            if left.stat().st_mtime < time.time() - _SECONDS_TO_WRITE:
                left.unlink()
    _refuse_protected(path)
    unfinished = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        unfinished.write_bytes(data)
        with contextlib.suppress(FileNotFoundError):
            shutil.copymode(str(path), str(unfinished))
        os.replace(unfinished, path)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise


def _refuse_protected(path: Path) -> None:
    """Raises OSError if the file exists and is write-protected; a rename would not check."""
    with contextlib.suppress(FileNotFoundError):
        path.open("r+b").close()
