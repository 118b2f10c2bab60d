"""What is known of a configuration's base: its layers, a tied head, its tensors' names.

It is looked for in the folder that the user gives, in the folder that the file names, in the Hub's
cache, and on the Hub. Nothing is taken for granted of a base that isn't to be had.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, final

from gptailor.checkpoint import hub
from gptailor.checkpoint.families import FAMILY_OF
from gptailor.checkpoint.families.layer_config import Refusal, RuleError
from gptailor.checkpoint.families.layout import is_tied, layer_count, place_in
from gptailor.checkpoint.families.lookup import family_for
from gptailor.checkpoint.families.vision import WRAPPERS
from gptailor.checkpoint.files import CheckpointError, read_object
from gptailor.checkpoint.folder import CONFIG, Checkpoint, open_checkpoint
from gptailor.convert.mergekit.config import ModelReference
from gptailor.convert.mergekit.names import TensorNames, names_by_type, names_of

MODEL_ID = re.compile(r"[\w.-]+(/[\w.-]+)?", re.ASCII)

HOW_TO_SAY = (
    "give a folder that has its config.json, by --base FOLDER; it needs no weights. "
    "--layers N says the number of layers alone"
)


@final
@dataclass(frozen=True)
class KnownBase:
    """A base's number of layers, whether its head is the embedding, and mergekit's names of it.

    `names` is None where its type doesn't tell them; `towers` says that it reads images too.
    """

    layers: int
    tied: bool
    names: TensorNames | None
    model_type: str
    towers: bool = False


@final
@dataclass(frozen=True)
class Whereabouts:
    """Where models are looked for: folders by their names, relative paths from `root`, the Hub.

    Without `root` and `given` nothing is looked up.
    """

    root: Path | None = None
    given: Mapping[str, Path] = field(default_factory=dict)
    on_hub: bool = False

    def folder(self, reference: ModelReference, *names: str) -> Path | None:
        """The folder of a model that the file or the user names, if there is one."""
        path = reference.model.path
        for name in (*names, path, str(reference)):
            if name in self.given:
                return self.given[name]
        if self.root is not None and not is_windows(path) and (self.root / path).is_dir():
            return self.root / path
        return None


def is_windows(path: str) -> bool:
    """Whether a path is one of Windows: it has a drive or backslashes."""
    return bool(re.match(r"[A-Za-z]:[\\/]", path)) or "\\" in path


@final
class Base:
    """The base of a file; what is known of it is looked up when it is first asked for."""

    def __init__(self, reference: ModelReference, places: Whereabouts, layers: int | None) -> None:
        self._reference, self._places, self.said = reference, places, layers
        self.why = "nothing says where it is"

    @cached_property
    def known(self) -> KnownBase | None:
        """What is known of it; None, and the reason in `why`, where it isn't to be had."""
        folder = self._places.folder(self._reference, "base")
        try:
            if folder is not None:
                return _of_folder(folder)
            path, revision = self._reference.model.path, self._reference.model.revision
            if self._places.on_hub and MODEL_ID.fullmatch(path):
                return _of_hub(path, revision)
        except (CheckpointError, RuleError) as error:
            self.why = error.message if isinstance(error, CheckpointError) else str(error)
        return None

    @property
    def layers(self) -> int | None:
        """Its number of layers, by its configuration, or else as the user says."""
        return self.said if self.known is None else self.known.layers

    @property
    def contradicted(self) -> str:
        """What the user says of it, if its configuration says otherwise."""
        if self.known is None or self.said in (None, self.known.layers):
            return ""
        return f"the base has {self.known.layers} layers, and not {self.said}"


def _of_folder(folder: Path) -> KnownBase:
    """By the headers of its weights, where it has some; by its configuration alone else."""
    try:
        return _of_checkpoint(open_checkpoint(folder))
    except CheckpointError:
        if not (folder / CONFIG).exists():
            raise
    return _of_config(read_object(folder / CONFIG, "C103", duplicate=None))


def _of_checkpoint(checkpoint: Checkpoint) -> KnownBase:
    found = family_for(checkpoint.config.get("model_type"), (), checkpoint.folder)
    layout = replace(checkpoint, family=found).layout()
    if isinstance(layout, Refusal):
        raise RuleError(layout.reason)
    places = (place_in(layout.prefix, name) for name in checkpoint.tensors)
    rests = [at[1] for at in places if at is not None and at[0] < layout.count]
    names = names_of(layout.family, checkpoint.config, layout.model_type, rests)
    towers = layout.wrapped
    return KnownBase(layout.count, layout.tied, names, layout.model_type, towers)


def _of_config(config: Mapping[str, Any]) -> KnownBase:
    model_type = str(config.get("model_type"))
    family = FAMILY_OF.get(model_type)
    if family is None:
        what = f"model type '{model_type}' is not known by its configuration alone"
        raise RuleError(what)
    config = dict(config)
    names = names_by_type(config)
    count, tied = layer_count(family, config), is_tied(config, family)
    return KnownBase(count, tied, names, model_type, model_type in WRAPPERS)


def _of_hub(path: str, revision: str | None) -> KnownBase:
    """By its configuration in the cache or on the Hub, and by its headers if that isn't enough."""
    cached = hub.cached(path, revision, CONFIG)
    folder = (cached or hub.snapshot(path, revision, [CONFIG]) / CONFIG).parent
    try:
        known = _of_folder(folder)
    except RuleError:
        known = None
    if known is not None and known.names is not None:
        return known
    return _of_checkpoint(hub.open_hub(path, revision)[0])
