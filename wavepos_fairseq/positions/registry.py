"""The representations by name, and the options that their constructors take.

Constructor arguments beyond `head_dim` and `num_heads` are options; declare them as ``Annotated[type, "help"] =
default``. Front-ends read them from here: each becomes an option of the fairseq model.
"""

import inspect
from typing import Any, Callable, Dict, List, NamedTuple, Type

from typing_extensions import get_type_hints  # typing's own drops Annotated on Python 3.8

from .base import Position


class Option(NamedTuple):
    """A constructor argument of one or more representations, the `readers`."""

    type: type
    default: Any
    help: str
    readers: List[str]


_REGISTRY: Dict[str, Type[Position]] = {}


def register_position(name: str) -> Callable[[Type[Position]], Type[Position]]:
    """Class decorator: makes the class available under `name`. ValueError if the name is taken."""

    def register(cls: Type[Position]) -> Type[Position]:
        if name in _REGISTRY:
            raise ValueError(f"position_encoding={name!r} is registered twice")
        _REGISTRY[name] = cls
        return cls

    return register


def position_names() -> List[str]:
    """The names of all representations, sorted."""
    return sorted(_REGISTRY)


def position_class(name: str) -> Type[Position]:
    """The class registered as `name`; ValueError if there is none."""
    if name not in _REGISTRY:
        raise ValueError(f"position_encoding={name!r} is unknown; accepted are {', '.join(position_names())}")
    return _REGISTRY[name]


def position_options() -> Dict[str, Option]:
    """The options of all representations by name (``rope_theta``)."""
    options: Dict[str, Option] = {}
    for name in position_names():
        for option, declared in _constructor_options(_REGISTRY[name]).items():
            options.setdefault(option, declared).readers.append(name)
    return options


def _constructor_options(cls: Type[Position]) -> Dict[str, Option]:
    hints = get_type_hints(cls.__init__, include_extras=True)
    parameters = inspect.signature(cls.__init__).parameters
    return {
        name: Option(hint.__origin__, parameters[name].default, hint.__metadata__[0], [])
        for name, hint in hints.items()
        if hasattr(hint, "__metadata__")
    }


def build_position(name: str, *, head_dim: int, num_heads: int, **options: Any) -> Position:
    """The representation `name` for `num_heads` heads of width `head_dim`; an option of None has its default.

    Raises ValueError for an unknown name, for options that the representation does not read and for bad values.
    """
    cls = position_class(name)
    given = {option: value for option, value in options.items() if value is not None}
    accepted = _constructor_options(cls)
    for option, value in given.items():
        if option not in accepted:
            known = position_options().get(option)
            readers = f"; it is read by {', '.join(known.readers)}" if known else ""
            raise ValueError(f"{option}={value!r} is given, but position_encoding={name!r} does not read it{readers}")
    return cls(head_dim, num_heads, **given)
