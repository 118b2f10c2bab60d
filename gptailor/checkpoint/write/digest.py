"""Digests of files and of bytes to be written, block by block: nothing is loaded whole."""

import hashlib
import os
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, final

from pydantic import Field, ValidationError

from gptailor.checkpoint.cache_folder import is_ours, keep_result, kept_home, kept_json
from gptailor.checkpoint.files import CheckpointError, open_regular, stamp
from gptailor.checkpoint.tensor import ByteRange, TensorSpec
from gptailor.checkpoint.write.output_file import ByteProgress, read_blocks
from gptailor.plan.plan import Closed, Several

_Count = Annotated[int, Field(ge=0)]
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
UNMEASURED: Sha256 = "0" * 64
"""The digest of bytes that were not read or made yet."""


@final
class FileDigest(Closed):
    """The size of a file in bytes, and the sha256 of them in hexadecimal."""

    size: _Count
    sha256: Sha256


@final
class TensorDigest(Closed):
    """The dtype (by its name in safetensors, or in GGUF), shape and sha256 of a tensor.

    `sketch` is for a tensor that a bridge changes: numbers that other tensors are compared with, to
    a tolerance.
    """

    dtype: str
    shape: Several[_Count]
    sha256: Sha256
    sketch: Several[float] | None = None


def tensor_digests(
    specs: Iterable[TensorSpec],
    sha256: Mapping[str, str] = MappingProxyType({}),
    sketches: Mapping[str, tuple[float, ...]] = MappingProxyType({}),
) -> dict[str, TensorDigest]:
    """Return the digests of tensors by name, from the known digests of their bytes."""
    return {
        spec.name: TensorDigest(
            dtype=spec.dtype,
            shape=spec.shape,
            sha256=sha256.get(spec.name, UNMEASURED),
            sketch=sketches.get(spec.name),
        )
        for spec in specs
    }


def of_bytes(raw: bytes) -> FileDigest:
    """Return the digest of a file that is not on disk."""
    return FileDigest(size=len(raw), sha256=hashlib.sha256(raw).hexdigest())


def of_file(path: Path, progress: ByteProgress = lambda _: None) -> FileDigest:
    """Return the digest of a file. Raises CheckpointError: C201 if unreadable, C304 if it changes.

    `progress` receives the number of bytes read; an exception of its own ends the reading.
    """
    with open_regular(path) as file:
        before = os.fstat(file.fileno())
        digest = hashlib.sha256()
        for block in read_blocks(file.fileno(), ByteRange(path, 0, before.st_size)):
            digest.update(block)
            progress(len(block))
        after = os.fstat(file.fileno())
    if stamp(before) != stamp(after):
        raise CheckpointError("C304", "changed while it was read", path)
    return FileDigest(size=before.st_size, sha256=digest.hexdigest())


_MOST_KEPT = 4096
"""Digests in the user's cache; the oldest go first."""
_SETTLED = 2_000_000_000
"""Nanoseconds after which a file system gives a change another time than the last one."""


@final
class KnownDigests:
    """Digests of the files that this user's commands read, kept in the user's cache.

    A file is unchanged if its path, device, number, size, and times of the last write and of the
    last change equal the recorded values, as in git's index. A file that changed less than two
    seconds before it was read isn't kept, because a later change could have the same time.
    """

    def __init__(self) -> None:
        self._path = kept_home() / "digests.json"
        self._known: dict[str, Any] = kept_json(self._path) if is_ours(self._path) else {}
        self._read: dict[str, list[int | str]] = {}

    def of(self, path: Path, progress: ByteProgress = lambda _: None) -> FileDigest:
        """Return the digest of a file, which is read if it changed. Raises the errors of `of_file`.

        Several threads may call it. `progress` receives all bytes at once for an unchanged file.
        """
        key, began, seen = os.path.abspath(path), time.time_ns(), _seen(path)  # noqa: PTH100 (links stay)
        match self._known.get(key):
            case [*before, str(sha256)] if before == seen:
                with suppress(ValidationError):
                    digest = FileDigest(size=seen[2], sha256=sha256)
                    progress(digest.size)
                    return digest
        digest = of_file(path, progress)
        if seen and seen == _seen(path) and max(seen[-2:]) < began - _SETTLED:
            self._read[key] = [*seen, digest.sha256]
        return digest

    def keep(self) -> None:
        """Keep the digests of the files that were read; without a cache, nothing."""
        if not self._read:
            return
        others = {key: entry for key, entry in self._known.items() if key not in self._read}
        newest = list((others | self._read).items())[-_MOST_KEPT:]
        keep_result(self._path, dict(newest))


def _seen(path: Path) -> list[int]:
    """Return a file's stamp as JSON has it; nothing for a file that can't be seen."""
    with suppress(OSError):
        return [*stamp(path.stat())]
    return []
