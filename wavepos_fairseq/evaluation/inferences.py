"""The ways in which a text is scored. Importing this module imports nothing that takes a while."""

import argparse
from typing import List

INFERENCES = ("full", "non-overlapping")


def parse_inferences(text: str) -> List[str]:
    """``full,non-overlapping`` as a list; argparse's error otherwise."""
    inferences = text.split(",")
    if not set(inferences) <= set(INFERENCES):
        raise argparse.ArgumentTypeError(f"{text!r}: accepted are {','.join(INFERENCES)} or one of them")
    return list(dict.fromkeys(inferences))
