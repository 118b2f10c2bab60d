"""PyTorch's `.bin` files: names, dtypes, shapes and places of their tensors; no pickle is run.

Such a file is a zip archive of a pickle and of each storage's bytes, uncompressed. A contiguous
tensor is a stretch of the file; all other tensors are `Pickled`.

A pickle is a program for a stack machine, and can call anything. The machine here knows the few
instructions and the few names that a PyTorch state dict consists of; it makes descriptions of
tensors, and refuses everything else.
"""

import io
import os
import pickletools
import warnings
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any, NoReturn, final

from gptailor.checkpoint.files import CheckpointError, open_regular, quoted, read_exactly
from gptailor.checkpoint.tensor import DTYPE_BITS, ByteRange, Pickled, TensorInfo, TensorSpec

BIN_SINGLE = "pytorch_model.bin"
BIN_INDEX = "pytorch_model.bin.index.json"
ADAPTER_BIN = "adapter_model.bin"

MAX_PICKLE = 100_000_000
"""The largest pickle that is read, in bytes: as much as a safetensors header may have."""

MOST_INSTRUCTIONS = 2_000_000
"""The longest pickle that is read, in instructions: some 60 000 tensors.

An instruction of one byte can make an object of a hundred, on the stack or in the memo.
"""

_STORAGES: Mapping[str, str] = {
    "DoubleStorage": "F64", "FloatStorage": "F32", "HalfStorage": "F16", "BFloat16Storage": "BF16",
    "LongStorage": "I64", "IntStorage": "I32", "ShortStorage": "I16", "CharStorage": "I8",
    "ByteStorage": "U8", "BoolStorage": "BOOL", "ComplexFloatStorage": "C64",
    "UntypedStorage": "U8",
}  # fmt: skip
"""PyTorch's classes of storages, and their dtypes' names in safetensors."""

_DTYPES: Mapping[str, str] = {
    "float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16",
    "int64": "I64", "int32": "I32", "int16": "I16", "int8": "I8",
    "uint64": "U64", "uint32": "U32", "uint16": "U16", "uint8": "U8", "bool": "BOOL",
    "float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2", "complex64": "C64",
}  # fmt: skip

_CALLS = {"collections OrderedDict"} | {
    f"torch._utils _rebuild_{what}" for what in ("tensor_v2", "tensor_v3", "parameter")
}
"""Functions that a state dict calls."""

_TORCH = {f"torch {name}" for name in (*_STORAGES, *_DTYPES)} | {"torch.storage UntypedStorage"}
"""Other names in a state dict."""

_MARK = object()
"""The mark of a group of values on the stack."""

_LOCAL = 30  # bytes of a zip member's own header, before its name
_RESAVE = "load it with `torch.load(…, weights_only=True)` and save it again as safetensors"


@final
class _PickleRefusal(Exception):  # noqa: N818 (the pickle is refused)
    """A reason why a pickle isn't read."""


@final
@dataclass(frozen=True, slots=True)
class _Global:
    """A name in a pickle: of a function, a class or a dtype. Nothing is imported."""

    name: str


@final
@dataclass(frozen=True, slots=True)
class _Storage:
    """A stretch of numbers in a file of its own: its key and its dtype."""

    key: str
    dtype: str


@final
@dataclass(frozen=True, slots=True)
class _Strided:
    """A tensor: a view of a storage. Offset and strides are in entries."""

    storage: _Storage
    dtype: str
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def read_pickled(path: Path) -> dict[str, TensorInfo]:
    """Return the tensors of a `.bin` file in the order of its state dict; no weight is read."""
    with open_regular(path) as file:
        archive = _Archive(path, file)
        try:
            tensors = _state_dict(archive.content("data.pkl", MAX_PICKLE))
        except _PickleRefusal as error:
            _refuse(path, f"isn't a state dict that gptailor reads: {error}", _RESAVE)
        return {name: archive.tensor(name, tensor) for name, tensor in tensors.items()}


def _refuse(path: Path, message: str, help: str = "", at: int | None = None) -> NoReturn:
    raise CheckpointError("C108", message, path, help, at)


@final
class _Archive:
    """The zip archive of a `.bin` file, with uncompressed members."""

    def __init__(self, path: Path, file: io.FileIO) -> None:
        self.path = path
        self.file = file
        self.size = os.fstat(file.fileno()).st_size
        if read_exactly(file, min(4, self.size), path, "C108") != b"PK\x03\x04":
            message = "isn't a zip archive, the format of PyTorch since version 1.6"
            _refuse(path, message, _RESAVE, 0)
        self.members = self._members()
        pickles = [name for name in self.members if name.endswith("/data.pkl")]
        if len(pickles) != 1:
            _refuse(path, f"has {len(pickles)} files 'data.pkl', expected one")
        self.root = pickles[0].removesuffix("data.pkl")
        if (order := self.content("byteorder", 16)) not in {b"", b"little"}:
            _refuse(path, f"its numbers are in byte order {quoted(order.decode('latin-1'))}")

    def _members(self) -> dict[str, ByteRange]:
        try:
            with zipfile.ZipFile(self.file) as archive:
                infos = archive.infolist()
        except (zipfile.BadZipFile, NotImplementedError, ValueError, OSError) as error:
            _refuse(self.path, f"is a damaged zip archive: {error}", "download it again")
        members: dict[str, ByteRange] = {}
        for info in infos:
            if info.filename in members:
                _refuse(self.path, f"has {quoted(info.filename)} twice")
            members[info.filename] = self._member(info)
        return members

    def _member(self, info: zipfile.ZipInfo) -> ByteRange:
        """Return a member's bytes, by the member's own header, as PyTorch does."""
        name, at = quoted(info.filename), info.header_offset
        if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
            _refuse(self.path, f"{name} is compressed or encrypted")
        if not 0 <= at <= self.size - _LOCAL:
            _refuse(
                self.path, f"{name} begins beyond the end of the file", at=at if at > 0 else None
            )
        self.file.seek(at)
        header = read_exactly(self.file, _LOCAL, self.path, "C108")
        if header[:4] != b"PK\x03\x04":
            _refuse(self.path, f"{name} has no header of its own", at=at)
        lengths = int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
        begin = at + _LOCAL + lengths
        if info.file_size != info.compress_size or begin + info.file_size > self.size:
            _refuse(self.path, f"{name} ends beyond the file's end", "download it again", at)
        return ByteRange(self.path, begin, info.file_size)

    def content(self, name: str, most: int) -> bytes:
        """Return a small member's bytes; nothing if it is missing."""
        member = self.members.get(self.root + name)
        if member is None:
            return b""
        if member.size > most:
            _refuse(self.path, f"{quoted(name)} has {member.size} bytes", at=member.offset)
        self.file.seek(member.offset)
        return read_exactly(self.file, member.size, self.path, "C108")

    def tensor(self, name: str, tensor: _Strided) -> TensorInfo:
        """Return a tensor's spec and place within its storage, or refuse the file."""
        shown = quoted(name)
        member = self.members.get(f"{self.root}data/{tensor.storage.key}")
        if member is None:
            _refuse(self.path, f"the storage of {shown} is not in the file")
        width = DTYPE_BITS[tensor.dtype] // 8
        spec = TensorSpec(name, tensor.dtype, tensor.shape)
        steps = zip(tensor.shape, tensor.strides, strict=True)
        reach = 1 + sum((extent - 1) * stride for extent, stride in steps) if spec.elements else 0
        if (end := (tensor.offset + reach) * width) > member.size:
            message = f"{shown} ends at byte {end} of its storage, which has {member.size}"
            _refuse(self.path, message, "download it again", member.offset)
        if spec.size > self.size:  # an expanded view: one entry can make terabytes
            message = f"{shown} has {spec.size:.4g} bytes, more than the whole file"
            _refuse(self.path, message, at=member.offset)
        form = None if _is_plain(tensor) else Pickled(name)
        return TensorInfo(spec, self.path, member.offset + tensor.offset * width, form)


def _is_plain(tensor: _Strided) -> bool:
    """Return whether the entries lie in a row, in the order of their indices."""
    steps = (prod(tensor.shape[axis + 1 :]) for axis in range(len(tensor.shape)))
    each = zip(tensor.shape, tensor.strides, steps, strict=True)
    return 0 in tensor.shape or all(extent == 1 or stride == step for extent, stride, step in each)


# ------------------------------------------------------------------------------------- the pickle


def _state_dict(raw: bytes) -> dict[str, _Strided]:
    """Return the tensors of a pickled state dict by name. Raises _PickleRefusal for others."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of damaged texts' escapes
            value = _Machine().run(raw)
    except (ValueError, IndexError, KeyError, TypeError, OverflowError) as error:
        raise _PickleRefusal(f"the pickle is damaged: {error}") from error
    if not isinstance(value, dict):
        raise _PickleRefusal(f"expected a dictionary of tensors, got a {_kind(value)}")
    for name, tensor in value.items():
        if not isinstance(name, str):
            raise _PickleRefusal(f"expected a string as a name, got a {_kind(name)}")
        if not isinstance(tensor, _Strided):
            raise _PickleRefusal(f"expected a tensor for '{name[:80]}', got a {_kind(tensor)}")
    return value


def _kind(value: object) -> str:
    return type(value).__name__.strip("_").lower()


@final
@dataclass(frozen=True)
class _Machine:
    """The stack machine, with the instructions that PyTorch writes."""

    stack: list[Any] = field(default_factory=list)
    memo: dict[int, Any] = field(default_factory=dict)

    def run(self, raw: bytes) -> object:
        """Read the pickle to its end, and return its value."""
        for count, (opcode, argument, _) in enumerate(pickletools.genops(raw)):
            if count >= MOST_INSTRUCTIONS:
                raise _PickleRefusal(f"it has more than {MOST_INSTRUCTIONS} instructions")
            if opcode.name == "STOP":
                break
            if (step := _INSTRUCTIONS.get(opcode.name)) is None:
                raise _PickleRefusal(f"a state dict has no instruction {opcode.name}")
            step(self, argument)
        (value,) = self.stack
        return value

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def put(self, index: int) -> None:
        self.memo[index] = self.stack[-1]

    def group(self) -> list[Any]:
        """Take the values above the last mark from the stack, and the mark."""
        marks = (i for i in reversed(range(len(self.stack))) if self.stack[i] is _MARK)
        if (at := next(marks, None)) is None:
            raise _PickleRefusal("the pickle is damaged: a mark is missing")
        return self.take(len(self.stack) - at)[1:]

    def take(self, count: int) -> list[Any]:
        if len(self.stack) < count:
            raise _PickleRefusal("the pickle is damaged: its stack is empty")
        at = len(self.stack) - count
        values, self.stack[at:] = self.stack[at:], []
        return values

    def name(self, module: object, name: object) -> None:
        """Push a global, if a state dict needs it."""
        if not isinstance(module, str) or not isinstance(name, str):
            raise _PickleRefusal("expected a string as a name")
        full = f"{module} {name}"
        if full not in _CALLS and full not in _TORCH:
            raise _PickleRefusal(
                f"it names '{module[:80]}.{name[:80]}', which a state dict doesn't contain"
            )
        self.push(_Global(full))

    def store(self, pairs: list[Any]) -> None:
        """Put names and values into the dictionary on top of the stack."""
        target = self.stack[-1]
        if not isinstance(target, dict):
            raise _PickleRefusal("it sets an item of something that isn't a dictionary")
        for key, value in zip(pairs[::2], pairs[1::2], strict=True):
            if not isinstance(key, str | int):
                raise _PickleRefusal(f"expected a string as a name, got a {_kind(key)}")
            target[key] = value

    def extend(self, values: list[Any]) -> None:
        if not isinstance(self.stack[-1], list):
            raise _PickleRefusal("it appends to something that isn't a list")
        self.stack[-1] += values

    def build(self) -> None:
        """Drop the attributes of the value below: a state dict's `_metadata`."""
        self.take(1)
        if not isinstance(self.stack[-1], dict):
            raise _PickleRefusal("it sets attributes of something that isn't a dictionary")

    def call(self) -> None:
        function, arguments = self.take(2)
        if not isinstance(function, _Global) or function.name not in _CALLS:
            raise _PickleRefusal("it calls something that isn't a function of a state dict")
        if not isinstance(arguments, tuple):
            raise _PickleRefusal("it calls a function without a tuple of arguments")
        self.push(_called(function.name.rpartition(" ")[2], arguments))

    def persistent(self) -> None:
        """Push a storage: ('storage', its class, its key, a device, its number of entries)."""
        (reference,) = self.take(1)
        if not isinstance(reference, tuple) or len(reference) != 5 or reference[0] != "storage":
            raise _PickleRefusal("it refers to something that isn't a storage")
        _, kind, key, _, count = reference
        name = kind.name.rpartition(" ")[2] if isinstance(kind, _Global) else ""
        if name not in _STORAGES or not isinstance(key, str) or not _is_count(count):
            raise _PickleRefusal("it refers to a storage of an unknown kind")
        self.push(_Storage(key, _STORAGES[name]))


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value < 2**62


def _called(name: str, arguments: tuple[Any, ...]) -> object:
    if name == "OrderedDict" and arguments:
        raise _PickleRefusal("it fills a dictionary in an unknown way")
    if name == "OrderedDict":
        return {}
    if name != "_rebuild_parameter":
        return _tensor(arguments, typed=name == "_rebuild_tensor_v3")
    if not arguments or not isinstance(arguments[0], _Strided):
        raise _PickleRefusal("it makes a parameter of something that isn't a tensor")
    return arguments[0]


def _tensor(arguments: tuple[Any, ...], *, typed: bool) -> _Strided:
    if len(arguments) < 6 + typed or not isinstance(storage := arguments[0], _Storage):
        raise _PickleRefusal("it makes a tensor of something that isn't a storage")
    offset, shape, strides = arguments[1:4]
    if not (isinstance(shape, tuple) and isinstance(strides, tuple) and len(shape) == len(strides)):
        raise _PickleRefusal("it makes a tensor without shape or strides")
    if len(shape) > 64 or not all(map(_is_count, (offset, *shape, *strides))):
        raise _PickleRefusal("a tensor's shape or strides aren't valid")
    if not typed:
        return _Strided(storage, storage.dtype, offset, shape, strides)
    name = arguments[6].name if isinstance(arguments[6], _Global) else ""
    if (dtype := _DTYPES.get(name.rpartition(" ")[2])) is None:
        raise _PickleRefusal("a tensor has an unknown dtype")
    return _Strided(storage, dtype, offset, shape, strides)


_ARGUMENTS = (
    "BININT", "BININT1", "BININT2", "LONG1", "LONG4", "INT", "LONG", "BINFLOAT", "BINUNICODE",
    "SHORT_BINUNICODE", "BINUNICODE8", "SHORT_BINSTRING", "BINSTRING",
)  # fmt: skip
"""Instructions that push their argument."""

_INSTRUCTIONS: Mapping[str, Callable[[_Machine, Any], None]] = {
    **dict.fromkeys(("PROTO", "FRAME"), lambda _, __: None),
    "GLOBAL": lambda m, argument: m.name(*argument.partition(" ")[::2]),
    "STACK_GLOBAL": lambda m, _: m.name(*m.take(2)),
    "BINPERSID": lambda m, _: m.persistent(),
    "REDUCE": lambda m, _: m.call(),
    "BUILD": lambda m, _: m.build(),
    "MARK": lambda m, _: m.push(_MARK),
    "NONE": lambda m, _: m.push(None),
    "NEWTRUE": lambda m, _: m.push(True),
    "NEWFALSE": lambda m, _: m.push(False),
    "EMPTY_TUPLE": lambda m, _: m.push(()),
    "EMPTY_LIST": lambda m, _: m.push([]),
    "EMPTY_DICT": lambda m, _: m.push({}),
    "TUPLE": lambda m, _: m.push(tuple(m.group())),
    "SETITEM": lambda m, _: m.store(m.take(2)),
    "SETITEMS": lambda m, _: m.store(m.group()),
    "APPEND": lambda m, _: m.extend(m.take(1)),
    "APPENDS": lambda m, _: m.extend(m.group()),
    **dict.fromkeys(("BINPUT", "LONG_BINPUT"), _Machine.put),
    "MEMOIZE": lambda m, _: m.put(len(m.memo)),
    **dict.fromkeys(("BINGET", "LONG_BINGET"), lambda m, index: m.push(m.memo[index])),
    "TUPLE1": lambda m, _: m.push(tuple(m.take(1))),
    "TUPLE2": lambda m, _: m.push(tuple(m.take(2))),
    "TUPLE3": lambda m, _: m.push(tuple(m.take(3))),
    **dict.fromkeys(_ARGUMENTS, _Machine.push),
}
"""The effect of each instruction."""
