"""Family files: where the family of a model type comes from, if not from the release.

A file that was named wins over all. The release's own families win over files that lie about: one
in the model's own folder (where `compile` puts it), then the user's. The working folder and the
plan's are never searched.
"""

import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import final

from gptailor.checkpoint.families import FAMILY_OF
from gptailor.checkpoint.families.family import Family, matches
from gptailor.checkpoint.families.family_file import check_proof, content_digest, read_family_file
from gptailor.checkpoint.families.layer_config import Config, Refusal
from gptailor.checkpoint.families.layout import Layout, is_constant, layout_of, split_name
from gptailor.checkpoint.files import CheckpointError, expanded, quoted, reading
from gptailor.plan.doors import Door
from gptailor.plan.faults import CodedError
from gptailor.plan.layer_parts import Branch

FAMILY_SUFFIX = ".family.json"
"""End of a family file's name."""

NO_PROOF = "it is not proven of a family from a file"
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
        return Refusal(f"no tensor's name begins with {quoted(layers)}, as 'base' and 'stack' say")
    what = f"(model type '{read.model_type}')"
    if (why := _unlike_file(read, names, family)) is not None:
        return Refusal(f"{why}, and its family file says that there is {what}")
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


def user_families() -> Path:
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
    for searched in (folder, user_families()):
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
