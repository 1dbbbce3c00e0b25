"""The representations by name, and the options that their constructors take.

Constructor arguments beyond `head_dim` and `num_heads` are options; declare them as ``Annotated[type, "help"] =
default``. Front-ends read them from here: each is an option of the fairseq model and of the Llama.

Names joined by + are a combination of representations (see `combined`). Installed packages add representations through
the entry-point group ``wavepos_fairseq.positions``, which is read when a name or an option is first asked for.
"""

import importlib.metadata
import inspect
import numbers
import warnings
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Type

from typing_extensions import get_type_hints  # typing's own drops Annotated on Python 3.8

from .base import Position
from .combined import CombinedPosition


class Option(NamedTuple):
    """A constructor argument of one or more representations, the `readers`."""

    type: type
    default: Any
    help: str
    readers: List[str]


_KINDS = {  # by an option's type: how that is called, and what it may be
    str: ("a text", str),
    Optional[str]: ("a text", str),
    float: ("a number", numbers.Real),
    int: ("a whole number", numbers.Integral),
}
_REGISTRY: Dict[str, Type[Position]] = {}
_UNREAD_GROUPS = ["wavepos_fairseq.positions"]
_UNUSABLE: Dict[str, str] = {}  # entry points by name, and why they cannot be loaded


def register_position(name: str) -> Callable[[Type[Position]], Type[Position]]:
    """Class decorator: makes the class available under `name`. ValueError if the name is taken or has a +."""

    def register(cls: Type[Position]) -> Type[Position]:
        if "+" in name:
            raise ValueError(f"position_encoding={name!r} cannot be registered: + joins the names of a combination")
        if name in _REGISTRY:
            raise ValueError(f"position_encoding={name!r} is registered twice")
        _REGISTRY[name] = cls
        return cls

    return register


def _registered() -> Dict[str, Type[Position]]:
    """The classes by name, those of installed packages among them; what is wrong with one of these hinders no other."""
    while _UNREAD_GROUPS:
        group = _UNREAD_GROUPS.pop()  # before packages are imported, which may ask for names
        points = {
            (point.name, point.value): (point, f"{point.value} of the installed package {package.metadata['Name']}")
            for package in importlib.metadata.distributions()
            for point in package.entry_points
            if point.group == group
        }
        for (name, _), (point, described) in sorted(points.items()):
            try:
                cls = point.load()
                if not (isinstance(cls, type) and issubclass(cls, Position)):
                    raise TypeError("it is not a class derived from wavepos_fairseq.positions.Position")
                _constructor_options(cls)
            except Exception as error:
                reason = " ".join(f"{type(error).__name__}: {error}".split())
                _UNUSABLE.setdefault(name, f": {described} cannot be loaded: {reason}")
                continue
            if _REGISTRY.get(name) is not cls:  # its module may have registered it
                try:
                    register_position(name)(cls)
                except ValueError as error:
                    warnings.warn(f"{error}; {described} is left out", stacklevel=2)
    return _REGISTRY


def position_names() -> List[str]:
    """The names of all representations, sorted."""
    return sorted(_registered())


def position_class(name: str) -> Type[Position]:
    """The class registered as `name`; ValueError if there is none, or if its package cannot be imported."""
    registered = _registered()
    if name not in registered:
        accepted = f" is unknown; accepted are {', '.join(position_names())}"
        raise ValueError(f"position_encoding={name!r}{_UNUSABLE.get(name, accepted)}")
    return registered[name]


def position_parts(name: str) -> Dict[str, Type[Position]]:
    """The classes of the representation `name` or of the combination ``name+name``, sorted by name.

    Raises ValueError for an unknown, empty or repeated name and for two that fill slot R or slot c.
    """
    if not isinstance(name, str) or "+" not in name:
        return {name: position_class(name)}
    registered, names = _registered(), sorted(name.split("+"))
    for part in names:
        if part not in registered:
            accepted = f": {part!r} is unknown; accepted beside + are {', '.join(position_names())}"
            raise ValueError(f"position_encoding={name!r}{_UNUSABLE.get(part, accepted)}")
        if names.count(part) > 1:
            raise ValueError(f"position_encoding={name!r}: {part} appears twice; accepted are different names")
    for methods, what in (
        (("rotate_query", "rotate_key"), "change queries and keys before their product (slot R)"),
        (("gates",), "make a gate of each token (slot c)"),
    ):
        filling = [part for part in names if registered[part].overrides(*methods)]
        if len(filling) > 1:
            raise ValueError(
                f"position_encoding={name!r}: {' and '.join(filling)} each {what}, of which there is one; accepted is "
                "one of them, because only slots p and b add up"
            )
    return {part: registered[part] for part in names}


def position_options() -> Dict[str, Option]:
    """The options of all representations by name (``rope_theta``)."""
    options: Dict[str, Option] = {}
    for name in position_names():
        for option, declared in _constructor_options(position_class(name)).items():
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

    ``wavelet+alibi`` is the combination of both; an option goes to the part that reads it, and the names may have any
    order. Raises ValueError for an unknown name, for parts that do not go together (`position_parts`), for options
    that the representation does not read or that two of its parts do, and for bad values.
    """
    for what, number in (("head_dim", head_dim), ("num_heads", num_heads)):
        if not isinstance(number, numbers.Integral) or number < 1:
            raise ValueError(f"{what}={number!r}: must be a whole number > 0")
    parts = position_parts(name)
    given = {option: value for option, value in options.items() if value is not None}
    accepted = {part: _constructor_options(cls) for part, cls in parts.items()}
    for option, value in given.items():
        readers = [part for part in parts if option in accepted[part]]
        if not readers:
            known = position_options().get(option)
            reads = ", ".join(dict.fromkeys(option for options in accepted.values() for option in options)) or "none"
            hint = f"it is read by {', '.join(known.readers)}" if known else f"accepted are {reads}"
            raise ValueError(f"{option}={value!r} is given, but position_encoding={name!r} does not read it; {hint}")
        if len(readers) > 1:
            raise ValueError(
                f"{option}={value!r} is given, but {' and '.join(readers)} of position_encoding={name!r} both read it; "
                "accepted is an option that one part reads"
            )
        said, kind = _KINDS.get(accepted[readers[0]][option].type, ("", object))
        if not isinstance(value, kind):
            raise ValueError(f"{option}={value!r}: must be {said}")
    built = [
        cls(head_dim, num_heads, **{option: value for option, value in given.items() if option in accepted[part]})
        for part, cls in parts.items()
    ]
    return built[0] if len(built) == 1 else CombinedPosition(built)
