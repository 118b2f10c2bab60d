"""Family files: where the family of a model type comes from, if not from the release.

A file that was named wins over all. The release's own families win over files that lie about: those
beside the plan, those in the model's own folder (where `compile` puts one), then the user's.
"""

import os
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import final

from gptailor.checkpoint.families import FAMILY_OF
from gptailor.checkpoint.families.family import Family
from gptailor.checkpoint.families.family_file import FamilyFile, check_proof, read_family_file
from gptailor.checkpoint.families.layer_config import Config, Refusal
from gptailor.checkpoint.families.layout import Layout, layout_of, split_name
from gptailor.checkpoint.files import CheckpointError, expanded, quoted, reading
from gptailor.plan.doors import Door
from gptailor.plan.faults import CodedError
from gptailor.plan.layer_parts import Branch

FAMILY_SUFFIX = ".family.json"
"""End of a family file's name."""


@final
@dataclass(frozen=True)
class FoundFamily:
    """A family from a file, proven."""

    path: Path
    file: FamilyFile

    @property
    def digest(self) -> str:
        """The sha256 of its content, the proof included."""
        return self.file.digest

    @cached_property
    def _families(self) -> dict[str, Family]:
        return self.file.families()

    def layout(self, config: Config, names: Collection[str]) -> Layout | Refusal:
        """Return the layout of a checkpoint by the family, if the tensors agree with it."""
        return layout_by(self._families, config, names)


def layout_by(
    families: Mapping[str, Family], config: Config, names: Collection[str]
) -> Layout | Refusal:
    """Return the layout of a checkpoint by families from files, which may lie."""
    read = layout_of(config, names, families)
    if not isinstance(read, Refusal) and (name := _in_two_places(read)) is not None:
        return Refusal(f"its family file names {quoted(name)} for two places")
    if isinstance(read, Refusal) or (why := _unlike_file(read, names)) is None:
        return read
    return Refusal(
        f"{why}, and its family file says that there is (model type '{read.model_type}')"
    )


def _in_two_places(layout: Layout) -> str | None:
    """Return a tensor that two of embedding, norm, head and the layers have, or None."""
    ends = Counter((*layout.embed, *layout.norm, *layout.head))
    return next((n for n, count in ends.items() if count > 1 or n.startswith(layout.prefix)), None)


def _unlike_file(layout: Layout, names: Collection[str]) -> str | None:
    """Return which tensor of a family file a checkpoint lacks, or None."""
    if not set(layout.embed) <= set(names):
        return f"there is no embedding '{min(set(layout.embed) - set(names))}'"
    places = [place for name in names if isinstance(place := split_name(layout, name), tuple)]
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


def family_for(model_type: object, files: Sequence[Path], *folders: Path) -> FoundFamily | None:
    """Return the family file of a model type: a given one, one in a folder, or the user's.

    Without these an installed package's. Return None without a file, or if the release knows the
    type and no given file names it. Raises CheckpointError: C111 for an invalid file or package,
    C112 for a file that is not proven, C113 for two of one type.
    """
    if (match := _of_type(model_type, files)) is not None:
        return match
    if not isinstance(model_type, str) or model_type in FAMILY_OF:
        return None
    for folder in (*folders, user_families()):
        if (match := _of_type(model_type, _files(folder))) is not None:
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


def _of_type(model_type: object, paths: Sequence[Path]) -> FoundFamily | None:
    if not paths:
        return None
    read = [(path, read_family_file(path, proven=False)) for path in paths]
    matches = [pair for pair in read if model_type in pair[1].model_types]
    if not matches:
        return None
    path, file = matches[0]
    if len(matches) > 1:
        message = f"has the same model type as {quoted(str(path))}: {quoted(str(model_type))}"
        raise CheckpointError("C113", message, matches[1][0], "name one of them by --family")
    check_proof(file, path)
    return FoundFamily(path, file)
