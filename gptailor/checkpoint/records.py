"""JSON of a stranger as typed data: `parse_record`; any fault is one `CheckpointError`."""

from collections.abc import Callable, Collection
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from gptailor.checkpoint.files import CheckpointError, quoted, shown
from gptailor.checkpoint.json_files import MAX_JSON
from gptailor.plan.faults import listed

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
