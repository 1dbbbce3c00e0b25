"""Positions and presets, which are data, as the arguments of fairseq's commands."""

from typing import Any, List, Mapping


def position_arguments(position: Mapping[str, Any]) -> List[str]:
    """``{name: wavelet, wavelet_scales: 1,2,4}`` as ``--position-encoding wavelet --wavelet-scales 1,2,4``."""
    options = {name.replace("_", "-"): value for name, value in position.items() if name != "name"}
    return as_arguments({"position-encoding": position["name"], **options})


def as_arguments(options: Mapping[str, Any]) -> List[str]:
    """Options without their dashes as arguments; one that is True is a switch."""
    arguments: List[str] = []
    for name, value in options.items():
        arguments += [f"--{name}"] if value is True else [f"--{name}", str(value)]
    return arguments
