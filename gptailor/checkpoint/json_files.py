"""JSON that may be hostile: a file or a header, with the place of a fault; typed records."""

import json
import os
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn, TypeVar, final

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from gptailor.checkpoint.files import CheckpointError, open_regular, quoted, read_exactly, shown
from gptailor.plan.faults import listed

MAX_JSON = 100_000_000
"""The largest JSON text that is read, in bytes; the reference allows a header as much."""

_MAX_DEPTH = 100
"""The deepest nesting of configurations: Python prints and compares nested data by recursion."""

_TOO_DEEP = "is nested too deeply to be JSON of ours"
_BLANK = re.compile(r"[ \t\r\n]*")


def read_object(path: Path, code: str, duplicate: str | None) -> dict[str, Any]:
    """Return the JSON object in a file; see `parse_object`. It nests 100 deep at most."""
    with open_regular(path, code) as file:
        size = os.fstat(file.fileno()).st_size
        if size > MAX_JSON:
            raise CheckpointError(code, f"has {size} bytes, more than any JSON file needs", path)
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
    """Return the JSON object in a text, which stands at byte `start` of the file.

    `duplicate` is the code for a name that an object holds twice. Without one the text is read as
    `json` and transformers read it: the last one counts, and `NaN` and `Infinity` are numbers.
    """
    decoder = json.JSONDecoder() if duplicate is None else _STRICT
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        message = "is not JSON: the text is not UTF-8"
        raise CheckpointError(code, message, path, offset=start + error.start) from error

    def refuse(code: str, message: str, at: int) -> CheckpointError:
        offset = start + len(text[:at].encode("utf-8"))
        return CheckpointError(code, message, path, offset=offset)

    try:
        value = decoder.decode(text)
        if half := _HALF.search(text):
            json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:  # a file of UTF-8 can't hold it
        message = "is not JSON of ours: expected text, got half a surrogate pair"
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
        raise refuse(code, "is JSON, but not an object", 0)
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


_R = TypeVar("_R", bound=BaseModel)


def parse_record(kind: type[_R], raw: bytes, refuse: Callable[[str], CheckpointError]) -> _R:
    """Return the record in a JSON text. Raises for the first fault what `refuse` makes of it."""
    if len(raw) > MAX_JSON:
        raise refuse(f"expected at most {MAX_JSON:,} bytes of JSON, got {len(raw):,}")
    try:
        return kind.model_validate_json(raw)
    except ValidationError as error:
        raise refuse(fault_of(error)) from None


def first_fault(error: ValidationError) -> ErrorDetails:
    """Return the first fault of a record: an unknown key, if another one is missing beside it."""
    first, *others = error.errors(include_url=False, include_context=False)
    for other in others if first["type"] == "missing" else ():
        if other["type"] == "extra_forbidden" and other["loc"][:-1] == first["loc"][:-1]:
            return other
    return first


def fault_of(error: ValidationError, kinds: Collection[str] = ()) -> str:
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
