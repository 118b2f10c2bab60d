"""Bytes into a file: whole stretches of other files within the kernel, or chunks of memory."""

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from gptailor.checkpoint.error import CheckpointError, reason
from gptailor.checkpoint.header import ByteRange
from gptailor.checkpoint.regular import open_regular

Payload = ByteRange | Iterable[memoryview | bytes]
"""A tensor's bytes: copied from a file as they are, or made on the way."""

Progress = Callable[[int], None]
"""Told how many bytes were written since the last call."""

STEP = 64 * 1024 * 1024
"""The most that the kernel copies in one call, so that a long copy shows and can be interrupted."""
BUFFER = 4 * 1024 * 1024
"""What goes through memory at once where the kernel copies nothing."""


class OutputFile:
    """A new file of the output, synced to the disk when it is closed without an exception.

    Errors speak of `shown`, the path that the file will have in the end.
    """

    def __init__(self, path: Path, shown: Path, progress: Progress) -> None:
        self.shown = shown
        self.progress = progress
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        with writing(shown):
            self.fd = os.open(path, flags, 0o666)

    def __enter__(self) -> "OutputFile":
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        try:
            if kind is None:
                with writing(self.shown):
                    os.fsync(self.fd)
        finally:
            os.close(self.fd)

    def write(self, chunk: memoryview | bytes) -> int:
        """Write all of it; returns how many bytes that were."""
        view = memoryview(chunk)
        size = view.nbytes
        if not size:
            return 0
        view = view.cast("B")
        with writing(self.shown):
            while view:
                view = view[os.write(self.fd, view) :]
        self.progress(size)
        return size

    def copy(self, stretch: ByteRange) -> None:
        """Append a stretch of another file."""
        with open_regular(stretch.file) as file:
            source = file.fileno()
            offset, end = stretch.offset, stretch.offset + stretch.size
            if os.fstat(source).st_size < end:
                raise _shrank(stretch)
            for way in (self._copy_range, self._sendfile):
                while offset < end and (done := way(source, offset, end - offset)):
                    offset += done
                    self.progress(done)
            self._copy_through_memory(source, offset, stretch)

    def _copy_range(self, source: int, offset: int, count: int) -> int:
        """Copy in the kernel, or nothing where it can't: the next way says what is wrong."""
        try:
            return os.copy_file_range(source, self.fd, min(count, STEP), offset)
        except (OSError, AttributeError):
            return 0

    def _sendfile(self, source: int, offset: int, count: int) -> int:
        try:
            return os.sendfile(self.fd, source, offset, min(count, STEP))
        except (OSError, AttributeError):
            return 0

    def _copy_through_memory(self, source: int, offset: int, stretch: ByteRange) -> None:
        """What is left from `offset` on."""
        end = stretch.offset + stretch.size
        while offset < end:
            try:
                chunk = os.pread(source, min(end - offset, BUFFER), offset)
            except OSError as error:
                message = f"cannot be read: {reason(error)}"
                raise CheckpointError("C201", message, stretch.file, offset=offset) from error
            if not chunk:
                raise _shrank(stretch)
            offset += self.write(chunk)


@contextmanager
def writing(shown: Path) -> Iterator[None]:
    """Turn what the system says into a `CheckpointError` about this path."""
    try:
        yield
    except OSError as error:
        raise CheckpointError("C303", f"cannot be written: {reason(error)}", shown) from error


def _shrank(stretch: ByteRange) -> CheckpointError:
    message = f"ends before byte {stretch.offset + stretch.size}; it changed since it was opened"
    return CheckpointError("C304", message, stretch.file)
