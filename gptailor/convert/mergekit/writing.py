"""Recipes as the parameters of mergekit's methods: what the table's rows are written by."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from gptailor.convert.note import Unsayable
from gptailor.plan.plan import Merge, MethodCall, Recipe, Take
from gptailor.plan.registry import METHODS
from gptailor.plan.walk import named_models

SaidParameters = tuple[list[dict[str, Any]], dict[str, Any]]
"""A recipe's parameters: a block for each model of a slice, and the slice's."""


def method_call(recipe: Recipe) -> MethodCall:
    """The method of a merge; linear if it names none."""
    by = recipe.by if isinstance(recipe, Merge) else None
    return by if isinstance(by, MethodCall) else MethodCall(name="linear")


def _refuse_unsaid(recipe: Recipe, *said: str) -> None:
    """Raise Unsayable for an argument that no parameter of mergekit's stands for."""
    call = method_call(recipe)
    for name in call.arguments:
        if name not in said:
            raise Unsayable(f"'{name}' of '{call.name}' isn't written for mergekit")


def _models(recipe: Recipe) -> list[str]:
    return [name for _, name, _ in named_models(recipe)]


def _argument(recipe: Recipe, name: str) -> Any:
    """What a recipe's method is given, or its default."""
    call = method_call(recipe)
    parameter = METHODS[call.name].parameter(name)
    given = call.arguments.get(name)
    return parameter.default if given is None and parameter is not None else given


def _numbers(recipe: Recipe, name: str) -> Sequence[int | float]:
    """A variadic parameter's numbers, one for each source."""
    count = len(_models(recipe))
    given = _argument(recipe, name)
    numbers = given if isinstance(given, tuple) else (1 / count if given is None else given,)
    return numbers * count if len(numbers) == 1 else numbers


def _weighted(
    recipe: Recipe,
    models: Sequence[str],
    weights: Sequence[int | float],
    own: Mapping[str, Mapping[str, Any]] = MappingProxyType({}),
) -> list[dict[str, Any]]:
    """A weight, and what else a source has, for each model; weight 0 where the recipe has none."""
    found = dict(zip(_models(recipe), weights, strict=True))
    return [{"weight": float(found[m]), **own.get(m, {})} if m in found else {"weight": 0.0}
            for m in models]  # fmt: skip


def write_nothing(recipe: Recipe, models: Sequence[str]) -> SaidParameters:
    """No parameters, for any number of models."""
    return [{} for _ in models], {}


def write_linear(recipe: Recipe, models: Sequence[str]) -> SaidParameters:
    """A weight for each model, as it is."""
    numbers: Sequence[int | float] = (1.0,)
    _refuse_unsaid(recipe, "weights")
    if isinstance(recipe, Merge):
        numbers = _numbers(recipe, "weights")
        if isinstance(recipe.share, int | float):
            numbers = (1.0 - recipe.share, recipe.share)
    return _weighted(recipe, models, numbers), {"normalize": False}


def write_slerp(recipe: Recipe, models: Sequence[str]) -> SaidParameters:
    """The share of the slice's second model."""
    t = float(_argument(recipe, "t")) if isinstance(recipe, Merge) else 0.0
    t = t if _models(recipe)[0] == models[0] else 1.0 - t
    return [{} for _ in models], {"t": t}


def write_karcher(recipe: Recipe, models: Sequence[str]) -> SaidParameters:
    """Nothing, where all models of the slice are merged."""
    if _models(recipe) != list(models):
        raise Unsayable("mergekit's karcher takes all models of a slice, for each tensor")
    return write_nothing(recipe, models)


def write_model_stock(recipe: Recipe, models: Sequence[str]) -> SaidParameters:
    """Nothing, where all models of the slice are merged, the base first."""
    if isinstance(recipe, Take) or ["base", *_models(recipe)] != list(models):
        raise Unsayable("mergekit's model_stock takes all models of a slice, for each tensor")
    return write_nothing(recipe, models)


def write_task_vectors(recipe: Recipe, models: Sequence[str]) -> SaidParameters:
    """The weights of the models besides the base, whose own is not read."""
    names, others = _models(recipe), models[1:]
    if isinstance(recipe, Take):
        if names != ["base"]:
            raise Unsayable(f"'{names[0]}' taken as it is, among task vectors: mergekit would add "
                            "rounding")  # fmt: skip
        return [{}, *({"weight": 0.0} for _ in others)], {}
    if "base" in names:
        raise Unsayable("the base's own task vector, which is 0, and which mergekit can't name")
    name, shared = method_call(recipe).name, {}
    _refuse_unsaid(recipe, "scales", "scale", "density", "gamma", "weight", "normalize")
    trims = [n for n in ("density", "gamma") if METHODS[name].parameter(n)]
    scale = 1.0 if name == "task_arithmetic" else float(_argument(recipe, "scale"))
    weights: Sequence[int | float] = [scale] * len(names)
    if name == "task_arithmetic":
        weights = _numbers(recipe, "scales")
    elif name == "ties":
        weights = _numbers(recipe, "weight")
        shared = {"normalize": _argument(recipe, "normalize") == "yes", "lambda": scale}
    own = {name: dict[str, Any]() for name in names}
    for trim in trims:
        for source, number in zip(names, _numbers(recipe, trim), strict=True):
            own[source][trim] = float(number)
    return [{}, *_weighted(recipe, others, weights, own)], shared
