"""A configuration while it becomes a plan: `Reading`, and `read_over`, which starts one."""

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import final

from gptailor.checkpoint import hub
from gptailor.checkpoint.files import CheckpointError, read_object
from gptailor.checkpoint.folder import CONFIG, TOKENIZER_FILES
from gptailor.checkpoint.vocabulary import read_vocabulary
from gptailor.convert.mergekit import parameters
from gptailor.convert.mergekit.bases import HOW_TO_SAY, MODEL_ID, Base, Whereabouts, is_windows
from gptailor.convert.mergekit.config import (
    MergekitConfig,
    ModelReference,
    ParameterBlock,
    SliceBlock,
)
from gptailor.convert.mergekit.methods import MERGEKIT_METHODS
from gptailor.convert.mergekit.mixture import MergekitMethod
from gptailor.convert.mergekit.names import TensorNames
from gptailor.convert.note import ConversionError, Note, short_name, snapshot_of
from gptailor.plan import plan as p
from gptailor.plan.faults import listed, nearest

_WINDOWS = (
    "'{}' is a path of Windows, which is not here: './{}' stands for it, and --model {}=PATH says "
    "where it is"
)
_SNAPSHOT = "this folder is not here: it is the Hub's model at that commit, and the plan says so"


@final
@dataclass
class Reading:
    """A configuration while it becomes a plan: what is known, and what is wrong or differs so far.

    `names` are the models' names in the plan, `slices` the output's layers.
    """

    config: MergekitConfig
    method: MergekitMethod
    reference: ModelReference
    base: Base
    places: Whereabouts
    names: Mapping[ModelReference, str]
    models: dict[str, p.Model]
    slices: list[SliceBlock]
    notes: list[Note] = field(default_factory=list)
    errors: list[ConversionError] = field(default_factory=list)
    merges: bool = False
    """Whether a merge was met, and not takes alone."""

    @property
    def blocks(self) -> list[ParameterBlock]:
        """The blocks whose parameters hold for all slices, the nearest first."""
        body = self.config.body
        return [self.config] if body is self.config else [body, self.config]

    def filtered(self, piece: SliceBlock) -> tuple[ParameterBlock, tuple[str, ...]]:
        """Where the filters of a slice are: a block, and the place in it."""
        for block in (*piece.sources, piece, *self.blocks):
            for name in block.parameters:
                if name in self.method.parameters and parameters.filters_of(block, name):
                    return block, ("parameters", name)
        return piece, ()

    @property
    def tensor_names(self) -> TensorNames | None:
        """mergekit's names of the base's tensors, where filters ask for them; None if none does."""
        every = [b for s in self.slices for b in (*s.sources, s)] + self.blocks
        asked = [(b, n) for b in every for n in b.parameters if parameters.filters_of(b, n)]
        if not asked:
            return None
        if (known := self.base.known) is not None and known.names is not None:
            return known.names
        block, name = asked[0]
        what = f"of '{self.reference}' its configuration isn't known ({self.base.why})"
        if known is not None:
            what = f"of model type '{known.model_type}' a configuration alone doesn't tell them"
        message = f"filters are on the names of tensors, and {what}"
        raise block.error(message, "parameters", name, help=HOW_TO_SAY)

    def vocabulary(self, reference: ModelReference) -> Mapping[str, int] | None:
        """A model's tokens and their numbers, if its tokenizer is to be had."""
        folder = self.places.folder(reference, self.names[reference])
        path, revision = reference.model.path, reference.model.revision
        try:
            if folder is None and self.places.on_hub and MODEL_ID.fullmatch(path):
                folder = hub.snapshot(path, revision, TOKENIZER_FILES)
            found = None if folder is None else read_vocabulary(folder)
        except CheckpointError:
            return None
        return None if found is None else found.ids

    def dtype(self, reference: ModelReference) -> str | None:
        """The dtype that a model's configuration says, if it is to be had."""
        folder = self.places.folder(reference, self.names[reference])
        try:
            config = read_object(folder / CONFIG, "C103", duplicate=None) if folder else {}
        except CheckpointError:
            return None
        given = config.get("dtype") or config.get("torch_dtype")
        return given if isinstance(given, str) else None

    def tied(self, block: ParameterBlock, *inside: str) -> bool:
        """Whether the head is the embedding; an error if nothing tells, as it matters there."""
        if self.base.known is None:
            message = (
                f"whether the head of '{self.reference}' is its embedding isn't known "
                f"({self.base.why}), and here it makes a difference"
            )
            raise block.error(message, *inside, help=HOW_TO_SAY)
        return self.base.known.tied


def read_over(
    config: MergekitConfig, places: Whereabouts, folder: Path | None, layers: int | None
) -> Reading:
    """What a configuration is about: method, base, models, slices. A ConversionError with all
    that keeps it from being a plan before its tensors are looked at."""
    errors: list[ConversionError] = []
    method = _method(config, errors)
    reference = _base(config)
    base = Base(reference, places, layers)
    if base.contradicted:
        errors.append(config.error(base.contradicted))
    slices = _slices(config, base, errors)
    if errors or method is None:
        raise ConversionError.of_all(errors)
    sources = [source.model for piece in slices for source in piece.sources]
    reading = Reading(config, method, reference, base, places, {}, {}, slices)
    reading.names, reading.models = _named((reference, *sources), places, folder, reading)
    reading.notes += _checked(reading)
    return reading


def _method(config: MergekitConfig, errors: list[ConversionError]) -> MergekitMethod | None:
    name = config.merge_method
    if name in MERGEKIT_METHODS:
        return MERGEKIT_METHODS[name]
    message = f"there is no merge_method '{name}'"
    help_ = nearest(name, MERGEKIT_METHODS) or f"the methods are {listed(MERGEKIT_METHODS)}"
    errors.append(config.error(message, "merge_method", help=help_))
    return None


def _base(config: MergekitConfig) -> ModelReference:
    body = config.body
    slices = body.slices or []
    bases = [config.base_model, *(piece.base_model for piece in slices)]
    first = body.models[0] if body.models else slices[0].sources[0]
    return next((base for base in bases if base is not None), first.model)


def _slices(config: MergekitConfig, base: Base, errors: list[ConversionError]) -> list[SliceBlock]:
    body = config.body
    if body.models is None:
        return body.slices or []
    if base.layers is None:
        message = "'models' takes all layers of its models, and their number isn't known"
        errors.append(body.error(f"{message} ({base.why})", "models", help=HOW_TO_SAY))
        return []
    return [body.whole(base.layers, config.base_model)]


def _named(
    references: Iterable[ModelReference], places: Whereabouts, folder: Path | None, reading: Reading
) -> tuple[dict[ModelReference, str], dict[str, p.Model]]:
    """A name for each model, of which the first is the base, and the plan's models.

    What an adapter is on is a model too. Paths start at the root, and are seen from `folder`;
    without a root nothing is looked up on disk.
    """
    base, *_ = references
    names, models = {base: "base"}, {}
    for reference in dict.fromkeys(one for of in references for one in (of.bare, of)):
        here = reference.lora or reference.model
        name = names.setdefault(reference, short_name(here.path, names.values()))
        source, revision = here.path, here.revision
        on_disk = places.root is not None and (places.root / source).is_dir()
        cached = None if on_disk else snapshot_of(source)
        if cached is not None:
            revision, source = cached
            reading.notes.append(reading.config.note(f"'{here.path}': {_SNAPSHOT}"))
        elif on_disk or source.startswith((".", "/", "~")) or not MODEL_ID.fullmatch(source):
            revision = None  # a folder has none
            if is_windows(source) and not on_disk:
                shown, source = source, source.replace("\\", "/")
                note = _WINDOWS.format(shown, source, name)
                reading.notes.append(reading.config.note(note))
            elif places.root and folder is not None and not source.startswith(("/", "~")):
                source = os.path.relpath(places.root / source, folder)
            source = source if source.startswith((".", "/", "~")) else f"./{source}"
        on = names[reference.bare] if reference.lora else None
        models[name] = p.Model(source=source, revision=revision, on=on)
    return names, models


def _checked(reading: Reading) -> Iterator[Note]:
    """Notes on what does nothing; errors of models that stand twice, layers that aren't there."""
    method = reading.method
    for piece in reading.slices:
        if piece.residual_weight is not None:
            yield piece.note("it does nothing, in mergekit neither", "residual_weight")
        reading.errors += _wrong(piece, reading)
    sources = [(piece, source) for piece in reading.slices for source in piece.sources]
    ends = (source.layer_range.stop for _, source in sources)
    deepest = max(sum(piece.length for piece in reading.slices), *ends)
    of_slices = [block for piece in reading.slices for block in (*piece.sources, piece)]
    names = reading.tensor_names
    for block in (*of_slices, *reading.blocks):
        yield from parameters.unread(block, method)
        if names is not None:
            yield from parameters.idle_filters(block, names, deepest)
    for piece, source in sources:
        is_base = source.model == (piece.base_model or reading.config.base_model)
        yield from parameters.idle_in_source(source, method, is_base=is_base)


def _wrong(piece: SliceBlock, reading: Reading) -> Iterator[ConversionError]:
    count = reading.base.layers
    for i, source in enumerate(piece.sources):
        if source.model in [other.model for other in piece.sources[:i]]:
            message = f"'{source.model}' stands twice in one slice, which mergekit refuses"
            yield source.error(message, "model")
        end = source.layer_range.stop
        if source.model == reading.reference and count is not None and end > count:
            message = f"the base has {count} layers, and the range ends at {end}"
            yield source.error(message, "layer_range")
