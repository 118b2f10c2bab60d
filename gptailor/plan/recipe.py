"""Recipes of a layer: taken from a model, merged of several, of any subset of some."""

from typing import final

from pydantic import Field, model_validator

from gptailor.plan.numbers import Closed, Position, Several, Value
from gptailor.plan.registry import METHODS


@final
class OneOfModels(Closed):
    """A choice: one of these models. `one of base, math`."""

    one_of: Several[str]


@final
class LayerOf(Closed):
    """A layer of a model, by that model's layer number; without one, the tensor of that place."""

    model: str | OneOfModels
    layer: Position | None = None


@final
class MethodCall(Closed):
    """A merge method with its arguments by name: numbers, a tuple of them, or words."""

    name: str
    arguments: dict[str, Value | Several[Value] | str] = Field(default={})

    @model_validator(mode="after")
    def _hold_tuples(self) -> "MethodCall":
        """Make a variadic parameter's numbers a tuple, and old names today's."""
        method = METHODS.get(self.name)
        if method is None:
            return self
        for name in [*self.arguments]:
            if (now := method.called(name)) not in self.arguments:
                self.arguments[now] = self.arguments.pop(name)
        if (variadic := method.variadic) is not None:
            value = self.arguments.get(variadic.name)
            if value is not None and not isinstance(value, tuple | str):
                self.arguments[variadic.name] = (value,)
        return self


@final
class OneOfMethods(Closed):
    """A choice: one of these methods, each with its own choices."""

    one_of: Several[MethodCall]


By = MethodCall | OneOfMethods


@final
class Take(Closed):
    """A layer, unchanged, of its model."""

    take: LayerOf


@final
class Merge(Closed):
    """Layers of several models merged: by a method, or by the second one's share."""

    merge: Several[LayerOf]
    share: Value | None = None
    by: By | None = None


@final
class Subset(Closed):
    """A choice: any subset of the models. None is the base's own, more than one are merged."""

    any_of: Several[str]
    layer: Position | None = None
    by: By | None = None


Recipe = Take | Merge | Subset
