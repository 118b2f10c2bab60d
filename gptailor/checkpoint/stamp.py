"""Whether files are still those that were opened: `stamps` and `refuse_changed`."""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from gptailor.checkpoint.error import CheckpointError, reason

Stamp = tuple[int, int, int, int]
"""A file's device and number, its bytes, and when it was written last, in nanoseconds."""


def stamps(files: Iterable[Path]) -> dict[Path, Stamp]:
    """What the system says of each file that is there."""
    return {file: _stamp(file.stat()) for file in files if file.exists()}


def refuse_changed(before: Mapping[Path, Stamp]) -> None:
    """Raise CheckpointError for a file that is not what it was (C304), or can't be seen (C201).

    A model made of it may hold some of its old bytes and some of its new ones.
    """
    for file, stamp in before.items():
        try:
            now = _stamp(file.stat())
        except OSError as error:
            message = f"cannot be read: {reason(error)}"
            raise CheckpointError("C201", message, file) from error
        if now != stamp:
            raise CheckpointError("C304", "changed while it was read", file)


def _stamp(status: os.stat_result) -> Stamp:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns
