"""fairseq's checkpoints, read without running code that they carry.

A checkpoint is a pickle, which may call whatever can be imported. Here it names only what checkpoints of fairseq are
made of: tensors, plain data, and the options as argparse and omegaconf keep them. PyTorch's ``weights_only`` is the
same idea, but takes no such list before 2.5, and in the versions before 2.6 there is a way around it.
"""

import pickle
import tarfile
import types
from pathlib import Path
from typing import Any, Dict, Union
from unittest import mock

import numpy as np
import torch

# Classes of data, and PyTorch's functions that make a tensor of a storage: no way to other code.
_BUILTINS = "bool bytes dict float int list long set str tuple"
ALLOWED = {
    "argparse": "Namespace",
    "builtins": _BUILTINS,
    "__builtin__": _BUILTINS,  # in protocol 2
    "collections": "OrderedDict defaultdict",
    "omegaconf.base": "ContainerMetadata Metadata",
    "omegaconf.dictconfig": "DictConfig",
    "omegaconf.listconfig": "ListConfig",
    "omegaconf.nodes": "AnyNode BooleanNode FloatNode IntegerNode StringNode",
    "torch": "Size",
    "torch._utils": "_rebuild_tensor _rebuild_tensor_v2 _rebuild_parameter",
    "typing": "Any",
}


class _NumpyType(str):
    """The name of a NumPy type in its place: what a pickle sets in a type itself can make it read foreign memory."""

    def __new__(cls, name, *_):
        return super().__new__(cls, name)

    def __setstate__(self, state):
        pass


# NumPy's scalars: made as NumPy makes them, of their bytes, which protocol 2 has as text to encode.
STAND_INS = {
    ("numpy", "dtype"): _NumpyType,
    ("numpy.core.multiarray", "scalar"): lambda dtype, content: np.frombuffer(content, dtype)[0],
    ("numpy._core.multiarray", "scalar"): lambda dtype, content: np.frombuffer(content, dtype)[0],
    ("_codecs", "encode"): lambda text, _: text.encode("latin1"),
}


class Refused(ValueError):
    """A checkpoint is more than data; the message follows its path."""

    def __init__(self, what: str) -> None:
        super().__init__(
            f"asks for {what}, which could run any code; "
            "python -m wavepos_fairseq.evaluation --trust-checkpoint reads it nonetheless"
        )


def _is_allowed(module: str, name: str) -> bool:
    return name in ALLOWED.get(module, "").split()


class Unpickler(pickle._Unpickler):
    """Python's own, in Python: the one in C does not ask before it sets an object's attributes."""

    def find_class(self, module, name):
        if (module, name) in STAND_INS:
            return STAND_INS[module, name]
        if not _is_allowed(module, name):
            raise Refused(f"{module}.{name}")
        return super().find_class(module, name)

    def load_build(self):
        kind = type(self.stack[-2])
        if kind is not _NumpyType and not _is_allowed(kind.__module__, kind.__name__):  # a function's, or a class's own
            raise Refused(f"attributes of a {kind.__name__}")
        super().load_build()

    def load_setitem(self):
        self._refuse_to_fill(self.stack[-3])
        super().load_setitem()

    def load_setitems(self):
        self._refuse_to_fill(self.metastack[-1][-1])
        super().load_setitems()

    def _refuse_to_fill(self, target):
        if not isinstance(target, dict):  # a tensor's items are memory
            raise Refused(f"items of a {type(target).__name__}")

    def load_binpersid(self):
        if self.stack[-1][5:] not in ((), (None,)):  # of the old format: the storage may move before it is read
            raise Refused("a view of a storage")
        super().load_binpersid()

    dispatch = {
        **pickle._Unpickler.dispatch,
        pickle.BUILD[0]: load_build,
        pickle.SETITEM[0]: load_setitem,
        pickle.SETITEMS[0]: load_setitems,
        pickle.BINPERSID[0]: load_binpersid,
    }

    def load(self):
        try:
            return super().load()
        except KeyError as opcode:
            raise pickle.UnpicklingError(f"{opcode} is no pickle's operation") from None


def _refuse_torchscript(*_, **__):
    raise Refused("TorchScript")  # which torch.load would hand on whatever it is asked for


def _storage_of_record(reader, name, nbytes, kind, read=torch._C.PyTorchFileReader.get_storage_from_record):
    """PyTorch's own, which in older versions believes `nbytes` and goes on in memory where the file has less."""
    if nbytes > len(reader.get_record(name)):
        raise pickle.UnpicklingError(f"{name} is shorter than the storage that it is said to hold")
    return read(reader, name, nbytes, kind)


def load(path: Union[str, Path], trust: bool = False) -> Dict[str, Any]:
    """What the checkpoint holds, on the CPU; with `trust` it may run what it carries.

    Raises `Refused`, and on a file that is no checkpoint whatever PyTorch raises.
    """
    if trust:
        return torch.load(str(path), map_location="cpu", weights_only=False)
    reader = types.SimpleNamespace(
        __name__="pickle", Unpickler=Unpickler, load=lambda file, **options: Unpickler(file, **options).load()
    )
    no_script = mock.patch.object(torch.jit, "load", _refuse_torchscript)
    no_tar = mock.patch.object(tarfile, "open", side_effect=tarfile.ReadError)  # its first format sets files' modes
    sized = mock.patch.object(torch._C.PyTorchFileReader, "get_storage_from_record", _storage_of_record)
    with no_script, no_tar, sized:
        return torch.load(str(path), map_location="cpu", pickle_module=reader, weights_only=False)
