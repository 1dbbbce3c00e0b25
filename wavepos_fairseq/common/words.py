"""What users write, read; what is wrong with it in one line. Imports nothing that takes a while."""

import argparse
import contextlib
import re
from typing import Iterator, List

INFERENCES = ("full", "non-overlapping")


def parse_count(text: str, least: int = 1) -> int:
    """A whole number of at least `least` and at most 18 digits; argparse's error otherwise."""
    if not re.fullmatch("[0-9]{1,18}", text) or int(text) < least:
        shown = text if len(text) <= 18 else f"{text[:15]}..."
        raise argparse.ArgumentTypeError(f"{shown!r} is no whole number {'>' if least else '>='} 0")
    return int(text)


def parse_lengths(text: str) -> List[int]:
    """``128,256`` as a list of whole numbers > 0; argparse's error otherwise."""
    return list(dict.fromkeys(parse_count(item) for item in text.split(",")))


def parse_inferences(text: str) -> List[str]:
    """``full,non-overlapping`` as a list; argparse's error otherwise."""
    inferences = text.split(",")
    if not set(inferences) <= set(INFERENCES):
        raise argparse.ArgumentTypeError(f"{text!r}: accepted are {','.join(INFERENCES)} or one of them")
    return list(dict.fromkeys(inferences))


@contextlib.contextmanager
def naming(what: str) -> Iterator[None]:
    """Whatever is raised within (fairseq's errors are of any kind) becomes a ValueError of one line, `what` first."""
    try:
        yield
    except (Exception, SystemExit) as error:  # the latter where options are checked as they are parsed
        said = " ".join(str(error).split())
        said = said[len("error: ") :] if said.startswith("error: ") else said
        raise ValueError(f"{what}: {said or type(error).__name__}") from error


def first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
