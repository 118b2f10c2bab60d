"""Files that may be hostile, read without harm: opened, quoted in messages, watched for changes.

Any fault of a file is a `CheckpointError`. A pattern from a file may take for ever: `may_hang`.
"""

import io
import os
import re
import stat
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from gptailor.plan.faults import CodedError

LONGEST_QUOTED = 120
"""Characters of a name that are shown; names come from files that may be hostile."""

_URL = re.compile(r"^([a-z][a-z0-9+:]+):/(?=[^/])")


class CheckpointError(CodedError):
    """An error of a checkpoint, reading or writing: a stable code, a message, a file, a remedy."""

    def __init__(
        self, code: str, message: str, path: Path, help: str = "", offset: int | None = None
    ) -> None:
        super().__init__(code, message, help)
        self.args = code, message, path, help, offset  # as pickle hands them over
        self.path, self.offset = path, offset

    @property
    def place(self) -> str:
        """The path for people, and the byte."""
        path = _URL.sub(r"\1://", str(self.path))  # a path has lost one of a URL's two strokes
        return escaped(path) + ("" if self.offset is None else f", byte {self.offset}")


def quoted(name: str, *, whole: bool = False) -> str:
    """Return a name in quotes, fit for a terminal: control characters escaped, a long one cut."""
    cut = name if whole or len(name) <= LONGEST_QUOTED else f"{name[:LONGEST_QUOTED]}…"
    return f"'{escaped(cut)}'"


def shown(value: object) -> str:
    """Return a value for a message: a long one is cut."""
    text = repr(value)
    return text if len(text) <= LONGEST_QUOTED else f"{text[:LONGEST_QUOTED]}…"


def reason(error: OSError | ValueError) -> str:
    """Return the system's reason, such as `Permission denied`."""
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


def escaped(text: str) -> str:
    """Return a text fit for a terminal: control characters escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


_KINDS = {
    stat.S_IFDIR: "a folder", stat.S_IFIFO: "a named pipe", stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device", stat.S_IFBLK: "a device",
}  # fmt: skip


@contextmanager
def reading(path: Path, code: str = "C201", offset: int | None = None) -> Iterator[None]:
    """Turn the system's errors into a `CheckpointError` about this path."""
    try:
        yield
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name, a lone surrogate
        message = f"cannot be read: {reason(error)}"
        raise CheckpointError(code, message, path, offset=offset) from error


def open_regular(path: Path, code: str = "C201") -> io.FileIO:
    """Open a regular file to read; anything else is refused, and nothing blocks."""
    with reading(path, code):
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    mode = os.fstat(fd).st_mode
    if not stat.S_ISREG(mode):
        os.close(fd)
        kind = _KINDS.get(stat.S_IFMT(mode), "no regular file")
        raise CheckpointError(code, f"is {kind}, where a regular file is needed", path)
    return io.FileIO(fd)


def read_exactly(file: io.FileIO, count: int, path: Path, code: str) -> bytes:
    """Return the next `count` bytes, which the caller knows to exist."""
    parts = []
    while count:
        with reading(path, code):
            part = file.read(count)
        if not part:
            message = "became shorter while it was read"
            raise CheckpointError(code, message, path, offset=file.tell())
        parts.append(part)
        count -= len(part)
    return b"".join(parts)


Stamp = tuple[int, int, int, int, int]
"""A file's device and number, its bytes, the times of the last write and change in nanoseconds.

A program may set the time of the last write, but not that of the last change (`ctime`).
"""


def stamps(files: Iterable[Path]) -> dict[Path, Stamp]:
    """Return the stamp of each file that exists."""
    return {file: stamp(file.stat()) for file in files if file.exists()}


def refuse_changed(before: Mapping[Path, Stamp]) -> None:
    """Raise CheckpointError for a file that changed (C304), or can't be read (C201).

    A model made from it may hold some of its old bytes and some of its new ones.
    """
    for file, stamped in before.items():
        with reading(file):
            now = stamp(file.stat())
        if now != stamped:
            raise CheckpointError("C304", "changed while it was read", file)


def stamp(status: os.stat_result) -> Stamp:
    """Return all that changes with a file's bytes."""
    times = status.st_mtime_ns, status.st_ctime_ns
    return status.st_dev, status.st_ino, status.st_size, *times


def is_gguf(path: Path) -> bool:
    """Return whether a path names a GGUF file."""
    return path.suffix.lower() == ".gguf" and not path.is_dir()


def expanded(path: str | Path) -> Path:
    """Return the path with `~` and `~user` as folders; unchanged for a user without a home.

    `Path.expanduser` raises an error there.
    """
    return Path(os.path.expanduser(path))  # noqa: PTH111


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


LONGEST_NAME = 300
"""Characters of a name of a module or a tensor that patterns are matched against."""

_MOST_STEPS = 10_000_000
_MOST_GROUPS = 4


def may_hang(pattern: str, length: int = LONGEST_NAME) -> bool:
    """Return whether matching may take too long: a repetition within another, or too many.

    `length` is that of the text that the pattern is matched against.
    """
    bare = re.sub(r"\\.", "x", pattern, flags=re.DOTALL).replace("(?:", "(")
    repeats = len(re.findall(r"[*+?{]", bare))
    nested = ")*" in bare or ")+" in bare or "){" in bare
    return nested or bare.count("(") > _MOST_GROUPS or length**repeats > _MOST_STEPS
