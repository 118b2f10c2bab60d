"""JSON of a stranger as typed data: `parse_record`; any fault is one `CheckpointError`."""

from collections.abc import Callable
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from gptailor.checkpoint.files import CheckpointError, quoted, shown
from gptailor.checkpoint.json_files import MAX_JSON

_R = TypeVar("_R", bound=BaseModel)

Refuse = Callable[[str], CheckpointError]
"""Makes an exception of a message about a record."""


def parse_record(kind: type[_R], raw: bytes, refuse: Refuse) -> _R:
    """Return the record in a JSON text. Raises the exception of `refuse` for the first fault."""
    if len(raw) > MAX_JSON:
        raise refuse(f"expected at most {MAX_JSON:,} bytes of JSON, got {len(raw):,}")
    try:
        return kind.model_validate_json(raw)
    except ValidationError as error:
        raise refuse(fault_of(error)) from None


def fault_of(error: ValidationError) -> str:
    """Return the first fault of a record in words: its place, the expected, the actual value."""
    first = error.errors(include_url=False, include_context=False)[0]
    place = ".".join(map(str, first["loc"]))
    message = first["msg"].removeprefix("Value error, ")
    text = message[:1].lower() + message[1:]
    if first["type"] == "json_invalid":
        return f"expected JSON, got {text.removeprefix('invalid JSON: ')}"
    where = f"{quoted(place)}: " if place else ""
    return f"{where}{text}{_got(first['type'], first['input'])}"


def _got(kind: str, value: Any) -> str:
    if kind in {"missing", "extra_forbidden", "value_error"} or isinstance(value, dict | list):
        return ""
    try:
        return f", got {shown(value)}"
    except ValueError:  # Python prints no integer of more than 4,300 digits
        return ""
