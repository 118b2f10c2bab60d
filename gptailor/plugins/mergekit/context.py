"""The state of a document while it becomes a plan: `ImportContext`, and its parameters' values."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import final

from gptailor.lang.importers import ConversionError, Note
from gptailor.plan.faults import Place, listed, nearest
from gptailor.plan.written_out import curve_at
from gptailor.plugins.mergekit.base import HOW_TO_NAME_THE_BASE, Base, TensorNames
from gptailor.plugins.mergekit.config import (
    Document,
    MergekitConfig,
    ModelReference,
    ParameterBlock,
    SliceBlock,
    SourceBlock,
)
from gptailor.plugins.mergekit.methods import (
    MERGEKIT_METHODS,
    Gradient,
    MergekitMethod,
    NeedsLayerValues,
    ParameterValue,
)


@final
@dataclass
class ImportContext:
    """A document while it becomes a plan: its facts, and its notes and errors so far."""

    config: MergekitConfig
    method: MergekitMethod
    base: Base
    slices: Sequence[SliceBlock]
    """The output's layers."""
    names: Mapping[ModelReference, str] = field(default_factory=dict)
    """The models' names in the plan."""
    stages: frozenset[str] = frozenset()
    """The names of the models that other documents of the file make."""
    notes: list[Note] = field(default_factory=list)
    errors: list[ConversionError] = field(default_factory=list)
    merges: bool = False
    """True if a tensor is merged, and not all are taken from one model."""

    @classmethod
    def of(cls, config: MergekitConfig, base: Base) -> "ImportContext":
        """Return the context of a configuration, without its models' names.

        `models` become a slice of all layers, or of one layer if their number is unknown. Raises
        ConversionError for an unknown method or a wrong number of layers.
        """
        name, errors = config.merge_method, []
        if (method := MERGEKIT_METHODS.get(name)) is None:
            help_ = nearest(name, MERGEKIT_METHODS) or f"the methods are {listed(MERGEKIT_METHODS)}"
            message = f"there is no merge_method '{name}'"
            errors.append(config.error(message, "merge_method", help=help_))
        if base.given_layers not in (None, base.layers):
            message = f"expected {base.layers} layers of the base, got {base.given_layers}"
            errors.append(config.error(message))
        if errors or method is None:
            raise ConversionError.of_all(errors)
        whole = config.slice_of_models(base.layers or 1)
        return cls(config, method, base, config.slices or [whole])

    def base_model_of(self, piece: SliceBlock) -> ModelReference | None:
        """Return the base_model of a slice: its own, or the file's."""
        return piece.base_model or self.config.base_model

    def blocks(self, pieces: Sequence[SliceBlock]) -> list[ParameterBlock]:
        """Return the blocks with parameters for these slices."""
        inner = [block for piece in pieces for block in (*piece.sources, piece)]
        return [*inner, self.config]

    def filter_error(self, piece: SliceBlock, message: str) -> ConversionError:
        """Return an error of a slice's filters, at the first block that has one."""
        filtered = (
            block.error(message, "parameters", name)
            for block in self.blocks([piece])
            for name in block.parameters
            if name in self.method.parameters and block.filters(name)
        )
        return next(filtered, piece.error(message))

    @property
    def covers_base(self) -> bool:
        """True if a single slice has all layers of all its sources, whatever their number."""
        if self.config.models:
            return True
        ranges = {source.layer_range for source in self.slices[0].sources}
        return len(self.slices) == 1 and ranges == {range(self.base.layers or 0)}

    @cached_property
    def trims_some(self) -> bool:
        """True if a density isn't 1."""
        return any(
            value != 1
            for block in self.blocks(self.slices)
            for setting in block.parameters.get("density", ())
            for value, _ in setting.values
        )

    def require_depth(self) -> None:
        """Raise ConversionError for `models` of an unknown number of layers."""
        if not self.config.slices and self.base.layers is None:
            raise self.config.error(
                "'models' has all layers of its models, but their number is unknown "
                f"({self.base.why_unknown})",
                "models",
                help=HOW_TO_NAME_THE_BASE,
            )

    @cached_property
    def tensor_names(self) -> TensorNames | None:
        """mergekit's names of the base's tensors, if filters need them."""
        filtered = [
            (block, name)
            for block in self.blocks(self.slices)
            for name in block.parameters
            if block.filters(name)
        ]
        if not filtered:
            return None
        facts = self.base.facts
        if facts is not None and facts.names is not None:
            return facts.names
        unknown = f"the configuration of '{self.base.reference}' is unknown "
        unknown += f"({self.base.why_unknown})"
        if facts is not None:
            unknown = f"model type '{facts.model_type}' has none without its weights"
        block, name = filtered[0]
        message = f"filters need the names of tensors, but {unknown}"
        raise block.error(message, "parameters", name, help=HOW_TO_NAME_THE_BASE)

    def check(self) -> None:
        """Note parameters and filters without effect, and keep errors of models and layers."""
        if self.tensor_names is not None:
            self.require_depth()
        self.notes += [
            piece.note("it has no effect, also in mergekit", "residual_weight")
            for piece in self.slices
            if piece.residual_weight is not None
        ]
        self.errors += [
            source.error(f"mergekit refuses '{source.model}' twice in one slice", "model")
            for piece in self.slices
            for i, source in enumerate(piece.sources)
            if source.model in [other.model for other in piece.sources[:i]]
        ]
        sources = [(piece, source) for piece in self.slices for source in piece.sources]
        for _, source in sources if self.config.slices else ():
            self._check_range(source)
        ends = (source.layer_range.stop for _, source in sources)
        deepest = max(sum(piece.length for piece in self.slices), *ends)
        for block in self.blocks(self.slices):
            self.notes += _unread_parameters(block, self.method)
            if self.tensor_names is not None:
                self.notes += _idle_filters(block, self.tensor_names, deepest)
        for piece, source in sources:
            is_base = source.model == self.base_model_of(piece)
            self.notes += _idle_parameters(source, self.method, is_base=is_base)

    def _check_range(self, source: SourceBlock) -> None:
        """Keep an error of a range beyond its model's layers, or a note if it may be beyond them.

        A model without its configuration here mostly has as many layers as the base.
        """
        model, base, end = source.model.without_adapter, self.base, source.layer_range.stop
        count = self._layer_counts[model]
        if count is not None and end > count:
            owner = "the base" if model == base.reference.without_adapter else f"'{model}'"
            self.errors.append(
                source.error(
                    f"{owner} has {count} layers, but the range ends at {end}", "layer_range"
                )
            )
        elif count is None and base.layers is not None and end > base.layers:
            self.notes.append(
                source.note(
                    f"the base has {base.layers} layers, the range ends at {end}, and it isn't "
                    f"known how many '{model}' has: give a folder that has its config.json, by "
                    f"--model {self.names[model]}=FOLDER (in Python, models)",
                    "layer_range",
                    ignored=True,
                )
            )

    @cached_property
    def _layer_counts(self) -> Mapping[ModelReference, int | None]:
        """The layers of each model without its adapter, as far as they are known here.

        A model that other documents make has as many as the base.
        """
        base = self.base.reference.without_adapter
        return {
            model: self.base.layers
            if model == base or name in self.stages
            else self.base.folders.layer_count(model, name)
            for model, name in self.names.items()
            if model.lora is None
        }


# ------------------------------------------------------------------------------------ parameters

_OLD_PARAMETERS = ("embed_slerp", "similarity_threshold")
"""Parameters of older versions."""

_TRUE: tuple[object, ...] = (True, "true", "t", "yes", "y", "on", "1")
_FALSE: tuple[object, ...] = (False, "false", "f", "no", "n", "off", "0")
"""Flags as mergekit reads them; its own files have 1.0 and 0.0, which are equal to these."""


def parameter_value(
    name: str,
    tensor: str,
    t: float | None,
    blocks: Sequence[ParameterBlock],
    method: MergekitMethod,
) -> ParameterValue:
    """Return a tensor's parameter: from the first block that has one for it, or the default.

    `t` is the tensor's place in its slice: 0 at the first layer, 1 at the last. Without it
    numbers that change along the slice come back as a gradient.
    """
    default = method.parameters[name]
    for block in blocks:
        for setting in block.parameters.get(name, ()):
            if setting.filter in tensor:
                check = partial(_checked, block.document, name, isinstance(default, bool))
                return _interpolated([check(value, at) for value, at in setting.values], t)
    return default


def _interpolated(values: Sequence[float | bool], t: float | None) -> ParameterValue:
    """Return a list's value at `t`, or the gradient without it; flags are steps."""
    if len(set(values)) == 1:
        return values[0]
    if any(isinstance(value, bool) for value in values):
        if t is None:
            raise NeedsLayerValues
        return values[int(t * (len(values) - 1))]
    return Gradient(tuple(values)) if t is None else curve_at(values, t, 0, 1)


def _checked(
    document: Document, name: str, is_flag: bool, value: object, at: Place
) -> float | bool:
    """Return a flag or a finite number; YAML 1.1 reads `1e-3` as a text."""
    if is_flag:
        word = value.lower() if isinstance(value, str) else value
        if word in _TRUE or word in _FALSE:
            return word in _TRUE
        raise document.error(at, f"expected true or false for '{name}', got {value!r}")
    try:
        number = math.nan if isinstance(value, bool) else float(value)  # type: ignore[arg-type]
    except (ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise document.error(at, f"expected a number for '{name}', got {value!r}")
    return number


def _unread_parameters(block: ParameterBlock, method: MergekitMethod) -> Iterator[Note]:
    """Yield a note for each parameter of a block that its method ignores."""
    known = {name for each in MERGEKIT_METHODS.values() for name in each.parameters}
    for name in block.parameters:
        if name in method.parameters:
            continue
        message = f"'{method.name}' has no '{name}'; it has no effect, also in mergekit"
        if name not in known and name not in _OLD_PARAMETERS:
            message = f"mergekit ignores the unknown parameter '{name}'"
            message += _in_brackets(nearest(name, method.parameters))
        yield block.note(message, "parameters", name, ignored=True)
    masks = block.parameters.get("int8_mask", ()) if "int8_mask" in method.shared else ()
    if any(value for setting in masks for value, _ in setting.values):
        yield block.note("it only saves mergekit memory", "parameters", "int8_mask")


def _idle_filters(block: ParameterBlock, names: TensorNames, layers: int) -> Iterator[Note]:
    """Yield a note for each filter of a block that decides no tensor of a model's `layers`.

    The first filter that matches a tensor decides.
    """
    for name in (name for name in block.parameters if block.filters(name)):
        every = undecided = names.names(layers)
        for word in (setting.filter for setting in block.parameters[name]):
            message = ""
            if not any(word in tensor for tensor in every):
                message = (
                    f"no tensor has '{word}' in mergekit's name for it, so that it does nothing"
                    f"{_in_brackets(names.nearest(word, layers))}"
                )
            elif word and not any(word in tensor for tensor in undecided):
                message = f"values before '{word}' have all of its tensors, so that it does nothing"
            if message:
                yield block.note(message, "parameters", name, ignored=True)
            undecided = [tensor for tensor in undecided if word not in tensor]


def _idle_parameters(
    source: ParameterBlock, method: MergekitMethod, *, is_base: bool
) -> Iterator[Note]:
    """Yield a note for each parameter of a source that has no effect there."""
    for name in source.parameters:
        if name in method.shared:
            yield source.note(
                f"'{name}' of one source has no effect, also in mergekit", "parameters", name
            )
        elif is_base and "lambda" in method.shared and name in ("weight", "density"):
            yield source.note(f"the base's own '{name}' has no effect", "parameters", name)


def _in_brackets(text: str) -> str:
    return f" ({text})" if text else ""
