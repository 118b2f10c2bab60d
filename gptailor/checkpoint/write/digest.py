"""Digests of files and of bytes to be written, block by block: nothing is loaded whole."""

import hashlib
import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, final

from pydantic import Field

from gptailor.checkpoint.files import CheckpointError, open_regular, quoted
from gptailor.checkpoint.tensor import ByteRange, TensorSpec
from gptailor.checkpoint.write.output_file import ByteProgress, Payload, blocks_of, read_blocks
from gptailor.checkpoint.write.tensors import Crew, OnWritten
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
    """The dtype (by its name in safetensors), shape and sha256 of a tensor.

    `sketch` is for a tensor that a bridge changes: numbers that other tensors are compared with, to
    a tolerance.
    """

    dtype: str
    shape: Several[_Count]
    sha256: Sha256
    sketch: Several[float] | None = None


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
    if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
        raise CheckpointError("C304", "changed while it was read", path)
    return FileDigest(size=before.st_size, sha256=digest.hexdigest())


def of_tensors(
    specs: Sequence[TensorSpec],
    payload_of: Callable[[TensorSpec], Payload],
    crew: Crew,
    on_digest: OnWritten,
    progress: ByteProgress = lambda _: None,
) -> None:
    """Make the bytes of each tensor, and call `on_digest` with their digest; nothing is written.

    One thread of the crew at a time calls `on_digest`, in no order; any thread calls `progress`.
    """
    on_digest = crew.exclusive(on_digest)

    def tell(spec: TensorSpec) -> None:
        digest = hashlib.sha256()
        size = 0
        for chunk in blocks_of(payload_of(spec)):
            digest.update(chunk)
            size += (count := memoryview(chunk).nbytes)
            progress(count)
        if size != spec.size:
            message = f"expected {spec.size} bytes for {quoted(spec.name)}, got {size}"
            raise CheckpointError("C304", message, Path(spec.name))
        on_digest(spec, digest.hexdigest())

    crew.do([partial(tell, spec) for spec in specs])
