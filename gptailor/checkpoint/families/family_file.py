"""Family files: found for a model type, read, written, and checked against their proof.

Reading one takes no torch. A file from `gptailor family` is used if nothing failed in its proof,
and if nothing in it was changed after that: a digest tells.

A file that was named wins over all. The release's own families win over files that lie about: one
in the model's own folder (where `compile` puts it), then the user's. The working folder and the
plan's are never searched.
"""

import hashlib
import json
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, final

import pydantic

from gptailor.checkpoint.families import FAMILY_OF
from gptailor.checkpoint.families.family import Family, NotProven, Proof, matches
from gptailor.checkpoint.families.layer_config import Config, Refusal, Rotary
from gptailor.checkpoint.families.layer_rules import RULE_FORMS
from gptailor.checkpoint.families.layout import Layout, is_constant, layout_of, split_name
from gptailor.checkpoint.files import (
    CheckpointError,
    expanded,
    fault_of,
    first_fault,
    quoted,
    read_object,
    reading,
)
from gptailor.plan.doors import Door
from gptailor.plan.faults import CodedError, nearest
from gptailor.plan.layer_parts import Branch
from gptailor.plan.plan import Closed

_FILE_VERSION = 1
_AGAIN = "run 'gptailor family MODEL' to make and prove it again"
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
    if not isinstance(items, list) or (indent and len(indent) + len(line) < 80):
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
        message = f"expected a family file of version {_FILE_VERSION}, got version {version}"
        raise CheckpointError("C111", message, path, _AGAIN)
    try:
        file = Family.model_validate(document)
    except pydantic.ValidationError as error:
        message = f"invalid family file: {fault_of(error, RULE_FORMS)}"
        help_ = f"{_nearest_key(error)}'gptailor schema --family' prints its form"
        raise CheckpointError("C111", message, path, help_) from None
    return file


def _nearest_key(error: pydantic.ValidationError) -> str:
    """Return the key that an unknown key may mean, or an empty text."""
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
        help_ = _AGAIN if file.proof else "name it by --family to use it without a proof"
        raise CheckpointError("C112", "contains an unproven draft", path, help_)
    if failures := file.proof.failures:
        case = failures[0]
        why = f"{quoted(case.name)}: {quoted(case.failure or '')}"
        raise CheckpointError("C112", f"contains a draft that failed its proof: {why}", path)
    if file.digest != content_digest(file):
        raise CheckpointError("C112", "was changed after it was proven", path, _AGAIN)


FAMILY_SUFFIX = ".family.json"
"""End of a family file's name."""

NO_PROOF = "a family from a file has no proof of it"
"""The reason why such a family has no `scale` and no `bridge`."""


@final
@dataclass(frozen=True)
class FoundFamily:
    """A family from a file, proven or named by the user."""

    path: Path
    file: Family

    @property
    def digest(self) -> str:
        """The sha256 of its content, the proof included."""
        return content_digest(self.file)

    def layout(self, config: Config, names: Collection[str]) -> Layout | Refusal:
        """Return the layout of a checkpoint by the family, if the tensors agree with it."""
        read = layout_by(self.file, config, names)
        if isinstance(read, Refusal) and not read.help:
            return replace(read, help=f"the family is in {quoted(str(self.path))}")
        return read


def layout_by(family: Family, config: Config, names: Collection[str]) -> Layout | Refusal:
    """Return the layout of a checkpoint by a family from a file, which may lie."""
    read = layout_of(config, names, family)
    if isinstance(read, Refusal):
        layers = family.base + family.stack
        if any(name.startswith((layers, family.stack)) for name in names):
            return read
        return Refusal(
            f"no tensor begins with {quoted(layers)}, the family file's 'base' and 'stack'"
        )
    what = f"(model type '{read.model_type}')"
    if (why := _unlike_file(read, names, family)) is not None:
        return Refusal(f"{why}, which its family file declares {what}")
    if family.proof is not None:
        return read
    for name in sorted({*names} - read.predicting):
        if split_name(read, name) is None and not is_constant(name):
            where = "name it under 'embed', 'norm' or 'head' of its family file"
            return Refusal(f"tensor {quoted(name)} has no place: {where} {what}")
    return replace(
        read,
        notice=f"the family file of '{read.model_type}' has no proof; test the output",
        no_scale=read.no_scale or NO_PROOF,
        no_bridge=read.no_bridge or NO_PROOF,
    )


def _unlike_file(layout: Layout, names: Collection[str], family: Family) -> str | None:
    """Return which tensor of a family file a checkpoint lacks, or None."""
    outside = {"embed": layout.embed}
    if family.proof is None:
        headless = layout.tied or layout.root != layout.family.base  # saved without its head
        outside |= {"norm": layout.norm, "head": () if headless else layout.head}
    for key, own in outside.items():
        if missing := {*own} - {*names}:
            return f"there is no tensor {quoted(min(missing))} of '{key}'"
    places = [place for name in names if isinstance(place := split_name(layout, name), tuple)]
    suffixes = [place[2] for place in places]
    for key, name in () if family.proof else family.patterns():
        fits = str.startswith if key in {"attn", "mlp"} else matches
        if not any(fits(suffix, name) for suffix in suffixes):
            return f"no tensor of a layer matches {quoted(name)} of '{key}'"
    parts: tuple[Branch, ...] = () if layout.no_parts else ("attn", "mlp")
    for part in parts:
        have = {layer for layer, of, _ in places if of == part}
        if (without := next((i for i in range(layout.count) if i not in have), None)) is not None:
            return f"there is no tensor of branch '{part}' in layer {without}"
    return None


def _user_families() -> Path:
    """Return the folder of the user's own families."""
    config_home = Path(os.environ.get("XDG_CONFIG_HOME", ""))
    home = config_home if config_home.is_absolute() else expanded("~/.config")
    return home / "gptailor" / "families"


def family_for(model_type: object, files: Sequence[Path], folder: Path) -> FoundFamily | None:
    """Return a model type's family file: a given one, one in the model's folder, or the user's.

    Without these an installed package's. Return None without a file, or if the release knows the
    type and no given file names it. Raises CheckpointError: C111 for an invalid file or package,
    C112 for a file that is not proven, C113 for two of one type.
    """
    if (match := _of_type(model_type, files, named=True)) is not None:
        return match
    if not isinstance(model_type, str) or model_type in FAMILY_OF:
        return None
    for searched in (folder, _user_families()):
        if (match := _of_type(model_type, _files(searched))) is not None:
            return match
    packaged = FAMILY_FILES.get(model_type)
    if problem := FAMILY_FILES.problem(model_type):
        raise CodedError("C111", f"the family of {quoted(model_type)}: {problem}")
    return None if packaged is None else _of_type(model_type, [packaged])


FAMILY_FILES: Door[Path] = Door("families", "family", Path, {})
"""Family files of installed packages, by model type."""


def _files(folder: Path) -> list[Path]:
    """Return the family files in a folder, which may be missing."""
    if not folder.is_dir():
        return []
    with reading(folder):
        names = sorted(os.listdir(folder))  # noqa: PTH208 (names are compared, not paths)
    return [folder / name for name in names if name.endswith(FAMILY_SUFFIX)]


def _of_type(
    model_type: object, paths: Sequence[Path], *, named: bool = False
) -> FoundFamily | None:
    """Return the family of a type. Files without a proof are used only if they are named."""
    read = [(path, read_family_file(path)) for path in paths]
    matches = [pair for pair in read if model_type in pair[1].model_types]
    if not matches:
        return None
    path, file = matches[0]
    if len(matches) > 1:
        message = f"has the same model type as {quoted(str(path))}: {quoted(str(model_type))}"
        raise CheckpointError("C113", message, matches[1][0], "name one of them by --family")
    if file.proof is not None or not named:
        check_proof(file, path)
    return FoundFamily(path, file)
