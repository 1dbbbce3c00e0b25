"""fairseq's checkpoints, read without running code that they carry.

A checkpoint is a pickle, and a pickle may call anything that can be imported. Here it may name only what fairseq's
checkpoints are made of: tensors, plain data, and the options as argparse and omegaconf keep them. PyTorch's
``weights_only`` is the same idea, but takes no such list before 2.5, and versions before 2.6 have a way around it.

A checkpoint may also ask for more memory than there is, or be damaged. So nothing takes more memory than the file has
bytes, and the checksums of the zip are compared first, which PyTorch does not do. PyTorch's format of before 1.6 has no
checksums.
"""

import argparse
import collections
import errno
import io
import math
import os
import pickle
import re
import types
import zipfile
from pathlib import Path
from typing import Any, Dict, Iterable, List, Mapping, Set, Union

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
    "torch._utils": "_rebuild_parameter",
    "typing": "Any",
}
# What options, names and shapes take in a pickle, in bytes: fairseq's options are some 30,000, a tensor's 300. Nothing
# that takes a byte there takes more than some hundred in memory.
FOR_OPTIONS, FOR_A_STORAGE = 2**20, 2**10
_MOST_OPTIONS, _DEEPEST_OPTION = 10_000, 20  # fairseq has 500, one in another
_SCALARS = (bool, bytes, float, int, str, type(None))
_OWN_OPTION = re.compile(r"\$\{\w+\.\w+\}")  # ${common.seed}, as fairseq's options refer to each other


class _NumpyType(str):
    """The name of a NumPy type in its place: what a pickle sets in a type itself can make it read foreign memory."""

    def __new__(cls, name, *_):
        if type(name) is not str:  # a list of itself, spelled out, would fill the memory
            raise pickle.UnpicklingError(f"a {type(name).__name__} in the place of a NumPy type's name")
        return super().__new__(cls, name)

    def __setstate__(self, state):
        pass


def _name(thing) -> str:
    """A class's or function's name, or that of the thing's class; spelled out, a thing may be longer than its file."""
    named = isinstance(thing, (type, types.FunctionType, types.BuiltinFunctionType))
    return thing.__name__ if named else type(thing).__name__


def _within_its_storage(rebuild):
    """PyTorch's function, which otherwise makes the storage as large as a tensor is said to be."""

    def checked(storage, offset, size, stride, *rest):
        if len(size) != len(stride) or not all(type(number) is int and number >= 0 for number in (offset, *size)):
            raise pickle.UnpicklingError("a tensor of the size, strides or offset that are no whole numbers")
        held = storage._untyped_storage.nbytes() // torch._utils._element_size(storage.dtype)
        reach = offset + 1 + sum((length - 1) * step for length, step in zip(size, stride))
        if 0 not in size and (min(stride, default=0) < 0 or max(reach, math.prod(size)) > held):
            raise pickle.UnpicklingError(f"a tensor of the size {tuple(size)} in a storage of {held} numbers")
        return rebuild(storage, offset, size, stride, *rest)

    return checked


# NumPy's scalars: made as NumPy makes them, of their bytes, which protocol 2 has as text to encode.
STAND_INS = {
    ("torch._utils", "_rebuild_tensor"): _within_its_storage(torch._utils._rebuild_tensor),
    ("torch._utils", "_rebuild_tensor_v2"): _within_its_storage(torch._utils._rebuild_tensor_v2),
    ("numpy", "dtype"): _NumpyType,
    ("numpy.core.multiarray", "scalar"): lambda dtype, content: np.frombuffer(content, dtype)[0],
    ("numpy._core.multiarray", "scalar"): lambda dtype, content: np.frombuffer(content, dtype)[0],
    ("_codecs", "encode"): lambda text, _: text.encode("latin1"),
}
# What may be called. A bytes or a list that is called takes as much memory as it is told, or copies what there is.
_CALLED = [
    *(collections.OrderedDict, collections.defaultdict, set, torch.Size, torch._utils._rebuild_parameter),
    *STAND_INS.values(),
]


class Refused(ValueError):
    """A checkpoint is more than data; the message follows its path."""

    def __init__(self, what: str, could: str = "run any code") -> None:
        super().__init__(
            f"asks for {what}, which could {could}; "
            "python -m wavepos_fairseq.evaluation --trust-checkpoint reads it nonetheless"
        )


def _is_allowed(module: str, name: str) -> bool:
    return name in ALLOWED.get(module, "").split()


_PythonsOwn: Any = pickle._Unpickler  # of which typeshed says that it is the one in C


class Unpickler(_PythonsOwn):
    """Python's own, in Python: the one in C does not ask before it sets an object's attributes."""

    file_size = math.inf  # in bytes, of the whole checkpoint: so much, at the most, its storages have together
    record_sizes: Mapping[str, int] = {}  # in bytes, of PyTorch's zip, by name; its older format has none

    def __init__(self, file: Any, **options: Any) -> None:
        super().__init__(file, **options)
        self._left = FOR_OPTIONS
        self._keys: Set[str] = set()
        self._file_read = lambda size: self._spend(file.read(min(size, self._left + 1)))
        self._file_readline = lambda: self._spend(file.readline(self._left + 1))

    def _spend(self, read):
        """What is read or copied, for which there must be enough left."""
        self._left -= len(read)
        if self._left < 0:
            raise Refused("more beside its tensors than options and names take", "take any memory")
        return read

    def find_class(self, module, name):
        if (module, name) in STAND_INS:
            return STAND_INS[module, name]
        if not _is_allowed(module, name):
            raise Refused(f"{module}.{name}")
        return super().find_class(module, name)

    def load_reduce(self):
        function, arguments = self.stack[-2:]
        if not any(function is one for one in _CALLED) and (function, arguments) != (bytes, ()):
            raise Refused(f"a call of {_name(function)}")
        for argument in arguments:
            if isinstance(argument, (list, tuple, dict)):
                self._refuse_hashing(argument)  # a set's items
            if isinstance(argument, (list, tuple, dict, str, bytes)):
                self._spend(argument)
        super().load_reduce()

    def load_newobj(self):
        if self.stack[-1] != ():
            raise Refused(f"a {_name(self.stack[-2])} of something")
        super().load_newobj()

    def load_build(self):
        kind = type(self.stack[-2])
        if kind is not _NumpyType and not _is_allowed(kind.__module__, kind.__name__):  # a function's, or a class's own
            raise Refused(f"attributes of a {kind.__name__}")
        self._spend(self.stack[-1])
        super().load_build()

    def load_append(self):
        self._refuse_to_fill(self.stack[-2], list)
        super().load_append()

    def load_appends(self):
        self._refuse_to_fill(self.metastack[-1][-1], list)
        super().load_appends()

    def load_setitem(self):
        self._refuse_to_fill(self.stack[-3], dict)
        self._refuse_hashing(self.stack[-2:-1])
        super().load_setitem()

    def load_setitems(self):
        self._refuse_to_fill(self.metastack[-1][-1], dict)
        self._refuse_hashing(self.stack[::2])
        super().load_setitems()

    def _refuse_to_fill(self, target, kind):
        if not isinstance(target, kind):  # a tensor's items are memory, those of omegaconf's lists are copied
            raise Refused(f"items of a {type(target).__name__}")

    def _refuse_hashing(self, keys: Iterable):
        """Python's hash of a tuple in a tuple in a tuple ... ends the process."""
        for key in keys:
            if type(key) not in _SCALARS:
                raise Refused(f"a {type(key).__name__} in the place of a key", "end the process")

    def load_binpersid(self):
        what, kind, key, _, numel, *view = self.stack[-1]
        if view not in ([], [None]):  # of the old format: the storage may move before it is read
            raise Refused("a view of a storage")
        if (what, type(key), type(numel)) != ("storage", str, int) or numel < 0:
            raise pickle.UnpicklingError(f"a {_name(what)} of a {_name(numel)} in the place of a storage")
        size = numel * torch._utils._element_size(getattr(kind, "dtype", torch.uint8))
        record = f"data/{key}"
        if self.record_sizes and size > self.record_sizes.get(record, -1):  # PyTorch before 2.1 would read on in memory
            raise pickle.UnpicklingError(f"{record} is shorter than the storage that it is said to hold")
        if key not in self._keys:
            self._keys.add(key)
            self._left += FOR_A_STORAGE
            self.file_size -= size
            if self.file_size < 0:
                raise pickle.UnpicklingError(f"the storage {key} has more numbers than are left in the file")
        super().load_binpersid()

    dispatch = {
        **_PythonsOwn.dispatch,
        pickle.REDUCE[0]: load_reduce,
        pickle.NEWOBJ[0]: load_newobj,
        pickle.BUILD[0]: load_build,
        pickle.APPEND[0]: load_append,
        pickle.APPENDS[0]: load_appends,
        pickle.SETITEM[0]: load_setitem,
        pickle.SETITEMS[0]: load_setitems,
        pickle.BINPERSID[0]: load_binpersid,
    }
    for _unused in "DICT INST OBJ PERSID NEWOBJ_EX EMPTY_SET ADDITEMS FROZENSET BYTEARRAY8".split():
        del dispatch[getattr(pickle, _unused)[0]]  # other ways to the same, which torch.save does not take

    def load(self):
        try:
            return super().load()
        except KeyError as opcode:
            raise pickle.UnpicklingError(f"{opcode} is no operation of a checkpoint's pickle") from None


class _NoDescriptor(io.FileIO):
    """A file without a descriptor: PyTorch does not try whether it is a tar, its first format, which sets modes."""

    def fileno(self):
        raise io.UnsupportedOperation("fileno")


def sound_records(path: Union[str, Path]) -> Dict[str, int]:
    """The sizes in bytes of the records in PyTorch's zip by name; none in its older format.

    Raises UnpicklingError where they are not what was written: every byte is read, and compared with its checksum.
    """
    with open(str(path), "rb") as file:
        if file.read(4) != b"PK\3\4":
            return {}
        try:
            with zipfile.ZipFile(file) as archive:
                records = archive.infolist()
                if not records:
                    raise pickle.UnpicklingError("it is an archive of nothing")
                if any(record.filename.endswith("/constants.pkl") for record in records):
                    raise Refused("TorchScript")
                if any(record.compress_type or record.file_size != record.compress_size for record in records):
                    raise pickle.UnpicklingError("it is compressed, as torch.save's files are not")
                sizes = {record.filename.partition("/")[2]: record.file_size for record in records}
                if len(sizes) < len(records) or sum(sizes.values()) > os.fstat(file.fileno()).st_size:
                    raise pickle.UnpicklingError("one of its records lies in another")
                damaged = archive.testzip()
        except (Refused, pickle.UnpicklingError):
            raise
        except Exception as error:  # whatever zipfile raises on bytes that are no zip
            machine = isinstance(error, OSError) and error.errno != errno.EINVAL or isinstance(error, MemoryError)
            if machine:  # is at fault, and not the file
                raise
            raise pickle.UnpicklingError(f"it is damaged, or cut off: {error}") from error
    if damaged is not None:
        raise pickle.UnpicklingError(f"it is damaged: the checksum of {damaged} in it does not match")
    return sizes


def _refuse_options(options: Any) -> None:
    """Refuses what are no plain options: what omegaconf would look up elsewhere, and too many, one in another."""
    left, looked_at = [(options, 0)], 0
    while left:
        option, depth = left.pop()
        looked_at += 1
        if looked_at > _MOST_OPTIONS or depth > _DEEPEST_OPTION:
            raise Refused("more options than fairseq has, or for options in options in options", "take any memory")
        if isinstance(option, str) and "${" in option and not _OWN_OPTION.fullmatch(option):
            raise Refused(f"the interpolation {option}")
        left += [(part, depth + 1) for part in _parts(option)]


def _parts(option: Any) -> List[Any]:
    if isinstance(option, dict):
        return [*option, *option.values()]
    if isinstance(option, (list, tuple, set)):
        return list(option)
    if isinstance(option, argparse.Namespace):
        return list(vars(option).values())
    fields = getattr(option, "__dict__", {})  # omegaconf's, which also refer to what they are a part of
    return [fields[name] for name in ("_content", "_val") if name in fields]


def load(path: Union[str, Path], trust: bool = False) -> Dict[str, Any]:
    """What the checkpoint holds, on the CPU; with `trust` it may run what it carries.

    Raises `Refused`, and on a file that is no checkpoint, or is damaged, UnpicklingError or whatever PyTorch raises.
    """
    sizes = sound_records(path)
    if trust:
        return torch.load(str(path), map_location="cpu", weights_only=False)

    class Bounded(Unpickler):
        file_size = os.path.getsize(str(path))
        record_sizes = sizes

    reader = types.SimpleNamespace(
        __name__="pickle", Unpickler=Bounded, load=lambda file, **options: Bounded(file, **options).load()
    )
    with io.BufferedReader(_NoDescriptor(str(path))) as file:
        # torch.load asks this list, too, and hands TorchScript to torch.jit.load, which runs code whatever it is told.
        if sizes and "constants.pkl" in torch._C.PyTorchFileReader(file).get_all_records():
            raise Refused("TorchScript")
        file.seek(0)
        content = torch.load(file, map_location="cpu", pickle_module=reader, weights_only=False)
    if isinstance(content, dict):
        for options in ("args", "cfg"):
            _refuse_options(content.get(options))
    return content
