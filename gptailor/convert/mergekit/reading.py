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
    ModelPath,
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

_WINDOWS = "a path of Windows, which is not here: --model NAME=PATH says where it is"
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
    stages: frozenset[str] = frozenset()
    """Those of the names that are made by other documents of the file."""
    notes: list[Note] = field(default_factory=list)
    errors: list[ConversionError] = field(default_factory=list)
    merges: bool = False
    """Whether a merge was met, and not takes alone."""
    counted: bool = False
    """Whether the slices have as many layers as the output."""

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
    def covers_base(self) -> bool:
        """Whether the one slice is of all layers of all its sources, however many these are."""
        if self.config.body.models is not None:
            return True
        ranges = {source.layer_range for source in self.slices[0].sources}
        return len(self.slices) == 1 and ranges == {range(self.base.layers or 0)}

    def count_layers(self) -> None:
        """Have `models` be a slice of all layers by their number, which has to be known."""
        self.counted = True
        if self.config.body.models is None:
            return
        if self.base.layers is None:
            message = "'models' takes all layers of its models, and their number isn't known"
            body = self.config.body
            raise body.error(f"{message} ({self.base.why})", "models", help=HOW_TO_SAY)
        self.slices = [self.config.body.whole(self.base.layers, self.config.base_model)]

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
    config: MergekitConfig, base: Base, reference: ModelReference, places: Whereabouts
) -> Reading:
    """What a configuration is about, but for the names of its models. A ConversionError with all
    that keeps it from being a plan before its tensors are looked at."""
    errors: list[ConversionError] = []
    method = _method(config, errors)
    if base.said is not None and base.contradicted:
        errors.append(config.error(base.contradicted))
    if errors or method is None:
        raise ConversionError.of_all(errors)
    return Reading(config, method, reference, base, places, {}, {}, _slices(config, base))


def check_over(reading: Reading) -> None:
    """Note what does nothing, and keep errors of models and layers, once models have names."""
    if reading.config.body.models is None or reading.tensor_names is not None:
        reading.count_layers()
    reading.notes += _checked(reading)


def sources_of(config: MergekitConfig) -> list[ModelReference]:
    """The models that a configuration merges, its base first where it has one."""
    body = config.body
    slices = body.slices or []
    bases = [config.base_model, *(piece.base_model for piece in slices)]
    models = [block.model for block in body.models or ()]
    models += [source.model for piece in slices for source in piece.sources]
    return [model for model in (*bases, *models) if model is not None]


def _method(config: MergekitConfig, errors: list[ConversionError]) -> MergekitMethod | None:
    name = config.merge_method
    if name in MERGEKIT_METHODS:
        return MERGEKIT_METHODS[name]
    message = f"there is no merge_method '{name}'"
    help_ = nearest(name, MERGEKIT_METHODS) or f"they are {listed(MERGEKIT_METHODS)}"
    errors.append(config.error(message, "merge_method", help=help_))
    return None


def _slices(config: MergekitConfig, base: Base) -> list[SliceBlock]:
    """The slices; `models` are one of all layers, or of one if their number is neither known nor
    looked up."""
    body = config.body
    if body.models is None:
        return body.slices or []
    return [body.whole(base.said or 1, config.base_model)]


def name_models(
    references: Iterable[ModelReference],
    places: Whereabouts,
    folder: Path | None,
    notes: list[Note],
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
        model = _model(here, places, folder)
        if is_windows(here.path) and model.source.startswith("./"):
            notes.append(Note(here.path, _WINDOWS))
        if snapshot_of(here.path) and not model.source.startswith((".", "/", "~")):
            notes.append(Note(here.path, _SNAPSHOT))
        on = names[reference.bare] if reference.lora else None
        models[name] = model.model_copy(update={"on": on})
    return names, models


def _model(here: ModelPath, places: Whereabouts, folder: Path | None) -> p.Model:
    """A model as a plan names it: a folder, or a model of the Hub at a revision."""
    source, root = here.path, places.root
    on_disk = root is not None and not is_windows(source) and (root / source).is_dir()
    if not on_disk and (cached := snapshot_of(source)) is not None:
        return p.Model(source=cached[1], revision=cached[0])
    if not on_disk and not source.startswith((".", "/", "~")) and MODEL_ID.fullmatch(source):
        return p.Model(source=source, revision=here.revision)
    if is_windows(source):
        source = source.replace("\\", "/")
    elif root is not None and folder is not None and not source.startswith(("/", "~")):
        source = os.path.relpath(root / source, folder)
    return p.Model(source=source if source.startswith((".", "/", "~")) else f"./{source}")


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
