"""A mergekit configuration while it becomes a plan: what is known of it, and the notes so far."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from gptailor.convert.mergekit.config import (
    MergekitConfig,
    ModelReference,
    Scope,
    Slice,
    SliceSource,
)
from gptailor.convert.mergekit.methods import MERGEKIT_METHODS, NO_EQUIVALENT, MergekitMethod
from gptailor.convert.mergekit.parameters import filters_of
from gptailor.convert.mergekit.tensors import TensorNames
from gptailor.convert.note import Note
from gptailor.convert.yaml import Document
from gptailor.plan.faults import Place, listed, nearest
from gptailor.plan.plan import Merge, Recipe


@dataclass
class Reading:
    """A configuration, its models' names in the plan, its base and the base's tensors."""

    config: MergekitConfig
    base: ModelReference
    names: Mapping[ModelReference, str]
    tensors: TensorNames
    notes: list[Note] = field(default_factory=list)
    merges: bool = False
    """Whether a merge was met, and not takes alone."""

    @property
    def document(self) -> Document:
        """The file."""
        return self.config.document

    @property
    def method(self) -> MergekitMethod:
        """The one method of the file."""
        return MERGEKIT_METHODS[self.config.method]

    def note(self, at: Place, message: str) -> None:
        """Remember what differs at a place."""
        self.notes.append(self.document.note(at, message))

    def met(self, recipe: Recipe) -> Recipe:
        """The recipe, noticed."""
        self.merges = self.merges or isinstance(recipe, Merge)
        return recipe

    def is_base(self, piece: Slice, source: SliceSource) -> bool:
        """Whether a source is the base of its slice."""
        return source.model == (piece.base or self.config.base)

    def scopes(self) -> Iterator[Scope]:
        """All blocks of parameters, each once."""
        for piece in self.config.slices:
            yield from (source.scope for source in piece.sources)
            if piece.scope.at != self.config.scopes[0].at:
                yield piece.scope
        yield from self.config.scopes

    def filtered(self, piece: Slice) -> Place:
        """Where the filters of a slice are."""
        for scope in (*(s.scope for s in piece.sources), piece.scope, *self.config.scopes):
            for name, setting in scope.values.items():
                if name in self.method.parameters and filters_of(setting):
                    return (*scope.at, name)
        return piece.at


def method_is_known(config: MergekitConfig) -> None:
    """Refuse a method that has no equivalent."""
    name = config.method
    if name in MERGEKIT_METHODS:
        return
    message = f"there is no merge_method '{name}'"
    help_ = nearest(name, (*MERGEKIT_METHODS, *NO_EQUIVALENT))
    if name in NO_EQUIVALENT:
        message = f"'{name}' has no equivalent"
        help_ = f"those that have one are {listed(MERGEKIT_METHODS)}"
    raise config.document.error(("merge_method",), message, help_)
