"""A GGUF file's metadata and table of tensors, without a library; lengths are checked first."""

import io
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NoReturn, final

from gptailor.checkpoint.files import CheckpointError, open_regular, quoted, shown
from gptailor.checkpoint.formats.gguf.kinds import KIND_NUMBERS
from gptailor.checkpoint.tensor import TensorInfo, TensorSpec

GgufValue = int | float | bool | str | tuple["GgufValue", ...]


_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?",
            10: "Q", 11: "q", 12: "d"}  # fmt: skip
_STRING, _ARRAY = 8, 9
_MAX_DIMENSIONS = 4

PLAN_KEY = "gptailor.plan"
"""The key of the plan that a file was compiled from."""

MAX_GGUF_HEADER = 100_000_000
"""The largest header, in bytes: as much as a safetensors file's; vocabularies take a tenth."""


@final
@dataclass(frozen=True, slots=True)
class Header:
    """The metadata of a GGUF file, and its tensors by name: their types, and shapes, rows first."""

    path: Path
    facts: Mapping[str, GgufValue]
    tensors: Mapping[str, TensorInfo]


def read_gguf(path: Path) -> Header:
    """Return the metadata and the table of tensors; no weight is read."""
    with open_regular(path) as raw, io.BufferedReader(raw, 2**20) as file:
        return _Reader(path, file, os.fstat(file.fileno()).st_size).header()


@final
@dataclass
class _Reader:
    """A cursor over a GGUF file's header that never passes the file's end."""

    path: Path
    file: "io.BufferedReader[io.FileIO]"
    size: int
    at: int = 0

    def refuse(self, message: str, help: str = "") -> NoReturn:
        raise CheckpointError("C109", message, self.path, help, self.at)

    def bytes(self, count: int) -> bytes:
        """Return the next bytes; the count is first compared with the file's size."""
        if count > self.size - self.at:
            self.refuse("the file is truncated", "download it again")
        if count > MAX_GGUF_HEADER - self.at:
            self.refuse(f"the header is longer than {MAX_GGUF_HEADER} bytes")
        raw = self.file.read(count)
        if len(raw) != count:
            self.refuse("became shorter while it was read")
        self.at += count
        return raw

    def number(self, code: str) -> int:
        """Return the next whole number; `code` is a format of struct."""
        return int(struct.unpack(f"<{code}", self.bytes(struct.calcsize(code)))[0])

    def string(self) -> str:
        """Return the next text; invalid UTF-8 is kept by escapes."""
        return self.bytes(self.number("Q")).decode("utf-8", "surrogateescape")

    def value(self, kind: int) -> GgufValue:
        """Return the next value of a type, a list as a tuple. A list of lists is refused."""
        if kind != _ARRAY:
            return self.values(kind, 1, "a value has the unknown type")[0]
        inner, count = self.number("I"), self.number("Q")
        if inner == _STRING and count * 8 > self.size - self.at:
            self.refuse(f"a list of {count} texts is longer than the file")
        return self.values(inner, count, "a list's items have the unknown type")

    def values(self, kind: int, count: int, unknown: str) -> tuple[GgufValue, ...]:
        """Return the next values of a type; refuse another type than of numbers and texts."""
        if (code := _NUMBERS.get(kind)) is not None:
            return struct.unpack(f"<{count}{code}", self.bytes(struct.calcsize(code) * count))
        if kind != _STRING:
            self.refuse(f"{unknown} {kind}")
        return tuple(self.string() for _ in range(count))

    def header(self) -> Header:
        """Return the whole header; the place of each tensor is checked."""
        if self.size < 24 or self.bytes(4) != b"GGUF":
            self.at = 0
            self.refuse("isn't a GGUF file")
        version = self.number("I")
        if version not in {2, 3}:
            big = int.from_bytes(version.to_bytes(4, "little"), "big") in {2, 3}
            what = "is in big-endian byte order" if big else f"has version {version}"
            self.refuse(f"{what}, expected version 2 or 3 in little-endian order")
        tensors, facts = self.number("Q"), self._facts(self.number("Q"))
        return Header(self.path, facts, self._placed(self._table(tensors), facts))

    def _credible(self, count: int, least: int, what: str) -> int:
        if count * least > self.size:
            self.refuse(f"declares {count} {what}, more than the file can contain")
        return count

    def _facts(self, count: int) -> dict[str, GgufValue]:
        facts: dict[str, GgufValue] = {}
        for _ in range(self._credible(count, 13, "facts")):
            name = self.string()
            if name in facts:
                self.refuse(f"has {quoted(name)} twice")
            facts[name] = self.value(self.number("I"))
        return facts

    def _table(self, count: int) -> list[TensorInfo]:
        table: dict[str, TensorInfo] = {}
        for _ in range(self._credible(count, 24, "tensors")):
            begin, entry = self.at, self._entry()
            if (name := entry.spec.name) in table:
                self.at = begin
                self.refuse(f"has two tensors {quoted(name)}")
            table[name] = entry
        return list(table.values())

    def _entry(self) -> TensorInfo:
        """Return the next tensor, with its offset after the header."""
        name = self.string()
        dimensions = self.number("I")
        if dimensions > _MAX_DIMENSIONS:
            self.refuse(f"{quoted(name)} has {dimensions} dimensions, expected at most 4")
        extents = [self.number("Q") for _ in range(dimensions)]
        number = self.number("I")
        kind = KIND_NUMBERS.get(number)
        if kind is None:
            self.refuse(f"{quoted(name)} has type {number}, which gptailor can't dequantise")
        if extents and extents[0] % kind.block:
            self.refuse(
                f"a row of {quoted(name)} has {extents[0]} entries, expected a multiple of "
                f"{kind.block}"
            )
        spec = TensorSpec(name, kind.name, tuple(reversed(extents)))
        return TensorInfo(spec, self.path, self.number("Q"))

    def _placed(
        self, table: list[TensorInfo], facts: Mapping[str, GgufValue]
    ) -> dict[str, TensorInfo]:
        """Return the tensors by name; refuse a tensor that leaves the file or overlaps another."""
        alignment = facts.get("general.alignment", 32)
        if type(alignment) is not int or alignment < 1 or alignment & (alignment - 1):
            self.refuse(f"'general.alignment' is {shown(alignment)}, expected a power of two")
        start = -(-self.at // alignment) * alignment
        end, tensors = start, {}
        for entry in sorted(table, key=lambda entry: entry.offset):
            name, self.at = entry.spec.name, start + entry.offset
            if self.at < end or entry.offset % alignment:
                self.refuse(f"{quoted(name)} overlaps another tensor, or isn't aligned")
            end = self.at + entry.spec.size
            if end > self.size:
                self.refuse(f"{quoted(name)} ends beyond the file", "download it again")
            tensors[name] = replace(entry, offset=self.at)
        return tensors
