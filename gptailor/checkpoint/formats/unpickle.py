"""A pickle's tensors as names, dtypes, shapes and storages: read, never run.

A pickle is a program for a stack machine, and can call anything. This machine knows the few
instructions and the few names that a PyTorch state dict consists of; it makes descriptions of
tensors, and refuses everything else.
"""

import pickletools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

STORAGES: Mapping[str, str] = {
    "DoubleStorage": "F64", "FloatStorage": "F32", "HalfStorage": "F16", "BFloat16Storage": "BF16",
    "LongStorage": "I64", "IntStorage": "I32", "ShortStorage": "I16", "CharStorage": "I8",
    "ByteStorage": "U8", "BoolStorage": "BOOL", "ComplexFloatStorage": "C64",
    "UntypedStorage": "U8",
}  # fmt: skip
"""PyTorch's classes of storages, and safetensors' names of their dtypes."""

STORAGE_DTYPES: Mapping[str, str] = {
    "float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16",
    "int64": "I64", "int32": "I32", "int16": "I16", "int8": "I8",
    "uint64": "U64", "uint32": "U32", "uint16": "U16", "uint8": "U8", "bool": "BOOL",
    "float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2", "complex64": "C64",
}  # fmt: skip

CALLS = frozenset({
    "torch._utils _rebuild_tensor_v2",
    "torch._utils _rebuild_tensor_v3",
    "torch._utils _rebuild_parameter",
    "collections OrderedDict",
})  # fmt: skip
"""What a state dict calls."""


MOST_INSTRUCTIONS = 2_000_000
"""The longest pickle that is read, in instructions: some 60 000 tensors.

An instruction of one byte can make an object of a hundred, on the stack or in the memo.
"""


class PickleRefusal(ValueError):  # noqa: N818 (the pickle is refused)
    """Why a pickle isn't read."""


@dataclass(frozen=True, slots=True)
class Global:
    """Something that a pickle names: a function, a class or a dtype. Nothing is imported."""

    name: str


@dataclass(frozen=True, slots=True)
class Storage:
    """A stretch of numbers in a file of its own: its key, its dtype, and how many they are."""

    key: str
    dtype: str
    count: int


@dataclass(frozen=True, slots=True)
class Strided:
    """A tensor: a view of a storage. Offset and strides are in entries."""

    storage: Storage
    dtype: str
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class _Mark:
    """Where a group of values begins on the stack."""


def state_dict(raw: bytes) -> dict[str, Strided]:
    """The tensors of a pickled state dict by name. Raises PickleRefusal for anything else."""
    try:
        value = _Machine().run(raw)
    except PickleRefusal:
        raise
    except (ValueError, IndexError, KeyError, TypeError, OverflowError) as error:
        raise PickleRefusal(f"the pickle is damaged: {error}") from error
    if not isinstance(value, dict):
        raise PickleRefusal(f"it holds a {_kind(value)}, and no dictionary of tensors")
    for name, tensor in value.items():
        if not isinstance(name, str):
            raise PickleRefusal(f"a name is a {_kind(name)}, and no string")
        if not isinstance(tensor, Strided):
            raise PickleRefusal(f"'{name[:80]}' is a {_kind(tensor)}, and no tensor")
    return value


def _kind(value: object) -> str:
    return type(value).__name__.strip("_").lower()


class _Machine:
    """The stack machine, with the instructions that PyTorch writes."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def run(self, raw: bytes) -> object:
        """Read the pickle to its end; the value that it makes."""
        for count, (opcode, argument, _) in enumerate(pickletools.genops(raw)):
            if count >= MOST_INSTRUCTIONS:
                raise PickleRefusal(f"it has more than {MOST_INSTRUCTIONS} instructions")
            if opcode.name == "STOP":
                break
            step = _INSTRUCTIONS.get(opcode.name)
            if step is None:
                raise PickleRefusal(f"its instruction {opcode.name} is in no state dict")
            step(self, argument)
        (value,) = self.stack
        return value

    def push(self, value: Any) -> None:
        """Put a value on the stack."""
        self.stack.append(value)

    def group(self) -> list[Any]:
        """Take the values above the last mark from the stack, and the mark."""
        marks = (i for i in reversed(range(len(self.stack))) if isinstance(self.stack[i], _Mark))
        if (at := next(marks, None)) is None:
            raise PickleRefusal("the pickle is damaged: a mark is missing")
        values = self.stack[at + 1 :]
        del self.stack[at:]
        return values

    def take(self, count: int) -> list[Any]:
        """Take so many values from the stack."""
        if len(self.stack) < count:
            raise PickleRefusal("the pickle is damaged: its stack is empty")
        values = self.stack[len(self.stack) - count :]
        del self.stack[len(self.stack) - count :]
        return values

    def name(self, module: str, name: str) -> None:
        """Push a global, if it is one of those that a state dict needs."""
        full = f"{module} {name}"
        if full not in CALLS and not _is_torch(module, name):
            raise PickleRefusal(f"it names '{module[:80]}.{name[:80]}', which is in no state dict")
        self.push(Global(full))

    def store(self, pairs: list[Any]) -> None:
        """Put names and values into the dictionary on top of the stack."""
        target = self.stack[-1]
        if not isinstance(target, dict):
            raise PickleRefusal("it sets an item of something that is no dictionary")
        for key, value in zip(pairs[::2], pairs[1::2], strict=True):
            if not isinstance(key, str | int):
                raise PickleRefusal(f"a name is a {_kind(key)}, and no string")
            target[key] = value

    def extend(self, values: list[Any]) -> None:
        """Put values at the end of the list on top of the stack."""
        target = self.stack[-1]
        if not isinstance(target, list):
            raise PickleRefusal("it appends to something that is no list")
        target.extend(values)

    def build(self) -> None:
        """Drop the attributes of the value below: a state dict's `_metadata`."""
        self.take(1)
        if not isinstance(self.stack[-1], dict):
            raise PickleRefusal("it sets attributes of something that is no dictionary")

    def call(self) -> None:
        """Make what one of the known functions would."""
        function, arguments = self.take(2)
        if not isinstance(function, Global) or function.name not in CALLS:
            raise PickleRefusal("it calls something that is no function of a state dict")
        if not isinstance(arguments, tuple):
            raise PickleRefusal("it calls a function with no tuple of arguments")
        self.push(_called(function.name.rpartition(" ")[2], arguments))

    def persistent(self) -> None:
        """A storage: ('storage', its class, its key, a device, how many entries)."""
        (found,) = self.take(1)
        if not isinstance(found, tuple) or len(found) != 5 or found[0] != "storage":
            raise PickleRefusal("it refers to something that is no storage")
        _, kind, key, _, count = found
        name = kind.name.rpartition(" ")[2] if isinstance(kind, Global) else ""
        if name not in STORAGES or not isinstance(key, str) or not _is_count(count):
            raise PickleRefusal("it refers to a storage of no known kind")
        self.push(Storage(key, STORAGES[name], count))


def _is_torch(module: str, name: str) -> bool:
    if module == "torch.storage":
        return name == "UntypedStorage"
    return module == "torch" and (name in STORAGES or name in STORAGE_DTYPES)


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value < 2**62


def _called(name: str, arguments: tuple[Any, ...]) -> object:
    if name == "OrderedDict":
        if arguments:
            raise PickleRefusal("it fills a dictionary in an unknown way")
        return {}
    if name == "_rebuild_parameter":
        if not arguments or not isinstance(arguments[0], Strided):
            raise PickleRefusal("it makes a parameter of something that is no tensor")
        return arguments[0]
    return _tensor(arguments, typed=name == "_rebuild_tensor_v3")


def _tensor(arguments: tuple[Any, ...], *, typed: bool) -> Strided:
    if len(arguments) < 6 + typed or not isinstance(storage := arguments[0], Storage):
        raise PickleRefusal("it makes a tensor of something that is no storage")
    offset, shape, strides = arguments[1:4]
    if not (isinstance(shape, tuple) and isinstance(strides, tuple) and len(shape) == len(strides)):
        raise PickleRefusal("it makes a tensor without shape or strides")
    if len(shape) > 64 or not all(map(_is_count, (offset, *shape, *strides))):
        raise PickleRefusal("a tensor's shape or strides are no numbers that a tensor can have")
    dtype = storage.dtype
    if typed:
        given = arguments[6].name if isinstance(arguments[6], Global) else ""
        if (found := STORAGE_DTYPES.get(given.rpartition(" ")[2])) is None:
            raise PickleRefusal("a tensor has no known dtype")
        dtype = found
    return Strided(storage, dtype, offset, shape, strides)


# ---------------------------------------------------------------------------------- instructions


def _put(machine: _Machine, index: int) -> None:
    machine.memo[index] = machine.stack[-1]


def _global(machine: _Machine, argument: str) -> None:
    module, _, name = argument.partition(" ")
    machine.name(module, name)


def _stack_global(machine: _Machine, _: object) -> None:
    module, name = machine.take(2)
    if not isinstance(module, str) or not isinstance(name, str):
        raise PickleRefusal("it names something by no string")
    machine.name(module, name)


def _constants(
    **values: Callable[[], Any],
) -> Iterator[tuple[str, Callable[[_Machine, Any], None]]]:
    for name, make in values.items():
        yield name, partial(_push_made, make)


def _tuples() -> Iterator[tuple[str, Callable[[_Machine, Any], None]]]:
    for count in (1, 2, 3):
        yield f"TUPLE{count}", partial(_push_tuple, count)


def _push_made(make: Callable[[], Any], machine: _Machine, _: object) -> None:
    machine.push(make())


def _push_tuple(count: int, machine: _Machine, _: object) -> None:
    machine.push(tuple(machine.take(count)))


_ARGUMENTS = ("BININT", "BININT1", "BININT2", "LONG1", "LONG4", "INT", "LONG", "BINFLOAT",
              "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "SHORT_BINSTRING",
              "BINSTRING")  # fmt: skip
"""Instructions that push their argument."""

_INSTRUCTIONS: Mapping[str, Callable[[_Machine, Any], None]] = {
    "PROTO": lambda _, __: None,
    "FRAME": lambda _, __: None,
    "GLOBAL": _global,
    "STACK_GLOBAL": _stack_global,
    "BINPERSID": lambda m, _: m.persistent(),
    "REDUCE": lambda m, _: m.call(),
    "BUILD": lambda m, _: m.build(),
    "TUPLE": lambda m, _: m.push(tuple(m.group())),
    "SETITEM": lambda m, _: m.store(m.take(2)),
    "SETITEMS": lambda m, _: m.store(m.group()),
    "APPEND": lambda m, _: m.extend(m.take(1)),
    "APPENDS": lambda m, _: m.extend(m.group()),
    "BINPUT": _put,
    "LONG_BINPUT": _put,
    "MEMOIZE": lambda m, _: _put(m, len(m.memo)),
    "BINGET": lambda m, index: m.push(m.memo[index]),
    "LONG_BINGET": lambda m, index: m.push(m.memo[index]),
    **dict.fromkeys(_ARGUMENTS, _Machine.push),
    **dict(_tuples()),
    **dict(
        _constants(
            MARK=_Mark,
            NONE=lambda: None,
            NEWTRUE=lambda: True,
            NEWFALSE=lambda: False,
            EMPTY_TUPLE=tuple,
            EMPTY_LIST=list,
            EMPTY_DICT=dict,
        )
    ),
}
"""What each instruction does."""
