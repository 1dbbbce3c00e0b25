"""What is said and kept beside the perplexities of any model."""

import platform
from types import ModuleType
from typing import Any, Dict

import torch
from torch import nn

from .. import __version__


def shown(cell: Dict[str, Any]) -> str:
    """A cell of `perplexity.evaluate` as one line, with the perplexities over other units that it has."""
    line = f"{cell['inference']:>15}  length {cell['sequence_length']:>5}  perplexity {cell['perplexity']:8.2f}"
    for unit in ("word", "byte"):
        if cell.get(f"{unit}_perplexity") is not None:
            line += f"  per {unit} {cell[f'{unit}_perplexity']:8.2f}"
    for unit in ("character", "byte"):
        if f"bits_per_{unit}" in cell:
            line += f"  bits per {unit} {cell[f'bits_per_{unit}']:.4f}"
    return f"{line}  ({cell['tokens']:,} tokens, {cell['seconds']:.0f} s)"


def made_by(model: nn.Module, *modules: ModuleType) -> Dict[str, Any]:
    """The number of parameters, the device and the versions that the numbers depend on: those of these modules, too."""
    first = next(model.parameters())
    return {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "device": torch.cuda.get_device_name(first.device) if first.is_cuda else f"cpu ({platform.machine()})",
        "versions": {
            "wavepos_fairseq": __version__,
            "python": platform.python_version(),
            **{module.__name__: module.__version__ for module in modules},
        },
    }
