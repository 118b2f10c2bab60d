"""Recipes as parameters of mergekit's merge methods."""

from collections.abc import Sequence
from typing import Any

from gptailor.convert.mergekit.mixture import SaidParameters
from gptailor.convert.mergekit.recipes import EVEN
from gptailor.convert.note import Unsayable
from gptailor.plan.plan import Merge, MethodCall, Recipe, Take
from gptailor.plan.registry import METHODS
from gptailor.plan.walk import named_models


def method_call(recipe: Recipe) -> MethodCall:
    """The method of a merge; linear if it names none."""
    by = recipe.by if isinstance(recipe, Merge) else None
    return by if isinstance(by, MethodCall) else MethodCall(name="linear")


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
    recipe: Recipe, models: Sequence[str], weights: Sequence[int | float]
) -> list[dict[str, Any]]:
    """A weight for each model, 0 where the recipe hasn't it."""
    found = dict(zip(_models(recipe), weights, strict=True))
    return [{"weight": float(found.get(model, 0.0))} for model in models]


def write_nothing(recipe: Recipe, models: Sequence[str]) -> SaidParameters:
    """No parameters."""
    return [{} for _ in models], {}


def write_linear(recipe: Recipe, models: Sequence[str]) -> SaidParameters:
    """A weight for each model."""
    numbers: Sequence[int | float] = (1.0,)
    if isinstance(recipe, Merge):
        numbers = _numbers(recipe, "weight")
        if isinstance(recipe.share, int | float):
            numbers = (1.0 - recipe.share, recipe.share)
    normalizes = isinstance(recipe, Merge) and _argument(recipe, "normalize") == "yes"
    return _weighted(recipe, models, numbers), {"normalize": normalizes}


def write_slerp(recipe: Recipe, models: Sequence[str]) -> SaidParameters:
    """The share of the slice's second model."""
    t = float(_argument(recipe, "t")) if isinstance(recipe, Merge) else 0.0
    t = t if _models(recipe)[0] == models[0] else 1.0 - t
    return [{} for _ in models], {"t": t}


def write_karcher(recipe: Recipe, models: Sequence[str]) -> SaidParameters:
    """No parameters, for all models."""
    if _models(recipe) != list(models):
        raise Unsayable("mergekit's karcher takes all models of a slice, for each tensor")
    return write_nothing(recipe, models)


def write_model_stock(recipe: Recipe, models: Sequence[str]) -> SaidParameters:
    """By row or by tensor, for all models besides the base."""
    if isinstance(recipe, Take) or ["base", *_models(recipe)] != list(models):
        raise Unsayable("mergekit's model_stock takes all models of a slice, for each tensor")
    return [{} for _ in models], {"filter_wise": True} if _argument(recipe, "by") == "row" else {}


def write_nuslerp(recipe: Recipe, models: Sequence[str]) -> SaidParameters:
    """The weights of task vectors, and whose angles are taken."""
    _all_of_task_vectors(recipe, models)
    by = _argument(recipe, "by")
    shared = (
        {} if by == "tensor" else {"nuslerp_flatten": False, "nuslerp_row_wise": by == "column"}
    )
    return [{}, *_weighted(recipe, models[1:], _each_number(recipe, "weight"))], shared


def write_multislerp(recipe: Recipe, models: Sequence[str]) -> SaidParameters:
    """The weights of task vectors."""
    _all_of_task_vectors(recipe, models)
    normalizes = {"normalize_weights": _argument(recipe, "normalize") == "yes"}
    return [{}, *_weighted(recipe, models[1:], _each_number(recipe, "weight"))], normalizes


def _all_of_task_vectors(recipe: Recipe, models: Sequence[str]) -> None:
    name = method_call(recipe).name
    _all_beside(recipe, models, name)
    if _argument(recipe, "of") != "task_vectors":
        raise Unsayable(f"mergekit's {name} takes task vectors where there is a base_model, which "
                        "the output has its configuration of")  # fmt: skip


def write_nearswap(recipe: Recipe, models: Sequence[str]) -> SaidParameters:
    """How near an entry has to be."""
    named = _models(recipe)
    if named[0] != models[0]:
        raise Unsayable("mergekit's nearswap keeps the base_model of a slice, for each tensor")
    t = float(_argument(recipe, "t")) if isinstance(recipe, Merge) else 0.0
    return [{} for _ in models], {"t": t}


def write_sce(recipe: Recipe, models: Sequence[str]) -> SaidParameters:
    """The share that is selected."""
    _all_beside(recipe, models, "sce")
    if _argument(recipe, "floor") != EVEN:
        raise Unsayable(f"mergekit's sce weighs all alike where squares are small, which is floor="
                        f"{EVEN!r} here")  # fmt: skip
    return [{} for _ in models], {"select_topk": float(_argument(recipe, "density"))}


def write_ram(recipe: Recipe, models: Sequence[str]) -> SaidParameters:
    """Its numbers; those of `ram_plus` too."""
    _all_beside(recipe, models, method_call(recipe).name)
    names = [parameter.name for parameter in METHODS[method_call(recipe).name].parameters]
    return [{} for _ in models], {name: float(_argument(recipe, name)) for name in names}


def _all_beside(recipe: Recipe, models: Sequence[str], name: str) -> None:
    if isinstance(recipe, Take) or ["base", *_models(recipe)] != list(models):
        raise Unsayable(f"mergekit's {name} takes all models of a slice, for each tensor")


def _each_number(recipe: Recipe, name: str) -> Sequence[int | float]:
    """A parameter's numbers, one for each source."""
    given, count = _argument(recipe, name), len(_models(recipe))
    return given if isinstance(given, tuple) else (given,) * count


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
    name = method_call(recipe).name
    shared: dict[str, Any] = {}
    if name == "task_arithmetic":
        shared = {"normalize": True} if _argument(recipe, "normalize") == "yes" else {}
        return [{}, *_weighted(recipe, others, _numbers(recipe, "weight"))], shared
    scale, normalizes = float(_argument(recipe, "scale")), _argument(recipe, "normalize") == "yes"
    weights = _each_number(recipe, "weight")
    if METHODS[name].elects:
        shared = {"normalize": normalizes, "lambda": scale}
    elif normalizes:
        shared = {"normalize": True, "lambda": scale}
    else:
        weights = [weight * scale for weight in weights]
    own = {n: _each_number(recipe, n) for n in ("density", "gamma") if METHODS[name].parameter(n)}
    found = dict(zip(names, zip(weights, *own.values(), strict=True), strict=True))
    keys = ("weight", *own)
    blocks = [
        dict(zip(keys, map(float, found[m]), strict=True)) if m in found else {"weight": 0.0}
        for m in others
    ]
    return [{}, *blocks], shared
