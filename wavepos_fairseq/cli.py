"""What the commands have in common: a parser, and one line where there is no fairseq."""

import argparse
import importlib.util
import platform
import sys
from typing import Any, Optional


def parser(doc: Optional[str], **options: Any) -> argparse.ArgumentParser:
    """A parser that says the first line of a module's docstring, where ``python -OO`` has left one."""
    return argparse.ArgumentParser(description=doc and doc.splitlines()[0], **options)


def require_fairseq() -> None:
    """Ends a command with status 2 and one line where there is no fairseq."""
    if importlib.util.find_spec("fairseq") is None:
        print(
            f"error: this needs fairseq, which this Python {platform.python_version()} does not have; there is one for "
            "Python 3.8, 3.11 and 3.12 (pip install -c constraints.txt -e .)",
            file=sys.stderr,
        )
        sys.exit(2)
