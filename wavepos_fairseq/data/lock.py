"""A corpus is made by one process at a time; the jobs of a cluster may all ask for the same one at once."""

import contextlib
import fcntl
import os
from pathlib import Path
from typing import IO, Iterator

from .corpus import say


@contextlib.contextmanager
def one_at_a_time(lock: Path) -> Iterator[None]:
    """Wait for other processes in this block.

    Missing folders of the lock are made. Afterwards the lock is removed, and so are these folders if they are empty.
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
    with one_at_a_time(lock):  # the process before removed its lock, and another may have made one of its own
        yield


def is_open(path: Path, handle: IO[str]) -> bool:
    """Whether the path still leads to this open file."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(handle.fileno()))
    except FileNotFoundError:
        return False
