"""Position representations, one a file; each fills slots of the formula in `base`. See `build_position`."""

import importlib
import pkgutil

from .base import FixedRelativePosition, Position
from .registry import (
    build_position,
    position_class,
    position_names,
    position_options,
    position_parts,
    register_position,
)

__all__ = [
    "FixedRelativePosition",
    "Position",
    "build_position",
    "position_class",
    "position_names",
    "position_options",
    "position_parts",
    "register_position",
]

for _module in pkgutil.iter_modules(__path__):  # last: the representations import the names above from here
    importlib.import_module(f"{__name__}.{_module.name}")
