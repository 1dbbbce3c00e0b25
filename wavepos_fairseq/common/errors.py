"""One-line errors for the user."""

import contextlib
from typing import Iterator


@contextlib.contextmanager
def prefixing_errors(what: str) -> Iterator[None]:
    """Turns any error raised within (fairseq's have any type) into a ValueError of one line that begins with `what`."""
    try:
        yield
    except (Exception, SystemExit) as error:  # SystemExit: argparse checks options as it parses
        said = " ".join(str(error).split())
        said = said[len("error: ") :] if said.startswith("error: ") else said
        raise ValueError(f"{what}: {said or type(error).__name__}") from error


def first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
