"""Reading PyTorch's pickled checkpoints without torch, by a machine that can build tensors and plain containers and nothing else.

A pickle is a program. Python's own `pickle` runs whatever functions it names; here a small interpreter steps through the opcodes
(parsed by `pickletools`, which executes nothing), knows the few names in `_CALLS` and `_STORAGES`, and refuses the rest. Nothing
is imported and no object of the file's choosing is made. Two layouts (torch/serialization.py): a zip of data.pkl and one
uncompressed entry per storage, and the older one of pickles followed by the storages' bytes. Tensors stay in the file until read.
"""

import dataclasses
import io
import math
import mmap
import pickletools
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np

from proxy_jax.weights.region import CheckpointError, Region

LEGACY_MAGIC, LEGACY_PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
PICKLE_LIMIT = 64 << 20  # bytes of opcodes; a 7B model's file has well under 1 MiB
MAX_RANK = 32
STATE_KEYS = ("model", "module", "state_dict")  # where training scripts put the weights, in LlamaGen's order


class PickleRefused(CheckpointError):
    """A pickle that asks for more than tensors in plain containers, or whose tensors do not lie inside the file."""


@dataclasses.dataclass(frozen=True)
class _Global:
    """A name that the pickle mentions: a label, never the thing."""

    name: str


@dataclasses.dataclass(frozen=True)
class _Storage:
    key: str
    dtype: np.dtype
    size: int  # elements


@dataclasses.dataclass(frozen=True)
class _Tensor:
    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class _Record:
    """What argparse.Namespace becomes: it keeps nothing."""


def _storage_types() -> dict[str, np.dtype]:
    names = {
        "Double": np.float64,
        "Float": np.float32,
        "Half": np.float16,
        "BFloat16": ml_dtypes.bfloat16,
        "Long": np.int64,
        "Int": np.int32,
        "Short": np.int16,
        "Char": np.int8,
        "Byte": np.uint8,
        "Bool": np.bool_,
    }
    return {f"torch.{name}Storage": np.dtype(dtype) for name, dtype in names.items()}


_STORAGES = _storage_types()


def _shown(value: Any) -> str:
    """A value for a message, of nested tuples the outermost alone: a few bytes can describe tuples of tuples that never end when written out."""
    return f"({', '.join(map(_word, value[:8]))})" if isinstance(value, tuple) else _word(value)


def _word(value: Any) -> str:
    if isinstance(value, str):
        return repr(value[:100])
    if isinstance(value, _Global):
        return value.name
    return str(value) if type(value) is int and abs(value) < 1 << 64 else type(value).__name__.strip("_")


def _naturals(values: Any, what: str) -> tuple[int, ...]:
    if not isinstance(values, tuple) or not all(type(value) is int and 0 <= value < 1 << 62 for value in values):
        raise PickleRefused(f"a tensor's {what} is {_shown(values)}, not a tuple of numbers from 0")
    return values


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any, *rest: Any) -> _Tensor:
    """torch's _rebuild_tensor and, with flags and hooks after the strides, _rebuild_tensor_v2."""
    if not isinstance(storage, _Storage):
        raise PickleRefused("a tensor on something that is not a storage")
    if len(rest) not in (0, 2, 3) or any(rest[1:]):
        raise PickleRefused("a tensor with hooks or metadata (conjugate or negative views are not read)")
    (offset,), shape, strides = _naturals((offset,), "offset"), _naturals(shape, "shape"), _naturals(strides, "strides")
    if len(shape) != len(strides) or len(shape) > MAX_RANK:
        raise PickleRefused(f"a tensor of shape {shape} with strides {strides}")
    last = sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    # The second bound refuses views that repeat elements: a few bytes could otherwise stand for terabytes.
    if 0 not in shape and (offset + last >= storage.size or math.prod(shape) > storage.size):
        raise PickleRefused(f"a tensor of shape {shape}, strides {strides}, offset {offset} on a storage of {storage.size} elements")
    return _Tensor(storage, offset, shape, strides)


def _parameter(data: Any, requires_grad: Any, hooks: Any) -> _Tensor:
    if not isinstance(data, _Tensor) or hooks:
        raise PickleRefused("a parameter that is not a tensor, or has hooks")
    return data


# What REDUCE may call, and NEWOBJ for the record. OrderedDict is always pickled empty and filled by SETITEMS.
_CALLS: dict[str, Callable[..., Any]] = {
    "collections.OrderedDict": lambda: {},
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": _parameter,
    "argparse.Namespace": _Record,
}
_LITERALS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_ARGUMENTS = {
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8"),
}
_EMPTY: dict[str, Callable[[], Any]] = {"EMPTY_TUPLE": tuple, "EMPTY_LIST": list, "EMPTY_DICT": dict}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


class _Machine:
    """The interpreter of one pickle. `persistent`: from a persistent id to the storage that it names."""

    def __init__(self, persistent: Callable[[Any], Any]):
        self.persistent = persistent
        self.stack: list[Any] = []
        self.outer: list[list[Any]] = []  # the stacks below the open marks
        self.memo: dict[int, Any] = {}

    def run(self, stream: BinaryIO | mmap.mmap) -> Any:
        """What the pickle at the stream's position describes; leaves the stream after it."""
        start = stream.tell()
        try:
            for opcode, argument, position in pickletools.genops(stream):
                if position - start > PICKLE_LIMIT:
                    raise PickleRefused(f"a pickle longer than {PICKLE_LIMIT} bytes")
                if opcode.name == "STOP":
                    return self.stack.pop()
                self.step(opcode.name, argument)
        except (IndexError, KeyError, TypeError, ValueError, OverflowError) as error:
            if isinstance(error, PickleRefused):
                raise
            raise PickleRefused(f"a broken pickle ({type(error).__name__}: {str(error)[:200]})") from error
        raise PickleRefused("a pickle without an end")

    def step(self, name: str, argument: Any) -> None:
        """One opcode."""
        if name in ("PROTO", "FRAME"):
            return
        if name in _LITERALS:
            self.stack.append(_LITERALS[name])
        elif name in _ARGUMENTS:
            self.stack.append(argument)
        elif name in _EMPTY:
            self.stack.append(_EMPTY[name]())
        elif name in ("GLOBAL", "STACK_GLOBAL"):
            self.push_global(argument.split(" ", 1) if name == "GLOBAL" else self.take(2))
        elif name in ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"):
            self.memo[len(self.memo) if name == "MEMOIZE" else argument] = self.stack[-1]
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            self.stack.append(self.memo[argument])
        elif name == "MARK":
            self.outer.append(self.stack)
            self.stack = []
        elif name in ("POP", "POP_MARK"):
            self.take(1) if name == "POP" else self.marked()
        elif name in ("REDUCE", "NEWOBJ"):
            function, arguments = self.take(2)
            self.stack.append(self.call(function, arguments, new=name == "NEWOBJ"))
        elif name == "BUILD":
            target, _state = self.take(2)
            if type(target) not in (dict, _Record):
                raise PickleRefused(f"sets the state of a {type(target).__name__.strip('_')}")
            self.stack.append(target)
        elif name == "BINPERSID":
            self.stack.append(self.persistent(self.stack.pop()))
        else:
            self.contain(name)

    def contain(self, name: str) -> None:
        """The opcodes that fill tuples, lists and dicts."""
        if name in _TUPLES:
            self.stack.append(tuple(self.take(_TUPLES[name])))
        elif name in ("TUPLE", "LIST"):
            items = self.marked()
            self.stack.append(tuple(items) if name == "TUPLE" else items)
        elif name == "DICT":
            items = self.marked()
            self.stack.append({})
            self.set_items(items)
        elif name in ("APPEND", "APPENDS"):
            items = self.take(1) if name == "APPEND" else self.marked()
            if type(self.stack[-1]) is not list:
                raise PickleRefused("appends to something that is not a list")
            self.stack[-1].extend(items)
        elif name in ("SETITEM", "SETITEMS"):
            self.set_items(self.take(2) if name == "SETITEM" else self.marked())
        else:
            raise PickleRefused(f"the opcode {name}, which no tensor needs")

    def take(self, count: int) -> list[Any]:
        """The top `count` items, removed, the topmost last."""
        if len(self.stack) < count:
            raise PickleRefused("a broken pickle (its stack is too short)")
        items = self.stack[-count:]
        del self.stack[-count:]
        return items

    def marked(self) -> list[Any]:
        """The items above the last mark, removed with it."""
        items, self.stack = self.stack, self.outer.pop()
        return items

    def set_items(self, items: list[Any]) -> None:
        """Puts keys and values, in turn, into the dict on top of the stack. Raises PickleRefused for anything but plain keys and a dict."""
        target = self.stack[-1]
        if type(target) is not dict or len(items) % 2:
            raise PickleRefused("sets items of something that is not a dict")
        for key, value in zip(items[::2], items[1::2], strict=True):
            if not isinstance(key, (str, int, float, type(None))):  # hashing a tuple of tuples can take for ever
                raise PickleRefused(f"a dict key of type {type(key).__name__.strip('_')}")
            target[key] = value

    def push_global(self, parts: list[Any]) -> None:
        """Pushes a name that stands for itself; nothing is imported. Raises PickleRefused for one that no tensor needs."""
        if not all(isinstance(part, str) for part in parts):
            raise PickleRefused("a name that is no text")
        name = ".".join(part[:200] for part in parts)
        if name not in _CALLS and name not in _STORAGES:
            raise PickleRefused(f"names {name!r}; only tensors in plain containers are read")
        self.stack.append(_Global(name))

    def call(self, function: Any, arguments: Any, *, new: bool) -> Any:
        """What our own stand-in for a known name makes of the arguments; new: as a class. Raises PickleRefused for any other call."""
        known = isinstance(function, _Global) and function.name in _CALLS
        if not known or new != (function.name == "argparse.Namespace"):
            raise PickleRefused(f"calls {function.name if isinstance(function, _Global) else type(function).__name__.strip('_')!r}")
        if not isinstance(arguments, tuple):
            raise PickleRefused(f"calls {function.name!r} without a tuple of arguments")
        return _CALLS[function.name](*arguments)


def _storage(identifier: Any) -> _Storage:
    """The storage of a persistent id ("storage", type, key, device, elements[, view])."""
    if not isinstance(identifier, tuple) or len(identifier) not in (5, 6) or identifier[0] != "storage" or any(identifier[5:]):
        raise PickleRefused(f"the persistent id {_shown(identifier)}, which is not a plain storage")
    _, kind, key, _, size = identifier[:5]
    if not isinstance(kind, _Global) or kind.name not in _STORAGES or not isinstance(key, str):
        raise PickleRefused(f"a storage of an unknown type or key: {_shown(identifier)}")
    return _Storage(key, _STORAGES[kind.name], _naturals((size,), "storage size")[0])


def torch_regions(path: Path) -> dict[str, Region]:
    """Where each tensor of a PyTorch checkpoint lies. The weights are the dict under "model", "module" or "state_dict", or the top level.

    Raises PickleRefused for anything but tensors in plain containers, and CheckpointError for a file that is not one of torch's.
    """
    size = path.stat().st_size
    if size < 4:
        raise CheckpointError(f"{path}: not a PyTorch file ({size} bytes)")
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            loaded, places = _read_zip(path, data) if data[:4] == b"PK\x03\x04" else _read_legacy(data)
        return {name: _place(path, tensor, places) for name, tensor in _state_dict(loaded).items()}
    except PickleRefused as error:
        raise PickleRefused(f"{path} is refused: {error}") from error
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error


def _state_dict(loaded: Any) -> dict[str, _Tensor]:
    if isinstance(loaded, dict):
        loaded = next((loaded[key] for key in STATE_KEYS if isinstance(loaded.get(key), dict)), loaded)
    if not isinstance(loaded, dict) or not loaded:
        raise CheckpointError(f"holds no dict of tensors, at the top level or under {', '.join(STATE_KEYS)}")
    others = [_shown(name) for name, value in loaded.items() if not isinstance(name, str) or not isinstance(value, _Tensor)]
    if others:
        raise CheckpointError(f"a state dict with entries that are not tensors: {', '.join(others[:10])}")
    return loaded


def _place(path: Path, tensor: _Tensor, places: dict[str, tuple[int, int]]) -> Region:
    storage = tensor.storage
    if storage.key not in places:
        raise PickleRefused(f"a tensor on the storage {storage.key[:100]!r}, which the file does not have")
    start, size = places[storage.key]
    if storage.size * storage.dtype.itemsize > size:
        raise PickleRefused(f"the storage {storage.key[:100]!r} of {storage.size} {storage.dtype} elements has only {size} bytes in the file")
    return Region(path, start + tensor.offset * storage.dtype.itemsize, storage.dtype, tensor.shape, tensor.strides)


def _read_zip(path: Path, data: mmap.mmap) -> tuple[Any, dict[str, tuple[int, int]]]:
    """What data.pkl describes, and the (start, bytes) of each storage."""
    entries = dict(_zip_entries(path, data))
    pickles = [name for name in entries if PurePosixPath(name).name == "data.pkl" and len(PurePosixPath(name).parts) == 2]
    if len(pickles) != 1:
        raise CheckpointError(f"a zip file with {len(pickles)} entries named TOP/data.pkl, not 1: not a PyTorch file")
    top = pickles[0].removesuffix("data.pkl")
    start, size = entries.get(f"{top}byteorder", (0, 0))
    if size and data[start : start + size] != b"little":
        raise CheckpointError("big-endian storages, which are not read")
    start, size = entries[pickles[0]]
    if size > PICKLE_LIMIT:
        raise PickleRefused(f"a pickle longer than {PICKLE_LIMIT} bytes")
    loaded = _Machine(_storage).run(io.BytesIO(data[start : start + size]))
    prefix = f"{top}data/"
    return loaded, {name.removeprefix(prefix): place for name, place in entries.items() if name.startswith(prefix)}


def _zip_entries(path: Path, data: mmap.mmap) -> Iterator[tuple[str, tuple[int, int]]]:
    """The (start, bytes) of each entry. Only uncompressed entries that fit the file, so that no size is more than it seems."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, NotImplementedError, ValueError) as error:
        raise CheckpointError(f"a broken zip file: {error}") from error
    if len({entry.filename for entry in entries}) != len(entries):
        raise PickleRefused("a zip file with two entries of one name")
    if sum(entry.file_size for entry in entries) > len(data):
        raise PickleRefused("a zip file whose entries are larger than itself")
    for entry in entries:
        name, header = entry.orig_filename, entry.header_offset
        if name.startswith("/") or "\\" in name or "\0" in name or ".." in PurePosixPath(name).parts:
            raise PickleRefused(f"a zip entry with the path {name[:100]!r}")
        if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1 or entry.file_size != entry.compress_size:
            raise PickleRefused(f"the zip entry {name[:100]!r} is compressed or encrypted; torch stores its entries as they are")
        lengths = [int.from_bytes(data[header + at : header + at + 2], "little") for at in (26, 28)]
        start = header + 30 + sum(lengths)
        if header < 0 or data[header : header + 4] != b"PK\x03\x04" or start + entry.file_size > len(data):
            raise PickleRefused(f"the zip entry {name[:100]!r} lies outside the file")
        yield name, (start, entry.file_size)


def _read_legacy(data: mmap.mmap) -> tuple[Any, dict[str, tuple[int, int]]]:
    """The older layout: magic, protocol, system info, object and storage keys, a pickle each; then each storage's length and bytes."""
    storages: dict[str, _Storage] = {}

    def persistent(identifier: Any) -> _Storage:
        storage = _storage(identifier)
        if storages.setdefault(storage.key, storage) != storage:
            raise PickleRefused(f"the storage {storage.key[:100]!r} is described in two ways")
        return storage

    if data[:1] != b"\x80" or _Machine(_no_storage).run(data) != LEGACY_MAGIC or _Machine(_no_storage).run(data) != LEGACY_PROTOCOL:
        raise CheckpointError("not a PyTorch file (neither its zip nor its older layout)")
    system = _Machine(_no_storage).run(data)
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise CheckpointError("big-endian storages, which are not read")
    loaded, keys = _Machine(persistent).run(data), _Machine(_no_storage).run(data)
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys) or sorted(keys) != sorted(storages):
        raise PickleRefused("its list of storages is not the one that its tensors name")
    places, start = {}, data.tell()
    for key in keys:
        storage, length = storages[key], int.from_bytes(data[start : start + 8], "little", signed=True)
        size = storage.size * storage.dtype.itemsize
        if length != storage.size or start + 8 + size > len(data):
            raise PickleRefused(f"the storage {key[:100]!r} of {storage.size} elements is stored with {length} or cut short")
        places[key] = (start + 8, size)
        start += 8 + size
    return loaded, places


def _no_storage(identifier: Any) -> Any:
    raise PickleRefused("a storage where none belongs")
