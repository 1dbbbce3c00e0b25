"""The ways to score a text. Importing this module is fast."""

import argparse
from typing import List

PAPERS_INFERENCES = ("full", "non-overlapping")
INFERENCES = (*PAPERS_INFERENCES, "sliding")


def parse_inferences(text: str) -> List[str]:
    """``full,sliding`` as a list; argparse's error otherwise."""
    inferences = text.split(",")
    if not set(inferences) <= set(INFERENCES):
        raise argparse.ArgumentTypeError(f"{text!r}: accepted are {','.join(INFERENCES)} or one of them")
    return list(dict.fromkeys(inferences))
