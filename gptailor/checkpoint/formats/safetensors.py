"""Names, dtypes, shapes and byte ranges in a safetensors file, without a tensor library."""

import io
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NoReturn, final

from gptailor.checkpoint import files
from gptailor.checkpoint.tensor import DTYPE_BITS, TensorInfo, TensorSpec
from gptailor.plan.faults import listed, nearest

MAX_HEADER = 100_000_000
"""The largest header, in bytes, as in the reference implementation."""

_LARGEST = 2**64 - 1
_LFS = b"version "  # how the text of a Git LFS pointer begins
_CUT = "the file is truncated; download it again"


def read_header(path: Path) -> dict[str, TensorInfo]:
    """Return the tensors of a safetensors file in the order of their bytes; no weight is read.

    Everything that the reference implementation refuses is refused, and so are duplicate names and
    unknown fields. `__metadata__` is checked and left out.
    """
    with files.open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        raw = _text(file, size, path)
    header = _Header(path, raw, size)
    entries = files.parse_object(raw, path, "C204", duplicate="C205", start=8)
    metadata = entries.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        header.refuse("C206", "'__metadata__' is not an object of strings", "__metadata__")
    infos = [header.tensor(name, entry) for name, entry in entries.items()]
    tensors = sorted(infos, key=lambda tensor: (tensor.offset, tensor.spec.size))
    header.check_cover(tensors)
    return {tensor.spec.name: tensor for tensor in tensors}


def _text(file: io.FileIO, size: int, path: Path) -> bytes:
    """Return the header's JSON; its length is used only once it fits into the file."""
    if size < 8:
        message = f"has {size} bytes, expected at least 8"
        raise files.CheckpointError("C202", message, path, _CUT, 0)
    first = files.read_exactly(file, 8, path, "C202")
    length = int.from_bytes(first, "little")
    if length > size - 8:
        pointer = "this is a Git LFS pointer; fetch the weights with `git lfs pull`"
        message = f"the header's length is {length} bytes, and the file has {size}"
        raise files.CheckpointError("C202", message, path, pointer if first == _LFS else _CUT, 0)
    if length > MAX_HEADER:
        message = f"expected a header of at most {MAX_HEADER} bytes, got {length}"
        raise files.CheckpointError("C203", message, path, offset=0)
    return files.read_exactly(file, length, path, "C202")


@final
class _Header:
    """The rules of one file's entries: `size` bytes of data follow the header's text."""

    def __init__(self, path: Path, text: bytes, file_size: int) -> None:
        self.path = path
        self.text = text
        self.start = 8 + len(text)
        self.size = file_size - self.start

    def refuse(self, code: str, message: str, at: int | str, help: str = "") -> NoReturn:
        """Raise an error; `at` is an offset in the data, or the name of the wrong entry."""
        offset = 8 + files.place_of(at, self.text) if isinstance(at, str) else self.start + at
        raise files.CheckpointError(code, message, self.path, help, offset)

    def tensor(self, name: str, entry: object) -> TensorInfo:
        """Return the tensor of an entry; refuse fields that are wrong or disagree."""
        if not isinstance(entry, dict):
            self.refuse("C206", f"{files.quoted(name)} is not an object", name)
        if entry.keys() != {"dtype", "shape", "data_offsets"}:
            keys = listed(files.quoted(key) for key in list(entry)[:8]) or "nothing"
            message = f"{files.quoted(name)} has {keys}, not 'dtype', 'shape', 'data_offsets'"
            self.refuse("C206", message, name)
        dtype = self._dtype(name, entry["dtype"])
        shape = self._shape(name, entry["shape"])
        begin, end = self._offsets(name, entry["data_offsets"])
        bits = _product((*shape, DTYPE_BITS[dtype]))
        if bits is None or bits % 8 or end - begin != bits // 8:
            needed = "more than 64 bits can count" if bits is None else f"{bits / 8:.16g}"
            sizes = f"[{', '.join(map(str, shape[:8]))}{', …' if len(shape) > 8 else ''}]"
            what = f"{dtype} of shape {sizes}"
            message = f"{files.quoted(name)} has {end - begin} bytes; {what} takes {needed}"
            self.refuse("C208", message, begin)
        return TensorInfo(TensorSpec(name, dtype, shape), self.path, self.start + begin)

    def _dtype(self, name: str, dtype: object) -> str:
        if not isinstance(dtype, str):
            self.refuse("C206", f"the dtype of {files.quoted(name)} is not a string", name)
        if dtype not in DTYPE_BITS:
            message = f"{files.quoted(name)} has the unknown dtype {files.quoted(dtype)}"
            # Looking for the nearest name takes memory by the length of this one.
            self.refuse("C207", message, name, nearest(dtype[: files.LONGEST_QUOTED], DTYPE_BITS))
        return dtype

    def _shape(self, name: str, shape: object) -> tuple[int, ...]:
        # In JSON `true` isn't a number, though Python says so.
        if not isinstance(shape, list) or not all(
            type(size) is int and 0 <= size <= _LARGEST for size in shape
        ):
            message = f"the shape of {files.quoted(name)} is not a list of whole numbers >= 0"
            self.refuse("C206", message, name)
        return tuple(shape)

    def _offsets(self, name: str, offsets: Any) -> tuple[int, int]:
        if not isinstance(offsets, list) or [type(offset) for offset in offsets] != [int, int]:
            message = f"the data_offsets of {files.quoted(name)} are not two whole numbers"
            self.refuse("C206", message, name)
        begin, end = offsets
        if not 0 <= begin <= end:
            self.refuse(
                "C208", f"{files.quoted(name)} runs from byte {_int(begin)} to {_int(end)}", name
            )
        if end > self.size:
            message = f"{files.quoted(name)} ends at byte {_int(end)} of {self.size} bytes of data"
            self.refuse("C208", message, min(begin, self.size), _CUT)
        return begin, end

    def check_cover(self, tensors: Iterable[TensorInfo]) -> None:
        """Refuse tensors that overlap, leave gaps, or don't end with the file."""
        at, before = 0, None
        for tensor in tensors:
            name, gap = tensor.spec.name, tensor.offset - self.start - at
            if gap < 0:
                self.refuse("C209", f"{files.quoted(name)} overlaps {_shown(before)}", at + gap)
            if gap > 0:
                between = f"between {_shown(before)} and {files.quoted(name)}"
                self.refuse("C209", f"{gap} bytes {between} belong to no tensor", at)
            at, before = at + tensor.spec.size, name
        if (surplus := self.size - at) > 0:
            self.refuse("C209", f"{surplus} bytes after {_shown(before)} belong to no tensor", at)


def _shown(name: str | None) -> str:
    return "the header" if name is None else files.quoted(name)


def _product(factors: Iterable[int]) -> int | None:
    """Return the product, or None as soon as it exceeds 64 bits, which keeps it cheap."""
    result = 1
    for factor in factors:
        if (result := result * factor) > _LARGEST:
            return None
    return result


def _int(value: int) -> str:
    """Return a number, if it is short enough to be read."""
    return str(value) if abs(value) <= _LARGEST else f"{'-' if value < 0 else ''}2^64 or more"
