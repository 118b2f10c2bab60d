"""Names and sources for another file's models: short, readable, none twice."""

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from gptailor.convert.mergekit.config import ModelReference
from gptailor.plan.plan import Model
from gptailor.plan.registry import WORDS

_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?", re.ASCII)


@dataclass(frozen=True)
class PathRoots:
    """Where the file's relative paths start, and the folder of the plan that is to be written.

    Without `root` nothing is looked up on disk.
    """

    root: Path | None = None
    folder: Path | None = None

    def source(self, path: str) -> str:
        """A path of the file as a plan's source: a folder that is there, or a Hub id."""
        if not self.is_local(path):
            return path
        if self.root is not None and self.folder is not None and not path.startswith(("/", "~")):
            path = os.path.relpath(self.root / path, self.folder)
        return path if path.startswith((".", "/", "~")) else f"./{path}"

    def is_local(self, path: str) -> bool:
        """Whether a path is a folder and not a Hub id."""
        if path.startswith((".", "/", "~")) or not _HUB_ID.fullmatch(path):
            return True
        return self.root is not None and (self.root / path).is_dir()


def name_models(
    references: Iterable[ModelReference], base: ModelReference, paths: PathRoots
) -> tuple[dict[ModelReference, str], dict[str, Model]]:
    """A name for each model, and the plan's models; the adapters' models among them."""
    names: dict[ModelReference, str] = {base: "base"}
    models: dict[str, Model] = {}
    for reference in (base, *references):
        _declare(reference, names, models, paths)
    return names, models


def _declare(
    reference: ModelReference,
    names: dict[ModelReference, str],
    models: dict[str, Model],
    paths: PathRoots,
) -> None:
    name = names.get(reference)
    if name in models:
        return
    here, on = reference.model, None
    if reference.lora is not None:
        under = reference.model_copy(update={"lora": None})
        _declare(under, names, models, paths)
        here, on = reference.lora, names[under]
    name = names.setdefault(reference, short_name(here.path, names.values()))
    revision = None if paths.is_local(here.path) else here.revision  # a folder has none
    models[name] = Model(source=paths.source(here.path), revision=revision, on=on)


def short_name(path: str, taken: Iterable[str]) -> str:
    """The last part of a path in lower case, as a model's name: letters, digits and `_`."""
    last = path.rstrip("/").rpartition("/")[2]
    name = re.sub(r"\W+", "_", last.lower(), flags=re.ASCII).strip("_") or "model"
    if name[0].isdigit() or re.fullmatch(r"L\d+", name) or name in WORDS:
        name = f"model_{name}"
    taken, number, first = set(taken) | {"base"}, 2, name
    while name in taken:
        name = f"{first}_{number}"
        number += 1
    return name
