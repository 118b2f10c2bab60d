"""Files that may be hostile, read without harm: opened, quoted in messages, watched for changes.

Any fault of a file is a `CheckpointError`. A pattern from a file may take for ever: `may_hang`.
JSON of a file or a header is read with the place of a fault, also as typed records.
"""

import io
import json
import os
import re
import stat
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar, final

from gptailor.plan.faults import CodedError, listed

if TYPE_CHECKING:
    from pydantic import BaseModel, ValidationError
    from pydantic_core import ErrorDetails

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
        kind = _KINDS.get(stat.S_IFMT(mode), "not a regular file")
        raise CheckpointError(code, f"expected a regular file, got {kind}", path)
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

A program may set the time of the last write, but not the time of the last change (`ctime`).
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
            message = f"the file ends {len(view)} bytes before the end of a tensor"
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

    `length` is the length of the text that the pattern is matched against.
    """
    bare = re.sub(r"\\.", "x", pattern, flags=re.DOTALL).replace("(?:", "(")
    repeats = len(re.findall(r"[*+?{]", bare))
    nested = ")*" in bare or ")+" in bare or "){" in bare
    return nested or bare.count("(") > _MOST_GROUPS or length**repeats > _MOST_STEPS


MAX_JSON = 100_000_000
"""The largest JSON text that is read, in bytes; the reference allows a header as much."""

_MAX_DEPTH = 100
"""The deepest nesting of configurations: Python prints and compares nested data by recursion."""

_TOO_DEEP = "is nested too deeply"
_BLANK = re.compile(r"[ \t\r\n]*")


def read_object(path: Path, code: str, duplicate: str | None) -> dict[str, Any]:
    """Return the JSON object in a file; see `parse_object`. It nests 100 deep at most."""
    with open_regular(path, code) as file:
        size = os.fstat(file.fileno()).st_size
        if size > MAX_JSON:
            raise CheckpointError(code, f"has {size} bytes, which is too large for JSON", path)
        raw = read_exactly(file, size, path, code)
    entries = parse_object(raw, path, code, duplicate)
    for name, value in entries.items():
        if _is_deep(value):
            at = place_of(name, raw)
            raise CheckpointError(code, f"{quoted(name)} {_TOO_DEEP}", path, offset=at)
    return entries


def _is_deep(value: object) -> bool:
    """Return whether lists and objects nest deeper than 100, without a recursion."""
    depth, level = 0, [value]
    while level and depth < _MAX_DEPTH:
        nests = (each for each in level if isinstance(each, dict | list))
        level = [v for each in nests for v in (each.values() if isinstance(each, dict) else each)]
        depth += 1
    return bool(level)


_HALF = re.compile(r"\\u[dD][89abAB]..(?!\\u[dD][c-fC-F])|(?<!\\u[dD][89abAB]..)\\u[dD][c-fC-F]")
"""An escape of half a surrogate pair; both halves together are text."""


def parse_object(
    raw: bytes, path: Path, code: str, duplicate: str | None, start: int = 0
) -> dict[str, Any]:
    """Return the JSON object in a text, which begins at byte `start` of the file.

    `duplicate` is the code for a name that an object holds twice. Without one the text is read as
    `json` and transformers read it: the last one counts, and `NaN` and `Infinity` are numbers.
    """
    decoder = json.JSONDecoder() if duplicate is None else _STRICT
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        message = "is not JSON: not UTF-8"
        raise CheckpointError(code, message, path, offset=start + error.start) from error

    def refuse(code: str, message: str, at: int) -> CheckpointError:
        offset = start + len(text[:at].encode("utf-8"))
        return CheckpointError(code, message, path, offset=offset)

    try:
        value = decoder.decode(text)
        if half := _HALF.search(text):
            json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:  # a file of UTF-8 can't hold it
        message = "is not JSON: half a surrogate pair"
        raise refuse(code, message, half.start() if half else 0) from error
    except json.JSONDecodeError as error:
        raise refuse(code, f"is not JSON: {error.msg}", error.pos) from error
    except RecursionError as error:
        raise refuse(code, _TOO_DEEP, _undecodable(text, decoder)) from error
    except _TwiceError as error:
        raise refuse(duplicate or code, str(error), _undecodable(text, decoder)) from error
    except ValueError as error:
        raise refuse(code, f"is not JSON: {error}", _undecodable(text, decoder)) from error
    if not isinstance(value, dict):
        raise refuse(code, "is not a JSON object", 0)
    return value


def _named_places(text: str, decoder: json.JSONDecoder) -> Iterator[tuple[str, int]]:
    """Yield the names of a text's object, each with its place; raises the decoder's errors."""
    at = _after_blanks(text, 0)
    at += text.startswith("{", at)
    while text.startswith('"', begin := _after_blanks(text, at)):
        name, at = decoder.raw_decode(text, begin)
        yield name, begin
        _, at = decoder.raw_decode(text, _after_blanks(text, _after_blanks(text, at) + 1))
        at = _after_blanks(text, at) + 1


def place_of(name: str, raw: bytes) -> int:
    """Return the byte at which an entry of a text's object begins, by its name."""
    text = raw.decode("utf-8")
    begin = next(at for other, at in _named_places(text, json.JSONDecoder()) if other == name)
    return len(text[:begin].encode("utf-8"))


def _after_blanks(text: str, at: int) -> int:
    return blank.end() if (blank := _BLANK.match(text, at)) else at


def _undecodable(text: str, decoder: json.JSONDecoder) -> int:
    """Return the place of the first entry that the decoder refuses or that comes twice; else 0."""
    seen: set[str] = set()
    at = 0
    with suppress(ValueError, RecursionError):
        for name, at in _named_places(text, decoder):  # noqa: B007 (where it stops is the answer)
            if name in seen:
                break
            seen.add(name)
    return at


def json_content(document: Mapping[str, Any]) -> bytes:
    """Return the content of a JSON file, with a line for each entry."""
    return (json.dumps(document, indent=2, ensure_ascii=False) + "\n").encode()


@final
class _TwiceError(ValueError):
    """A name that an object holds twice."""


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return an object's entries as a dictionary, if no name comes twice."""
    if len(entries := dict(pairs)) < len(pairs):
        counts = Counter(name for name, _ in pairs)
        twice = next(name for name in counts if counts[name] > 1)
        raise _TwiceError(f"duplicate name {quoted(twice)} in one object")
    return entries


def _no_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is not a number")


_STRICT = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_no_constant)


_R = TypeVar("_R", bound="BaseModel")


def parse_record(kind: type[_R], raw: bytes, refuse: Callable[[str], CheckpointError]) -> _R:
    """Return the record in a JSON text. Raises the result of `refuse` for the first fault."""
    from pydantic import ValidationError  # the help of a command needs no pydantic

    if len(raw) > MAX_JSON:
        raise refuse(f"expected at most {MAX_JSON:,} bytes of JSON, got {len(raw):,}")
    try:
        return kind.model_validate_json(raw)
    except ValidationError as error:
        raise refuse(fault_of(error)) from None


def first_fault(error: "ValidationError") -> "ErrorDetails":
    """Return the first fault of a record; an unknown key replaces a missing key."""
    first, *others = error.errors(include_url=False, include_context=False)
    for other in others if first["type"] == "missing" else ():
        if other["type"] == "extra_forbidden" and other["loc"][:-1] == first["loc"][:-1]:
            return other
    return first


def fault_of(error: "ValidationError", kinds: Collection[str] = ()) -> str:
    """Return the first fault of a record in words: its place, the expected, the actual value.

    `kinds` are the values of `kind` that tell the forms of records apart, within the record.
    """
    first = first_fault(error)
    loc = first["loc"]
    keys = (key for i, key in enumerate(loc) if key not in kinds or i < 2 or i == len(loc) - 1)
    place = ".".join(map(str, keys))
    message = first["msg"].removeprefix("Value error, ")
    text = message[:1].lower() + message[1:]
    if first["type"] == "json_invalid":
        return f"expected JSON, got {text.removeprefix('invalid JSON: ')}"
    if first["type"] == "extra_forbidden":
        return f"unknown key {quoted(place)}"
    where = f"{quoted(place)}: " if place else ""
    if first["type"] in {"union_tag_invalid", "union_tag_not_found"} and kinds:
        got = shown(first["input"].get("kind"))
        return f"{where}expected the kind {listed(map(quoted, kinds), 'or')}, got {got}"
    if first["type"] == "tuple_type":
        text = "expected a list"
    return f"{where}{text}{_got(first['type'], first['input'])}"


def _got(kind: str, value: Any) -> str:
    if kind in {"missing", "value_error"} or isinstance(value, dict | list):
        return ""
    try:
        return f", got {shown(value)}"
    except ValueError:  # Python prints no integer of more than 4,300 digits
        return ""
