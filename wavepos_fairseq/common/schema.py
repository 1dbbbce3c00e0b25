"""Checks of mappings that were read from files: the keys, and what each accepts, in words and as a test."""

import contextlib
import shlex
import sys
from typing import Any, Callable, List, Mapping, Tuple

Accepted = Tuple[str, Callable[[Any], bool]]
"""What a key accepts, in words and as a test."""


def is_count(value: Any) -> bool:
    """A whole number > 0."""
    return type(value) is int and value > 0


def is_number(value: Any) -> bool:
    """A finite number >= 0."""
    return type(value) in (int, float) and 0 <= value <= sys.float_info.max  # false for NaN and 10 ** 400


def are_options(value: Any) -> bool:
    """A mapping of options to text, numbers or true."""
    scalars: List[Any] = list(value.values()) if isinstance(value, dict) else [None]
    return all(isinstance(scalar, (str, int, float)) and scalar is not False for scalar in scalars)


def _is_command(value: Any) -> bool:
    with contextlib.suppress(ValueError):  # an unfinished quotation
        return isinstance(value, str) and shlex.split(value) != []
    return False


def or_none(accepted: Accepted) -> Accepted:
    words, accepts = accepted
    return f"{words}, or null", lambda value: value is None or accepts(value)


TEXT: Accepted = ("text", lambda value: isinstance(value, str) and value != "")
COUNT: Accepted = ("a whole number > 0", is_count)
WHOLE: Accepted = ("a whole number >= 0", lambda value: type(value) is int and value >= 0)
NUMBER: Accepted = ("a number >= 0", is_number)
COMMAND: Accepted = ("a command", _is_command)
MAPPING: Accepted = ("a mapping", lambda value: isinstance(value, dict))
OPTIONS: Accepted = ("a mapping of options to text, numbers or true", are_options)


def check(content: Any, accepted: Mapping[str, Accepted], others: bool = False) -> None:
    """Raises ValueError unless `content` is a mapping with exactly these keys and accepted values.

    others: allows more keys, and the absence of keys that accept None.
    """
    if not isinstance(content, dict):
        raise ValueError(f"expected a mapping with {', '.join(accepted)}, not {_abridged(content)}")
    for key in {**content, **accepted}:
        if key not in accepted and not others:
            raise ValueError(f"{key} is unknown; accepted are {', '.join(accepted)}")
        if key not in content and not (others and accepted[key][1](None)):
            raise ValueError(f"{key} is missing")
        if key in accepted and not accepted[key][1](content.get(key)):
            raise ValueError(f"{key} must be {accepted[key][0]}, not {_abridged(content[key])}")


def _abridged(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:97]}..."
