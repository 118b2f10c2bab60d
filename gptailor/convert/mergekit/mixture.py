"""What mergekit makes a tensor of, and what a merge method of its is: a row of the table."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, final

from gptailor.convert.note import Unsayable
from gptailor.plan.plan import LayerOf, Merge, MethodCall, Recipe
from gptailor.plan.registry import METHODS

ParameterValue = float | bool | None


@final
@dataclass(frozen=True)
class Ingredient:
    """A source's tensor, with what its parameters are there."""

    layer: LayerOf
    is_base: bool
    given: Mapping[str, ParameterValue]

    def number(self, name: str) -> float:
        """A parameter that must be there; a density of 1 keeps all."""
        value = self.given[name]
        if value is None:
            raise Unsayable(f"'{self.layer.model}' has no '{name}', which mergekit demands")
        return min(float(value), 1.0) if name == "density" else float(value)


@final
@dataclass(frozen=True)
class Mixture:
    """What mergekit makes a tensor of: sources with their parameters, a method with its own."""

    method: str
    sources: Sequence[Ingredient]
    shared: Mapping[str, ParameterValue]

    @property
    def base(self) -> Ingredient:
        """The base's tensor."""
        found = next((source for source in self.sources if source.is_base), None)
        if found is None:
            raise Unsayable(f"'{self.method}' needs its base_model among the sources")
        return found

    @property
    def others(self) -> list[Ingredient]:
        """The sources besides the base."""
        return [source for source in self.sources if not source.is_base]

    def number(self, name: str) -> float:
        """A shared parameter that must be there."""
        value = self.shared[name]
        if value is None:
            raise Unsayable(f"'{self.method}' has no '{name}', which mergekit demands")
        return float(value)

    def flag(self, name: str, default: bool) -> bool:
        """A shared flag, or the method's default."""
        value = self.shared[name]
        return default if value is None else bool(value)

    def number_or(self, name: str, default: float) -> float:
        """A shared number, or the method's default."""
        value = self.shared[name]
        return default if value is None else float(value)

    def merge(self, sources: Sequence[Ingredient], name: str, **arguments: Any) -> Merge:
        """Sources merged; task vectors are taken against the base's layer of the same number."""
        needs_base = METHODS[name].takes_base(arguments)
        layer = self.base.layer.layer if needs_base else None
        for source in sources if needs_base else ():
            if source.layer.layer != layer:
                there = f"L{source.layer.layer} {source.layer.model}"
                raise Unsayable(f"'{self.method}' takes {there} against L{layer} of the base; "
                                "a plan takes task vectors layer by layer")  # fmt: skip
        layers = tuple(source.layer for source in sources)
        return Merge(merge=layers, by=MethodCall(name=name, arguments=arguments))


SaidParameters = tuple[list[dict[str, Any]], dict[str, Any]]
"""A recipe's parameters: a block for each model of a slice, and the slice's."""


@final
@dataclass(frozen=True)
class MergekitMethod:
    """A method of mergekit."""

    name: str
    by_source: tuple[str, ...]
    """The parameters that each source has for itself."""
    shared: tuple[str, ...]
    """The parameters that a slice has."""
    read: Callable[[Mixture], Recipe]
    """The recipe that gives the same tensor; Unsayable if none does."""
    write: Callable[[Recipe, Sequence[str]], SaidParameters] | None = None
    """The parameters that a recipe is in a slice of these models; None where tensors differ."""
    base: Literal["none", "first", "beside", "optional"] = "none"
    """The base_model: not read, the first of a slice's two sources, or one beside the sources, that
    has to be there or may be.
    """
    differs: str = ""
    """What is different in each merge by it."""

    @property
    def base_beside(self) -> bool:
        """Whether the base stands beside the sources of what is written."""
        return self.base in ("beside", "optional")

    @property
    def parameters(self) -> tuple[str, ...]:
        """All parameters that it reads."""
        return self.by_source + self.shared
