"""A family's file: read, written, and checked against its proof.

Reading one takes no torch. A file from `gptailor family` is used if nothing failed in its proof,
and if nothing in it was changed after that: a digest tells.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import pydantic

from gptailor.checkpoint.families.family import Family
from gptailor.checkpoint.files import CheckpointError, quoted
from gptailor.checkpoint.json_files import read_object
from gptailor.checkpoint.records import fault_of

_FILE_VERSION = 1
_AGAIN = "'gptailor family MODEL' makes it anew, with its proof"
_WIDTH = 100


def content_digest(family: Family) -> str:
    """Return the sha256 of a file's whole content but for the digest."""
    content = family.model_dump(mode="json", exclude={"digest"}, exclude_unset=True)
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def family_text(family: Family) -> str:
    """Return a family's file as JSON, with the digest of its content if it has a proof.

    Equal families have equal texts.
    """
    content = family.model_dump(mode="json", exclude={"digest"}, exclude_unset=True)
    if family.proof is not None:
        content["digest"] = content_digest(family)
    return _json(content) + "\n"


def _json(value: Any, indent: str = "") -> str:
    """Return JSON with a key a line; what fits, and a list of simple values, is on one line."""
    line = json.dumps(value, ensure_ascii=False)
    items = list(value.values()) if isinstance(value, dict) else value
    if not isinstance(items, list) or (indent and len(indent) + len(line) < _WIDTH - 20):
        return line
    if items == value and not any(isinstance(item, dict | list) for item in items):
        return line
    keys = (
        [f"{json.dumps(key)}: " for key in value] if isinstance(value, dict) else [""] * len(value)
    )
    deeper = f"{indent}  "
    lines = (deeper + key + _json(item, deeper) for key, item in zip(keys, items, strict=True))
    start, end = "{}" if isinstance(value, dict) else "[]"
    return start + "\n" + ",\n".join(lines) + f"\n{indent}{end}"


def read_family_file(path: Path) -> Family:
    """Return the family in a file. Raises CheckpointError (C111) for an invalid file."""
    document = read_object(path, "C111", duplicate="C111")
    version = document.get("version")
    if type(version) is int and version != _FILE_VERSION:
        message = f"is a family file of version {version}, and this gptailor reads {_FILE_VERSION}"
        raise CheckpointError("C111", message, path, _AGAIN)
    try:
        file = Family.model_validate(document)
    except pydantic.ValidationError as error:
        message = f"invalid family file: {fault_of(error)}"
        help_ = "'gptailor schema --family' prints the form of such a file"
        raise CheckpointError("C111", message, path, help_) from None
    return file


def check_proof(file: Family, path: Path) -> None:
    """Raise CheckpointError (C112) for a file with a failed proof, or changed since its proof."""
    if file.proof is None or not file.proof.cases:
        raise CheckpointError("C112", "holds an unproven draft", path, _AGAIN)
    if failures := file.proof.failures:
        case = failures[0]
        why = f"{quoted(case.name)}: {quoted(case.failure or '')}"
        message = f"holds a draft that failed its proof: {why}"
        raise CheckpointError("C112", message, path)
    if file.digest != content_digest(file):
        raise CheckpointError("C112", "was changed after it was proven", path, _AGAIN)
