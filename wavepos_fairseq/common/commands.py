"""What the commands share: parsers, one-line errors for missing packages, and output that may fail."""

import argparse
import contextlib
import importlib.util
import io
import os
import platform
import re
import sys
from typing import Any, Iterator, List, NoReturn, Optional


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One line: the usage of some commands has thirty."""
        self.exit(2, f"{self.prog}: error: {message}\n")


def parser(doc: Optional[str], **options: Any) -> argparse.ArgumentParser:
    """A parser with the first line of a module's docstring, if ``python -OO`` has not removed it."""
    return _Parser(description=doc and doc.splitlines()[0], **options)


@contextlib.contextmanager
def refusals_raise() -> Iterator[None]:
    """Within, what argparse refuses raises ValueError with its last line, and nothing is printed."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as said:
        try:
            yield
        except SystemExit as stop:
            why = stop.code if isinstance(stop.code, str) else said.getvalue()
            raise ValueError(why.strip().rpartition("error: ")[2] or "--help") from None


def parse_count(text: str, least: int = 1) -> int:
    """A whole number of at most 18 digits that is at least `least`; raises argparse's error otherwise."""
    if not re.fullmatch("[0-9]{1,18}", text) or int(text) < least:
        shown = text if len(text) <= 18 else f"{text[:15]}..."
        raise argparse.ArgumentTypeError(f"{shown!r} is not a whole number {'>' if least else '>='} 0")
    return int(text)


def parse_lengths(text: str) -> List[int]:
    """``128,256`` as a list of whole numbers > 0; raises argparse's error otherwise."""
    return list(dict.fromkeys(parse_count(item) for item in text.split(",")))


def require_fairseq() -> None:
    """Ends a command with status 2 and one line if fairseq is not installed."""
    if _is_missing("fairseq"):
        _end(
            f"this needs fairseq, which is not installed for this Python {platform.python_version()}; pip installs it "
            "with wavepos-fairseq on Python 3.8, 3.11 and 3.12"
        )


def require_lab(*modules: str) -> None:
    """Ends a command with status 2 and one line if a module of the extra ``lab`` is missing."""
    for module in modules:
        if _is_missing(module):
            _end(f'this needs {module}: pip install "wavepos-fairseq[lab]"')


def require_hf() -> None:
    """Ends a command with status 2 and one line if a module of the extra ``hf`` is missing."""
    _require("hf", "transformers")


def require_longbench() -> None:
    """Ends a command with status 2 and one line if a module of the extra ``longbench`` is missing."""
    _require("longbench", "transformers", "lm_eval", "jieba", "fuzzywuzzy", "rouge")


def _require(extra: str, *modules: str) -> None:
    for module in modules:
        if _is_missing(module):
            _end(f'this needs {module}: pip install "wavepos-fairseq[{extra}]", with Python 3.11 or newer')


def _is_missing(module: str) -> bool:
    spec = importlib.util.find_spec(module)
    return spec is None or spec.origin is None  # a mere folder of that name is not a module


def _end(why: str) -> NoReturn:
    print(f"error: {why}", file=sys.stderr)
    sys.exit(2)


class _Unfailing:
    """A stream to which printing never fails, even if it is closed, its reader is gone or its disk is full."""

    def __init__(self, stream):
        self.stream = stream  # None if the process was started without it

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        with contextlib.suppress(AttributeError, OSError, ValueError):
            self.stream.write(text)
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(AttributeError, OSError, ValueError):
            self.stream.flush()


@contextlib.contextmanager
def progress_fails_nothing() -> Iterator[None]:
    """Within, output that cannot be printed is dropped, and the work goes on."""
    streams = (sys.stdout, sys.stderr)
    try:
        with contextlib.redirect_stdout(_Unfailing(sys.stdout)), contextlib.redirect_stderr(_Unfailing(sys.stderr)):
            yield
    finally:
        for stream in streams:
            if stream is not None and not stream.closed:
                try:
                    stream.flush()
                except OSError:  # Python's own flush at exit would make the status 120
                    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
