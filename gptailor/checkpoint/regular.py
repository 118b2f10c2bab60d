"""Bytes and JSON objects out of files that may be hostile: regular files only, bounded, strict."""

import io
import json
import os
import stat
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NoReturn

from gptailor.checkpoint.error import CheckpointError, quoted, reason

MAX_JSON = 100_000_000
"""The largest JSON text that is read, in bytes; the reference allows a header as much."""

_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def open_regular(path: Path, code: str = "C201") -> io.FileIO:
    """Open a regular file to read; anything else is refused, and nothing blocks."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name, a lone surrogate
        raise CheckpointError(code, f"cannot be read: {reason(error)}", path) from error
    mode = os.fstat(fd).st_mode
    if not stat.S_ISREG(mode):
        os.close(fd)
        kind = _KINDS.get(stat.S_IFMT(mode), "no regular file")
        raise CheckpointError(code, f"is {kind}, where a regular file is needed", path)
    return io.FileIO(fd)


def read_object(path: Path, code: str, duplicate: str | None) -> dict[str, Any]:
    """The JSON object that a file holds; see `parse_object`."""
    with open_regular(path, code) as file:
        size = os.fstat(file.fileno()).st_size
        if size > MAX_JSON:
            raise CheckpointError(code, f"has {size} bytes, more than any JSON file needs", path)
        raw = read_exactly(file, size, path, code)
    return parse_object(raw, path, code, duplicate)


def read_exactly(file: io.FileIO, count: int, path: Path, code: str) -> bytes:
    """The next `count` bytes, which the caller knows to be there."""
    parts = []
    while count:
        try:
            part = file.read(count)
        except OSError as error:
            raise CheckpointError(code, f"cannot be read: {reason(error)}", path) from error
        if not part:
            raise CheckpointError(code, "became shorter while it was read", path)
        parts.append(part)
        count -= len(part)
    return b"".join(parts)


def parse_object(
    raw: bytes, path: Path, code: str, duplicate: str | None, start: int = 0
) -> dict[str, Any]:
    """The JSON object in a text, which stands at byte `start` of the file.

    `duplicate` is the code of a name that an object holds twice. Without one the text is read as
    `json` and transformers read it: the last one counts, and `NaN` and `Infinity` are numbers.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if duplicate is not None and len(found) < len(pairs):
            twice = _twice(name for name, _ in pairs)
            raise CheckpointError(duplicate, f"{quoted(twice)} stands twice in one object", path)
        return found

    constant = None if duplicate is None else _no_constant
    try:
        value = json.loads(raw.decode("utf-8"), object_pairs_hook=unique, parse_constant=constant)
    except RecursionError as error:
        raise CheckpointError(code, "is nested too deeply to be JSON of ours", path) from error
    except ValueError as error:
        at = start + _byte_of(error, raw)
        raise CheckpointError(code, f"is not JSON: {_why(error)}", path, offset=at) from error
    if not isinstance(value, dict):
        raise CheckpointError(code, "is JSON, but not an object", path, offset=start)
    return value


def _twice(names: Iterable[str]) -> str:
    """A name that comes more than once."""
    counts = Counter(names)
    return next(name for name, count in counts.items() if count > 1)


def _no_constant(text: str) -> NoReturn:
    msg = f"{text} is no number"
    raise ValueError(msg)


def _why(error: ValueError) -> str:
    if isinstance(error, json.JSONDecodeError):
        return error.msg
    if isinstance(error, UnicodeDecodeError):
        return "the text is not UTF-8"
    return str(error)


def _byte_of(error: ValueError, raw: bytes) -> int:
    """Where in the text the error is; its start where the error doesn't say."""
    if isinstance(error, UnicodeDecodeError):
        return error.start
    if isinstance(error, json.JSONDecodeError):
        return len(raw.decode("utf-8")[: error.pos].encode("utf-8"))
    return 0
