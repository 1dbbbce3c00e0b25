"""What PyTorch does with a computation besides running it, and how to compute something untouched by that."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any, Callable

import torch
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.proxy_tensor import ProxyTorchDispatchMode
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack


def is_traced() -> bool:
    """Whether tensors have no values to ask for: a computation is being recorded, or run on shapes alone.

    True under torch.jit.trace, torch.export, torch.onnx.export, make_fx and FakeTensorMode; False in torch.compile.
    """
    if compiler_says("is_dynamo_compiling"):
        return compiler_says("is_exporting")
    modes = (FakeTensorMode, ProxyTorchDispatchMode)
    return torch.jit.is_tracing() or any(isinstance(mode, modes) for mode in _get_current_dispatch_mode_stack())


def is_transformed() -> bool:
    """Whether torch.func (vmap, grad, jvp ..) transforms a computation; False where PyTorch cannot say so."""
    return not compiler_says("is_compiling") and getattr(torch._C, "_are_functorch_transforms_active", bool)()


def refuse_open_length(num_keys: int) -> None:
    """Raises ValueError where a computation is recorded for any number of keys, which this one decides on."""
    if torch.jit.is_tracing() or not isinstance(num_keys, int):
        raise ValueError(
            "position_interpolation_factor must be given where PyTorch traces; the default, by the length, would be "
            "that of the length it traces"
        )


def compiler_says(question: str) -> bool:
    """The answer of the torch.compiler function `question`; False where PyTorch lacks it, as before 2.2."""
    return getattr(getattr(torch, "compiler", None), question, bool)()


def without_modes(function: Callable[..., Any], *arguments: Any) -> Any:
    """function(*arguments), run in a thread of its own, out of reach of the caller's modes.

    These are default device, inference mode, dispatch modes and transforms of torch.func. Tensors made here are plain
    and may be kept between calls.
    """
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(function, *arguments).result()
