"""The state of a document while it becomes a plan: `ImportContext`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import final

from gptailor.convert.mergekit.base import HOW_TO_NAME_THE_BASE, Base, TensorNames
from gptailor.convert.mergekit.config import (
    MergekitConfig,
    ModelReference,
    ParameterBlock,
    SliceBlock,
    SourceBlock,
)
from gptailor.convert.mergekit.methods import MERGEKIT_METHODS, MergekitMethod
from gptailor.convert.mergekit.parameters import (
    filters_of,
    idle_filters,
    idle_parameters,
    unread_parameters,
)
from gptailor.convert.note import ConversionError, Note
from gptailor.plan.faults import listed, nearest


@final
@dataclass
class ImportContext:
    """A document while it becomes a plan: its facts, and its notes and errors so far."""

    config: MergekitConfig
    method: MergekitMethod
    base: Base
    slices: list[SliceBlock]
    """The output's layers."""
    names: Mapping[ModelReference, str] = field(default_factory=dict)
    """The models' names in the plan."""
    stages: frozenset[str] = frozenset()
    """The names of the models that other documents of the file make."""
    notes: list[Note] = field(default_factory=list)
    errors: list[ConversionError] = field(default_factory=list)
    merges: bool = False
    """True if a tensor is merged, and not all are taken from one model."""
    counted: bool = False
    """True if the slices have as many layers as the output."""

    @classmethod
    def of(cls, config: MergekitConfig, base: Base) -> "ImportContext":
        """Return the context of a configuration, without its models' names.

        `models` become a slice of all layers, or of one layer if their number isn't given. Raises
        ConversionError for an unknown method or a wrong number of layers.
        """
        errors = []
        if (method := MERGEKIT_METHODS.get(config.merge_method)) is None:
            name = config.merge_method
            help_ = nearest(name, MERGEKIT_METHODS) or f"they are {listed(MERGEKIT_METHODS)}"
            errors.append(
                config.error(f"there is no merge_method '{name}'", "merge_method", help=help_)
            )
        if base.contradiction:
            errors.append(config.error(base.contradiction))
        if errors or method is None:
            raise ConversionError.of_all(errors)
        body = config.body
        if body.models is None:
            return cls(config, method, base, body.slices or [])
        whole = body.slice_of_models(base.given_layers or 1, config.base_model)
        return cls(config, method, base, [whole])

    @property
    def shared_blocks(self) -> list[ParameterBlock]:
        """The blocks whose parameters apply to all slices, the nearest first."""
        body = self.config.body
        return [self.config] if body is self.config else [body, self.config]

    def base_model_of(self, piece: SliceBlock) -> ModelReference | None:
        """Return the base_model of a slice: its own, or the file's."""
        return piece.base_model or self.config.base_model

    def blocks(self, pieces: Sequence[SliceBlock]) -> list[ParameterBlock]:
        """Return the blocks with parameters for these slices."""
        inner = [block for piece in pieces for block in (*piece.sources, piece)]
        return [*inner, *self.shared_blocks]

    def filter_error(self, piece: SliceBlock, message: str) -> ConversionError:
        """Return an error of a slice's filters, at the first block that has one."""
        for block in self.blocks([piece]):
            for name in block.parameters:
                if name in self.method.parameters and filters_of(block, name):
                    return block.error(message, "parameters", name)
        return piece.error(message)

    @property
    def covers_base(self) -> bool:
        """True if a single slice has all layers of all its sources, whatever their number."""
        if self.config.body.models is not None:
            return True
        ranges = {source.layer_range for source in self.slices[0].sources}
        return len(self.slices) == 1 and ranges == {range(self.base.layers or 0)}

    def count_layers(self) -> None:
        """Replace `models` by a slice of all layers, whose number must be known."""
        self.counted = True
        body = self.config.body
        if body.models is None:
            return
        if self.base.layers is None:
            raise body.error(
                "'models' takes all layers of its models, and their number isn't known "
                f"({self.base.why_unknown})",
                "models",
                help=HOW_TO_NAME_THE_BASE,
            )
        self.slices = [body.slice_of_models(self.base.layers, self.config.base_model)]

    @cached_property
    def tensor_names(self) -> TensorNames | None:
        """mergekit's names of the base's tensors, if filters need them."""
        filtered = [
            (block, name)
            for block in self.blocks(self.slices)
            for name in block.parameters
            if filters_of(block, name)
        ]
        if not filtered:
            return None
        facts = self.base.facts
        if facts is not None and facts.names is not None:
            return facts.names
        if facts is None:
            reason = f"of '{self.base.reference}' its configuration isn't known "
            reason += f"({self.base.why_unknown})"
        else:
            reason = f"of model type '{facts.model_type}' a configuration alone doesn't tell them"
        message = f"filters are on the names of tensors, and {reason}"
        block, name = filtered[0]
        raise block.error(message, "parameters", name, help=HOW_TO_NAME_THE_BASE)

    def check(self) -> None:
        """Note parameters and filters without effect, and keep errors of models and layers."""
        if self.config.body.models is None or self.tensor_names is not None:
            self.count_layers()
        is_range = self.config.body.models is None
        for piece in self.slices:
            if piece.residual_weight is not None:
                self.notes.append(
                    piece.note("it does nothing, in mergekit neither", "residual_weight")
                )
            for i, source in enumerate(piece.sources):
                if source.model in [other.model for other in piece.sources[:i]]:
                    self.errors.append(
                        source.error(
                            f"'{source.model}' stands twice in one slice, which mergekit refuses",
                            "model",
                        )
                    )
                if is_range:
                    self._check_range(source)
        sources = [(piece, source) for piece in self.slices for source in piece.sources]
        ends = (source.layer_range.stop for _, source in sources)
        deepest = max(sum(piece.length for piece in self.slices), *ends)
        for block in self.blocks(self.slices):
            self.notes += unread_parameters(block, self.method)
            if self.tensor_names is not None:
                self.notes += idle_filters(block, self.tensor_names, deepest)
        for piece, source in sources:
            is_base = source.model == self.base_model_of(piece)
            self.notes += idle_parameters(source, self.method, is_base=is_base)

    def _check_range(self, source: SourceBlock) -> None:
        """Keep an error of a range beyond its model's layers, or a note if it may be beyond them.

        A model whose configuration isn't here mostly has as many layers as the base.
        """
        model, base, end = source.model.without_adapter, self.base, source.layer_range.stop
        count = self._layer_counts[model]
        if count is not None and end > count:
            owner = "the base" if model == base.reference.without_adapter else f"'{model}'"
            self.errors.append(
                source.error(
                    f"{owner} has {count} layers, and the range ends at {end}", "layer_range"
                )
            )
        elif count is None and base.layers is not None and end > base.layers:
            self.notes.append(
                source.note(
                    f"the base has {base.layers} layers, the range ends at {end}, and it isn't "
                    f"known how many '{model}' has: give a folder that has its config.json, by "
                    f"--model {self.names[model]}=FOLDER",
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
