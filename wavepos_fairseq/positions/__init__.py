"""Position representations, one a file; each fills slots of the formula in `base`. See `build_position`."""

import importlib
import pkgutil

from .base import Position, build_position, position_class, position_names, position_options, register_position

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")

__all__ = [
    "Position",
    "build_position",
    "position_class",
    "position_names",
    "position_options",
    "register_position",
]
