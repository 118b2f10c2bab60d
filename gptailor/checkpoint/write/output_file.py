"""An output file: room in advance, bytes copied in the kernel, written out while more are made.

If the system or the file system lacks one of these calls, a slower way is used.
"""

import ctypes
import errno
import io
import os
import secrets
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any, final

from gptailor.checkpoint.files import CheckpointError, open_regular, reading, reason
from gptailor.checkpoint.tensor import ByteRange

Payload = ByteRange | Iterable[memoryview | bytes]
"""A tensor's bytes: copied from a file as they are, or computed on the way."""

ByteProgress = Callable[[int], None]
"""Receives the number of bytes written since the last call."""

COPY_STEP = 32 * 1024 * 1024
"""The most that the kernel copies in one call.

Smaller steps make progress visible and let an interrupt work.
"""
BUFFER = 1024 * 1024
"""Bytes that pass through memory at once; they should fit a cache.

`hashlib` lets other threads run.
"""
_WORTH_STARTING = 1024 * 1024
"""A shorter stretch waits for its neighbours before it goes to the disk."""

_WRITE = 2  # SYNC_FILE_RANGE_WRITE: start to write these pages, wait for nothing
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


@cache
def libc(name: str, *arguments: Any) -> Callable[..., int] | None:
    """Return a function of the C library with these argument types, which returns 0; or None."""
    try:
        function: Any = getattr(ctypes.CDLL(None, use_errno=True), name)
    except (AttributeError, OSError, TypeError):  # another system, a libc that lacks it
        return None
    function.argtypes = arguments
    typed: Callable[..., int] = function
    return typed


def _reserve(fd: int, size: int) -> None:
    """Make a new file `size` bytes long, its blocks allocated; OSError if the disk is full.

    Python's `posix_fallocate` is unsuitable: where a file system can't allocate, such as NFS, the C
    library writes into each block instead.
    """
    fallocate = libc("fallocate", ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
    if size and fallocate is not None and fallocate(fd, 0, 0, size):
        code = ctypes.get_errno()
        if code in _FULL:
            raise OSError(code, os.strerror(code))
    os.ftruncate(fd, size)


def blocks_of(payload: Payload) -> Iterator[memoryview | bytes]:
    """Yield a tensor's bytes, each block valid until the next one."""
    if not isinstance(payload, ByteRange):
        yield from payload
        return
    with open_regular(payload.file) as file:
        yield from read_blocks(file.fileno(), payload)


def read_blocks(source: int, stretch: ByteRange) -> Iterator[memoryview]:
    """Yield a stretch of an open file, each block valid until the next one."""
    buffer = memoryview(bytearray(min(stretch.size, BUFFER)))
    done = 0
    while done < stretch.size:
        at = stretch.offset + done
        with reading(stretch.file, offset=at):
            count = os.preadv(source, [buffer[: stretch.size - done]], at)
        if not count:
            message = "became shorter while it was read"
            raise CheckpointError("C304", message, stretch.file, offset=at)
        yield buffer[:count]
        done += count


@final
class OutputFile:
    """A new file of a known size, written anywhere and by several threads at the same time.

    It is synced to the disk when it is closed without an exception. Errors name `shown`, the path
    that the file will have in the end.
    """

    def __init__(self, path: Path, shown: Path, size: int, progress: ByteProgress) -> None:
        self.path = path
        self.shown = shown
        self.progress = progress
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        with writing(shown):
            self.fd = os.open(path, flags, 0o666)
            try:
                _reserve(self.fd, size)
            except OSError:
                os.close(self.fd)
                raise

    def __enter__(self) -> "OutputFile":
        return self

    def __exit__(self, kind: type[BaseException] | None, *details: object) -> None:
        try:
            if kind is None:
                with writing(self.shown):
                    os.fsync(self.fd)
        finally:
            os.close(self.fd)

    def write(self, chunk: memoryview | bytes, offset: int) -> int:
        """Write all of a chunk from byte `offset` of the file on; return its number of bytes."""
        view = memoryview(chunk)
        size = view.nbytes
        if not size:
            return 0
        view = view.cast("B")
        with writing(self.shown):
            while view:
                done = os.pwrite(self.fd, view, offset)
                view = view[done:]
                offset += done
        self.progress(size)
        return size

    def start(self, offset: int, size: int) -> None:
        """Start writing a stretch to the disk, if it is long enough.

        This doesn't wait, and shortens the last sync.
        """
        kinds = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)
        sync = libc("sync_file_range", *kinds) if size >= _WORTH_STARTING else None
        if sync is not None:
            sync(self.fd, offset, size, _WRITE)

    def copy(self, stretch: ByteRange, offset: int) -> None:
        """Write a stretch of another file from byte `offset` on, within the kernel if possible."""
        end = stretch.offset + stretch.size
        with open_regular(stretch.file) as file:
            source = file.fileno()
            if os.fstat(source).st_size < end:
                message = f"ends before byte {end}; it changed since it was opened"
                raise CheckpointError("C304", message, stretch.file)
            begun = done = self._copy_in_kernel(source, stretch, offset)
            remainder = ByteRange(stretch.file, stretch.offset + begun, stretch.size - begun)
            for block in read_blocks(source, remainder):
                done += self.write(block, offset + done)
            self.start(offset + begun, done - begun)

    def _copy_in_kernel(self, source: int, stretch: ByteRange, offset: int) -> int:
        """Copy as far as the kernel can, and return the number of bytes.

        The next way reports errors. `sendfile` writes at a descriptor's position, and so has one of
        its own.
        """
        done = 0
        with writing(self.shown):
            out = io.FileIO(os.open(self.path, os.O_WRONLY | os.O_CLOEXEC), "w")

        def copy_range(count: int) -> int:
            offsets = stretch.offset + done, offset + done
            return os.copy_file_range(source, self.fd, count, *offsets)

        def send(count: int) -> int:
            out.seek(offset + done)
            return os.sendfile(out.fileno(), source, stretch.offset + done, count)

        with out:
            for copy in (copy_range, send):
                while done < stretch.size:
                    copied = 0
                    with suppress(OSError, AttributeError):
                        copied = copy(min(stretch.size - done, COPY_STEP))
                    if not copied:
                        break
                    self.start(offset + done, copied)
                    self.progress(copied)
                    done += copied
        return done


@contextmanager
def writing(shown: Path, help: str = "") -> Iterator[None]:
    """Turn the system's errors into a `CheckpointError` about this path."""
    try:
        yield
    except OSError as error:
        raise CheckpointError("C303", f"cannot be written: {reason(error)}", shown, help) from error


@contextmanager
def temporary_folder(shown: Path) -> Iterator[Path]:
    """Yield a folder that is removed at the end.

    Raises CheckpointError (C303) about `shown`, which needs the folder, for errors of the system.
    """
    try:
        with tempfile.TemporaryDirectory() as name:
            yield Path(name)
    except OSError as error:
        if error.errno is None:  # a library's own error
            raise
        message = f"its temporary files cannot be written: {reason(error)}"
        help_ = "set TMPDIR to a folder with more space"
        raise CheckpointError("C303", message, shown, help_) from error


REPLACE = "--force replaces it"
"""The remedy for an output that is there."""


def refuse_output(output: Path, *, force: bool) -> None:
    """Raise CheckpointError unless a file may be written there. `force` replaces an older file."""
    if os.path.lexists(output) and not output.is_file():
        raise CheckpointError("C302", "is not a regular file", output)
    if os.path.lexists(output) and not force:
        raise CheckpointError("C301", "exists already", output, REPLACE)
    if not output.absolute().parent.is_dir():
        raise CheckpointError("C303", "cannot be written: there is no such folder", output)


def write_whole(place: Path, raw: bytes, shown: Path) -> None:
    """Write a file whole or not at all, in the place of an old one if there is one.

    Until it is whole it is called `.NAME.` and eight hexadecimal digits. Errors name `shown`;
    raises CheckpointError (C303) if it can't be written.
    """
    side = place.with_name(f".{place.name}.{secrets.token_hex(4)}")
    try:
        with OutputFile(side, shown, len(raw), lambda _: None) as out:
            out.write(raw, 0)
        with writing(shown):
            side.replace(place)
    except BaseException:
        with suppress(OSError):  # a read-only file system refuses to remove a missing file
            side.unlink(missing_ok=True)
        raise
