"""A family's file: read, written, and checked against its proof.

Reading one takes no torch. A file from `gptailor family` is used if nothing failed in its proof,
and if nothing in it was changed after that: a digest tells.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pydantic

from gptailor.checkpoint.families.family import Family, NotProven, Proof
from gptailor.checkpoint.families.layer_config import Rotary
from gptailor.checkpoint.families.layer_rules import RULE_FORMS
from gptailor.checkpoint.files import CheckpointError, quoted
from gptailor.checkpoint.json_files import read_object
from gptailor.checkpoint.records import fault_of, first_fault
from gptailor.plan.faults import nearest
from gptailor.plan.plan import Closed

_FILE_VERSION = 1
_AGAIN = "'gptailor family MODEL' makes it anew, with its proof"
_WIDTH = 100
_NESTED: Mapping[str, type[Closed]] = {"refused": NotProven, "rotary": Rotary, "proof": Proof}
"""The forms of values in a file, by their keys."""


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
    try:
        document = read_object(path, "C111", duplicate="C111")
    except CheckpointError as error:
        if error.offset is None:
            raise
        line = path.read_bytes().count(b"\n", 0, error.offset) + 1
        raise CheckpointError("C111", f"line {line}: {error.message}", path, error.help) from None
    version = document.get("version")
    if type(version) is int and version != _FILE_VERSION:
        message = f"is a family file of version {version}, and this gptailor reads {_FILE_VERSION}"
        raise CheckpointError("C111", message, path, _AGAIN)
    try:
        file = Family.model_validate(document)
    except pydantic.ValidationError as error:
        message = f"invalid family file: {fault_of(error, RULE_FORMS)}"
        help_ = f"{_nearest_key(error)}'gptailor schema --family' prints the form of such a file"
        raise CheckpointError("C111", message, path, help_) from None
    return file


def _nearest_key(error: pydantic.ValidationError) -> str:
    """Return which key an unknown one may stand for, or an empty text."""
    first = first_fault(error)
    if first["type"] != "extra_forbidden":
        return ""
    *above, name = map(str, first["loc"])
    kind = {**_NESTED, **RULE_FORMS}.get(above[-1]) if above else Family
    near = nearest(name, kind.model_fields if kind else ())
    return near and f"{near} "


def check_proof(file: Family, path: Path) -> None:
    """Raise CheckpointError (C112) for a file with a failed proof, or changed since its proof."""
    if file.proof is None or not file.proof.cases:
        help_ = _AGAIN if file.proof else "name a file without a proof by --family"
        raise CheckpointError("C112", "holds an unproven draft", path, help_)
    if failures := file.proof.failures:
        case = failures[0]
        why = f"{quoted(case.name)}: {quoted(case.failure or '')}"
        raise CheckpointError("C112", f"holds a draft that failed its proof: {why}", path)
    if file.digest != content_digest(file):
        raise CheckpointError("C112", "was changed after it was proven", path, _AGAIN)
