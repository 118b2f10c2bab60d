"""A GGUF file's metadata and table of tensors, without a library; lengths are checked first."""

import io
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import NoReturn, final

from gptailor.checkpoint.files import CheckpointError, open_regular, quoted, shown

GgufValue = int | float | bool | str | tuple["GgufValue", ...]


@final
@dataclass(frozen=True, slots=True)
class TensorKind:
    """A type of tensors: entries in a block, bytes of a block, and the plain dtype that it is."""

    name: str
    block: int
    bytes: int
    plain: str | None = None


_TABLE: Mapping[int, TensorKind] = {
    0: TensorKind("F32", 1, 4, "F32"), 1: TensorKind("F16", 1, 2, "F16"),
    2: TensorKind("Q4_0", 32, 18), 3: TensorKind("Q4_1", 32, 20), 6: TensorKind("Q5_0", 32, 22),
    7: TensorKind("Q5_1", 32, 24), 8: TensorKind("Q8_0", 32, 34), 10: TensorKind("Q2_K", 256, 84),
    11: TensorKind("Q3_K", 256, 110), 12: TensorKind("Q4_K", 256, 144),
    13: TensorKind("Q5_K", 256, 176), 14: TensorKind("Q6_K", 256, 210),
    16: TensorKind("IQ2_XXS", 256, 66), 17: TensorKind("IQ2_XS", 256, 74),
    18: TensorKind("IQ3_XXS", 256, 98), 19: TensorKind("IQ1_S", 256, 50),
    20: TensorKind("IQ4_NL", 32, 18), 21: TensorKind("IQ3_S", 256, 110),
    22: TensorKind("IQ2_S", 256, 82), 23: TensorKind("IQ4_XS", 256, 136),
    28: TensorKind("F64", 1, 8, "F64"), 29: TensorKind("IQ1_M", 256, 56),
    30: TensorKind("BF16", 1, 2, "BF16"), 34: TensorKind("TQ1_0", 256, 54),
    35: TensorKind("TQ2_0", 256, 66), 39: TensorKind("MXFP4", 32, 17),
}  # fmt: skip
"""The types that are read, by their numbers in the format."""

KINDS: Mapping[str, TensorKind] = {kind.name: kind for kind in _TABLE.values()}

_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?",
            10: "Q", 11: "q", 12: "d"}  # fmt: skip
_STRING, _ARRAY = 8, 9
_MAX_DIMENSIONS = 4

MAX_GGUF_HEADER = 100_000_000
"""The largest header, in bytes: as much as a safetensors file's; vocabularies take a tenth."""


@final
@dataclass(frozen=True, slots=True)
class GgufTensor:
    """A tensor of the file: its type, its shape with rows first, and its first byte's offset."""

    name: str
    kind: TensorKind
    shape: tuple[int, ...]
    offset: int

    @property
    def size(self) -> int:
        """The number of its bytes."""
        return prod(self.shape) // self.kind.block * self.kind.bytes


@final
@dataclass(frozen=True, slots=True)
class Header:
    """What a GGUF file says, and its tensors by name."""

    path: Path
    facts: Mapping[str, GgufValue]
    tensors: Mapping[str, GgufTensor]


def read_gguf(path: Path) -> Header:
    """The metadata and the table of tensors; no weight is read."""
    with open_regular(path) as raw, io.BufferedReader(raw, 2**20) as file:
        size = os.fstat(file.fileno()).st_size
        return _Reader(path, file, size).header()


@final
class _Reader:
    """Reads on and on, never past the file's end."""

    def __init__(self, path: Path, file: "io.BufferedReader[io.FileIO]", size: int) -> None:
        self.path = path
        self.file = file
        self.size = size
        self.at = 0

    def refuse(self, message: str, help: str = "") -> NoReturn:
        raise CheckpointError("C109", message, self.path, help, self.at)

    def bytes(self, count: int) -> bytes:
        """The next bytes; a count is believed only once the file has so many."""
        if count > self.size - self.at:
            self.refuse("the file is cut short", "download it again")
        if count > MAX_GGUF_HEADER - self.at:
            self.refuse(f"the header is longer than {MAX_GGUF_HEADER} bytes")
        raw = self.file.read(count)
        if len(raw) != count:
            self.refuse("became shorter while it was read")
        self.at += count
        return raw

    def number(self, code: str) -> int:
        """The next whole number, of one of struct's kinds."""
        return int(struct.unpack(f"<{code}", self.bytes(struct.calcsize(code)))[0])

    def string(self) -> str:
        """The next text; what isn't UTF-8 is kept by escapes."""
        return self.bytes(self.number("Q")).decode("utf-8", "surrogateescape")

    def value(self, kind: int) -> GgufValue:
        """The next value of a type; of a list, its items (a list of lists is refused)."""
        if kind in _NUMBERS:
            return self.numbers(kind, 1)[0]
        if kind == _STRING:
            return self.string()
        if kind != _ARRAY:
            self.refuse(f"a value is of the unknown type {kind}")
        inner, count = self.number("I"), self.number("Q")
        if inner in _NUMBERS:
            return self.numbers(inner, count)
        if inner != _STRING:
            self.refuse(f"a list's items are of the type {inner}")
        if count * 8 > self.size - self.at:
            self.refuse(f"a list of {count} texts is longer than the file")
        return tuple(self.string() for _ in range(count))

    def numbers(self, kind: int, count: int) -> tuple[GgufValue, ...]:
        code = _NUMBERS[kind]
        return struct.unpack(f"<{count}{code}", self.bytes(struct.calcsize(code) * count))

    def header(self) -> Header:
        """All up to the data; where each tensor lies is checked."""
        if self.size < 24 or self.bytes(4) != b"GGUF":
            self.at = 0
            self.refuse("is no GGUF file")
        version = self.number("I")
        if version not in {2, 3}:
            big = int.from_bytes(version.to_bytes(4, "little"), "big") in {2, 3}
            what = "is in big-endian byte order" if big else f"is of version {version}"
            self.refuse(f"{what}; versions 2 and 3 in little-endian order are read")
        tensors, count = self.number("Q"), self.number("Q")
        facts = self._facts(count)
        return Header(self.path, facts, self._placed(self._table(tensors), facts))

    def _credible(self, count: int, least: int, what: str) -> int:
        if count * least > self.size:
            self.refuse(f"says that it has {count} {what}, more than it has room for")
        return count

    def _facts(self, count: int) -> dict[str, GgufValue]:
        facts: dict[str, GgufValue] = {}
        for _ in range(self._credible(count, 13, "facts")):
            name = self.string()
            if name in facts:
                self.refuse(f"says {quoted(name)} twice")
            facts[name] = self.value(self.number("I"))
        return facts

    def _table(self, count: int) -> list[GgufTensor]:
        table: dict[str, GgufTensor] = {}
        for _ in range(self._credible(count, 24, "tensors")):
            begin, entry = self.at, self._entry()
            if entry.name in table:
                self.at = begin
                self.refuse(f"there are two tensors {quoted(entry.name)}")
            table[entry.name] = entry
        return list(table.values())

    def _entry(self) -> GgufTensor:
        name = self.string()
        dimensions = self.number("I")
        if dimensions > _MAX_DIMENSIONS:
            self.refuse(f"{quoted(name)} has {dimensions} dimensions; at most 4 are allowed")
        extents = [self.number("Q") for _ in range(dimensions)]
        number = self.number("I")
        kind = _TABLE.get(number)
        if kind is None:
            self.refuse(f"{quoted(name)} is of type {number}, which can't be dequantised here")
        if extents and extents[0] % kind.block:
            self.refuse(f"a row of {quoted(name)} has {extents[0]} entries, no whole blocks")
        return GgufTensor(name, kind, tuple(reversed(extents)), self.number("Q"))

    def _placed(
        self, table: list[GgufTensor], facts: Mapping[str, GgufValue]
    ) -> dict[str, GgufTensor]:
        """The tensors by name, each within the file and apart from the others."""
        alignment = facts.get("general.alignment", 32)
        if type(alignment) is not int or alignment < 1 or alignment & (alignment - 1):
            self.refuse(f"'general.alignment' is {shown(alignment)}, and no power of two")
        start = -(-self.at // alignment) * alignment
        end, tensors = start, {}
        for entry in sorted(table, key=lambda entry: entry.offset):
            self.at = start + entry.offset
            if self.at < end or entry.offset % alignment:
                self.refuse(f"{quoted(entry.name)} overlaps another tensor, or isn't aligned")
            end = self.at + entry.size
            if end > self.size:
                self.refuse(f"{quoted(entry.name)} ends beyond the file", "download it again")
            tensors[entry.name] = replace(entry, offset=self.at)
        return tensors
