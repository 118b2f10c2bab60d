"""Bytes of a file read at a position, and announced to the system."""

import os
from contextlib import suppress
from pathlib import Path

from gptailor.checkpoint.files import CheckpointError, reading


def read_into(view: memoryview, file: int, offset: int, path: Path) -> None:
    """Read exactly the view's bytes."""
    while view:
        with reading(path, offset=offset):
            count = os.preadv(file, [view], offset)
        if not count:
            message = f"the file ends {len(view)} bytes before the end of a part of a tensor"
            raise CheckpointError("C304", message, path, offset=offset)
        offset += count
        view = view[count:]


def foresee(file: int, offset: int, size: int) -> None:
    """Tell the system that these bytes will be read, so that it reads ahead."""
    with suppress(OSError, AttributeError):  # a wish: where it can't be said the bytes come later
        os.posix_fadvise(file, offset, size, os.POSIX_FADV_WILLNEED)
