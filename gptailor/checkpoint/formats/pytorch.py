"""PyTorch's `.bin` files: names, dtypes, shapes and places of their tensors; no pickle is run.

Such a file is a zip archive of a pickle and of each storage's bytes, uncompressed. A tensor whose
entries lie in a row there is a stretch of the file like any other; the others are `Pickled`.
"""

import io
import os
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from gptailor.checkpoint.files import CheckpointError, open_regular, quoted, read_exactly
from gptailor.checkpoint.formats.unpickle import PickleRefusal, Strided, state_dict
from gptailor.checkpoint.tensor import DTYPE_BITS, Pickled, TensorInfo, TensorSpec

BIN_SINGLE = "pytorch_model.bin"
BIN_INDEX = "pytorch_model.bin.index.json"

MAX_PICKLE = 100_000_000
"""The largest pickle that is read, in bytes: as much as a safetensors header may have."""

_LOCAL = 30  # bytes of a zip member's own header, before its name
_RESAVE = "load it with `torch.load(…, weights_only=True)` and save it again as safetensors"


def read_pickled(path: Path) -> dict[str, TensorInfo]:
    """The tensors of a `.bin` file in the order of its state dict; no weight is read."""
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        archive = _Archive(path, file, size)
        try:
            found = state_dict(archive.pickle())
        except PickleRefusal as error:
            _refuse(path, f"is no state dict that is read here: {error}", _RESAVE)
        return {name: archive.tensor(name, tensor) for name, tensor in found.items()}


def _refuse(path: Path, message: str, help: str = "", at: int | None = None) -> NoReturn:
    raise CheckpointError("C108", message, path, help, at)


@dataclass(frozen=True, slots=True)
class _Member:
    """A file in the archive: where its bytes begin, and how many they are."""

    offset: int
    size: int


class _Archive:
    """The zip archive of a `.bin` file, whose members are all uncompressed."""

    def __init__(self, path: Path, file: io.FileIO, size: int) -> None:
        self.path = path
        self.file = file
        self.size = size
        if read_exactly(file, min(4, size), path, "C108") != b"PK\x03\x04":
            message = "is no zip archive, as PyTorch has written them since version 1.6"
            _refuse(path, message, _RESAVE, 0)
        self.members = dict(self._members())
        found = [name for name in self.members if name.endswith("/data.pkl")]
        if len(found) != 1:
            _refuse(path, f"holds {len(found)} files 'data.pkl', and a PyTorch file has one")
        self.root = found[0].removesuffix("data.pkl")
        if (order := self._content("byteorder", 16)) not in {b"", b"little"}:
            _refuse(path, f"its numbers are in byte order {quoted(order.decode('latin-1'))}")

    def _members(self) -> Iterator[tuple[str, _Member]]:
        try:
            with zipfile.ZipFile(self.file) as archive:
                infos = archive.infolist()
        except (zipfile.BadZipFile, NotImplementedError, ValueError, OSError) as error:
            _refuse(self.path, f"is a damaged zip archive: {error}", "download it again")
        seen: set[str] = set()
        for info in infos:
            if info.filename in seen:
                _refuse(self.path, f"holds {quoted(info.filename)} twice")
            seen.add(info.filename)
            yield info.filename, self._member(info)

    def _member(self, info: zipfile.ZipInfo) -> _Member:
        """Where the bytes are, by the member's own header, as PyTorch finds them."""
        name, at = quoted(info.filename), info.header_offset
        if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
            _refuse(self.path, f"{name} is compressed or encrypted, which PyTorch's never are")
        if not 0 <= at <= self.size - _LOCAL:
            where = at if at > 0 else None
            _refuse(self.path, f"{name} begins outside of the file", at=where)
        self.file.seek(at)
        header = read_exactly(self.file, _LOCAL, self.path, "C108")
        if header[:4] != b"PK\x03\x04":
            _refuse(self.path, f"{name} has no header of its own", at=at)
        lengths = int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
        begin = at + _LOCAL + lengths
        if info.file_size != info.compress_size or begin + info.file_size > self.size:
            _refuse(self.path, f"{name} ends beyond the file's end", "download it again", at)
        return _Member(begin, info.file_size)

    def _content(self, name: str, most: int) -> bytes:
        """A small member's bytes; none if it isn't there."""
        member = self.members.get(self.root + name)
        if member is None:
            return b""
        if member.size > most:
            _refuse(self.path, f"{quoted(name)} has {member.size} bytes", at=member.offset)
        self.file.seek(member.offset)
        return read_exactly(self.file, member.size, self.path, "C108")

    def pickle(self) -> bytes:
        """The pickle's bytes."""
        return self._content("data.pkl", MAX_PICKLE)

    def tensor(self, name: str, tensor: Strided) -> TensorInfo:
        """What a tensor is, and where it lies: within its storage, or the file is refused."""
        shown = quoted(name)
        member = self.members.get(f"{self.root}data/{tensor.storage.key}")
        if member is None:
            _refuse(self.path, f"the storage of {shown} is not in the file")
        width = DTYPE_BITS[tensor.dtype] // 8
        spec = TensorSpec(name, tensor.dtype, tensor.shape)
        if (end := (tensor.offset + _reach(tensor)) * width) > member.size:
            message = f"{shown} ends at byte {end} of its storage, which has {member.size}"
            _refuse(self.path, message, "download it again", member.offset)
        if spec.size > self.size:  # an expanded view, of which one entry can make terabytes
            message = f"{shown} has {spec.size:.4g} bytes, more than the whole file"
            _refuse(self.path, message, at=member.offset)
        form = None if _is_plain(tensor) else Pickled(name)
        return TensorInfo(spec, self.path, member.offset + tensor.offset * width, form)


def _reach(tensor: Strided) -> int:
    """How many entries of the storage a tensor spans, from its first to its last."""
    if 0 in tensor.shape:
        return 0
    steps = zip(tensor.shape, tensor.strides, strict=True)
    return 1 + sum((extent - 1) * stride for extent, stride in steps)


def _is_plain(tensor: Strided) -> bool:
    """Whether the entries lie in a row, in the order of their indices."""
    step = 1
    for extent, stride in zip(reversed(tensor.shape), reversed(tensor.strides), strict=True):
        if extent not in {1, 0} and stride != step:
            return 0 in tensor.shape
        step *= extent
    return True
