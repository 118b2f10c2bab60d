"""Recipes as the parameters of mergekit's methods: what each source and each slice gets."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

from gptailor.convert.note import Unsayable
from gptailor.plan.layers import named_sources
from gptailor.plan.plan import Merge, MethodCall, Recipe, Take
from gptailor.plan.registry import METHODS

_Number = int | float


@dataclass(frozen=True)
class Said:
    """A recipe's parameters: one block for each source, and the slice's."""

    of_sources: list[dict[str, Any]]
    shared: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Words:
    """How a method of mergekit's says a recipe."""

    by_source: tuple[str, ...]
    shared: tuple[str, ...]
    parameters: Callable[[Recipe, Sequence[str]], Said]
    base_first: bool = False
    """Whether the first source is the slice's base_model."""
    pair: bool = False
    with_base: bool = False

    def models(self, recipes: Sequence[Recipe], every: Iterable[str]) -> list[str]:
        """The models of a slice, in the recipes' order; the base first, where it is needed."""
        orders = [[name for name, _ in named_sources(recipe)] for recipe in recipes]
        models = _in_order(orders)
        if self.with_base:
            models = ["base", *(name for name in models if name != "base")]
        if self.pair and len(models) == 1:
            models += [name for name in every if name not in models][:1]
        if self.pair and len(models) > 2:
            raise Unsayable(f"{', '.join(models)}: mergekit's slerp takes two models in a slice")
        return models


def _in_order(orders: Sequence[Sequence[str]]) -> list[str]:
    """All names, in an order that agrees with all orders, if there is one; else with the first."""
    names = list(dict.fromkeys(name for order in sorted(orders, key=len)[::-1] for name in order))
    found: list[str] = []
    while names:
        after = {b for order in orders for a, b in combinations(order, 2) if a in names}
        found.append(next((name for name in names if name not in after), names[0]))
        names.remove(found[-1])
    return found


def calls_of(recipe: Recipe) -> Iterator[str]:
    """The method of a merge."""
    if isinstance(recipe, Merge):
        yield _call(recipe).name


def _call(recipe: Recipe) -> MethodCall:
    by = recipe.by if isinstance(recipe, Merge) else None
    return by if isinstance(by, MethodCall) else MethodCall(name="linear")


def _numbers(recipe: Recipe, name: str) -> tuple[_Number, ...]:
    """A variadic parameter's numbers, one for each source."""
    count = len(list(named_sources(recipe)))
    given: Any = _call(recipe).arguments.get(name)
    default = METHODS[_call(recipe).name].parameter(name)
    if given is None:
        one = default.default if default and default.default is not None else 1 / count
        given = (one,)
    numbers = tuple(given)
    return numbers * count if len(numbers) == 1 else numbers


def _number(recipe: Recipe, name: str) -> _Number:
    given: Any = _call(recipe).arguments.get(name)
    parameter = METHODS[_call(recipe).name].parameter(name)
    if given is None and parameter is not None:
        given = parameter.default
    return float(given)


def _weighted(
    recipe: Recipe, models: Sequence[str], numbers: Sequence[_Number]
) -> list[dict[str, Any]]:
    """A weight for each model, 0 for those that the recipe hasn't."""
    names = [name for name, _ in named_sources(recipe)]
    weights = dict(zip(names, numbers, strict=True))
    return [{"weight": float(weights.get(model, 0.0))} for model in models]


# ------------------------------------------------------------------------------------- the methods


def _passthrough(recipe: Recipe, models: Sequence[str]) -> Said:
    return Said([{} for _ in models])


def _linear(recipe: Recipe, models: Sequence[str]) -> Said:
    numbers: tuple[_Number, ...] = (1.0,)
    if isinstance(recipe, Merge):
        numbers = _numbers(recipe, "weights")
        if isinstance(recipe.share, int | float):
            numbers = (1.0 - recipe.share, recipe.share)
    return Said(_weighted(recipe, models, numbers), {"normalize": False})


def _slerp(recipe: Recipe, models: Sequence[str]) -> Said:
    first = next(named_sources(recipe))[0]
    t = _number(recipe, "t") if isinstance(recipe, Merge) else 0.0
    return Said([{} for _ in models], {"t": t if first == models[0] else 1.0 - t})


def _karcher(recipe: Recipe, models: Sequence[str]) -> Said:
    if [name for name, _ in named_sources(recipe)] != list(models):
        raise Unsayable("mergekit's karcher takes all models of a slice, for each tensor")
    return Said([{} for _ in models])


def _model_stock(recipe: Recipe, models: Sequence[str]) -> Said:
    names = [name for name, _ in named_sources(recipe)]
    if isinstance(recipe, Take) or ["base", *names] != list(models):
        raise Unsayable("mergekit's model_stock takes all models of a slice, for each tensor")
    return Said([{} for _ in models])


def _task_arithmetic(recipe: Recipe, models: Sequence[str]) -> Said:
    return Said(_vectors(recipe, models, "scales"))


def _vectors(recipe: Recipe, models: Sequence[str], name: str) -> list[dict[str, Any]]:
    """Task vectors' weights; the base's own is none."""
    names = [model for model, _ in named_sources(recipe)]
    if isinstance(recipe, Merge) and "base" in names:
        raise Unsayable("the base's own task vector, which is 0, and which mergekit can't name")
    if isinstance(recipe, Take):
        _own(names[0])
        return [{}] + [{"weight": 0.0} for _ in models[1:]]
    numbers = _numbers(recipe, name)
    return [{}, *_weighted(recipe, models, numbers)[1:]]


def _own(model: str) -> None:
    if model != "base":
        message = f"'{model}' taken as it is, among task vectors: mergekit would add rounding"
        raise Unsayable(message)


def _trimmed(
    recipe: Recipe, models: Sequence[str], weight: _Number, others: dict[str, _Number]
) -> list[dict[str, Any]]:
    """A weight, and what else a source has, for those that the recipe has."""
    names = [model for model, _ in named_sources(recipe)]
    if isinstance(recipe, Take):
        _own(names[0])
        names = []
    elif "base" in names:
        raise Unsayable("the base's own task vector, which is 0, and which mergekit can't name")
    found: list[dict[str, Any]] = [{}]
    for model in models[1:]:
        found.append({"weight": weight, **others} if model in names else {"weight": 0.0})
    return found


def _ties(recipe: Recipe, models: Sequence[str]) -> Said:
    if isinstance(recipe, Take):
        return Said(_trimmed(recipe, models, 1.0, {}))
    density = {"density": _number(recipe, "density")}
    shared = {"normalize": True, "lambda": _number(recipe, "scale")}
    return Said(_trimmed(recipe, models, 1.0, density), shared)


def _breadcrumbs(recipe: Recipe, models: Sequence[str]) -> Said:
    if isinstance(recipe, Take):
        return Said(_trimmed(recipe, models, 0.0, {}))
    others = {name: _number(recipe, name) for name in ("density", "gamma")}
    return Said(_trimmed(recipe, models, _number(recipe, "scale"), others))


WRITERS: dict[str, Words] = {
    "passthrough": Words((), (), _passthrough),
    "linear": Words(("weight",), ("normalize",), _linear),
    "slerp": Words((), ("t",), _slerp, base_first=True, pair=True),
    "karcher": Words((), (), _karcher),
    "model_stock": Words((), (), _model_stock, with_base=True),
    "task_arithmetic": Words(("weight",), (), _task_arithmetic, with_base=True),
    "ties": Words(("weight", "density"), ("normalize", "lambda"), _ties, with_base=True),
    "breadcrumbs": Words(("weight", "density", "gamma"), (), _breadcrumbs, with_base=True),
}
"""The methods that mergekit says alike; its `dare` draws otherwise."""
