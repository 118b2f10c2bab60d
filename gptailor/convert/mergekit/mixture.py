"""What mergekit makes a tensor of: sources with their parameters, a method with its own."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from gptailor.convert.mergekit.parameters import ParameterValue
from gptailor.convert.note import Unsayable
from gptailor.plan.plan import LayerOf, Merge, MethodCall


@dataclass(frozen=True)
class Ingredient:
    """A source's tensor, with what its parameters are there."""

    layer: LayerOf
    is_base: bool
    given: Mapping[str, ParameterValue]

    def number(self, name: str) -> float:
        """A parameter that must be there."""
        value = self.given[name]
        if value is None:
            raise Unsayable(f"'{self.layer.model}' has no '{name}', which mergekit demands")
        return float(value)


@dataclass(frozen=True)
class Mixture:
    """What mergekit makes a tensor of."""

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


def merged(
    sources: Sequence[Ingredient], name: str, **arguments: float | tuple[float, ...]
) -> Merge:
    """The merge of the sources by a method of ours."""
    layers = tuple(source.layer for source in sources)
    return Merge(merge=layers, by=MethodCall(name=name, arguments=dict(arguments)))


def at_the_base(mixture: Mixture, sources: Sequence[Ingredient]) -> Sequence[Ingredient]:
    """The sources, if they name the base's own layer number."""
    layer = mixture.base.layer.layer
    for source in sources:
        if source.layer.layer != layer:
            there = f"L{source.layer.layer} {source.layer.model}"
            raise Unsayable(f"'{mixture.method}' takes {there} against L{layer} of the base; "
                            "a plan takes task vectors layer by layer")  # fmt: skip
    return sources
