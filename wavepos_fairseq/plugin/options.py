"""Turns positions and presets (data) into arguments of fairseq's commands, and parses arguments as fairseq does.

Importing this module imports neither PyTorch nor fairseq.
"""

import argparse
import logging
from dataclasses import fields
from typing import Any, List, Mapping, Sequence, Set

from ..common.commands import refusals_raise


def position_arguments(position: Mapping[str, Any]) -> List[str]:
    """``{name: wavelet, wavelet_scales: 1,2,4}`` as ``--position-encoding wavelet --wavelet-scales 1,2,4``."""
    options = {name.replace("_", "-"): value for name, value in position.items() if name != "name"}
    return as_arguments({"position-encoding": position["name"], **options})


def as_arguments(options: Mapping[str, Any]) -> List[str]:
    """Options without their dashes, as arguments; True makes a switch."""
    arguments: List[str] = []
    for name, value in options.items():
        arguments += [f"--{name}"] if value is True else [f"--{name}", str(value)]
    return arguments


def parse_training(arguments: Sequence[str]) -> argparse.Namespace:
    """The arguments as fairseq-train parses them, with the defaults of the architecture.

    Raises ValueError with one line if fairseq, the representation or the model refuses them.
    """
    logging.getLogger("fairseq").setLevel(logging.WARNING)  # on import it recommends packages for speech
    from fairseq import options

    from .. import models  # noqa: F401  (registers the architectures and the task)

    with refusals_raise():  # fairseq's usage has two hundred lines
        return options.parse_args_and_arch(options.get_training_parser(), list(arguments))


def options_of_model(arch: str) -> Set[str]:
    """The names of all options that a model of an architecture has; `parse_training` leaves out what is not given."""
    from fairseq.models import ARCH_MODEL_NAME_REGISTRY, MODEL_DATACLASS_REGISTRY

    from .. import models  # noqa: F401  (registers the architectures)

    return {field.name for field in fields(MODEL_DATACLASS_REGISTRY[ARCH_MODEL_NAME_REGISTRY[arch]])}
