"""Shares of models in a layer, by its recipe alone: nothing is measured, no model is read."""

import math
from collections.abc import Sequence

from gptailor.plan.layer_parts import BRANCHES, Branch
from gptailor.plan.recipe import Merge, MethodCall, Recipe, Take
from gptailor.plan.registry import METHODS
from gptailor.plan.resolved import Slot

_MEASURED = frozenset(["nearswap", "arcee_fusion"])
"""Methods whose share of the second source depends on the tensors."""


def _recipe_shares(recipe: Recipe) -> dict[str, float] | None:
    """Return each model's share of a recipe's result; they sum to 1.

    A merge's weights count by their size; the rest of task vectors is the base's. A recipe with
    choices has no shares (None), nor has a method that depends on the tensors.
    """
    if isinstance(recipe, Take):
        model = recipe.take.model
        return {model: 1.0} if isinstance(model, str) else None
    if not isinstance(recipe, Merge):
        return None
    weights = _weights(recipe)
    models = [source.model for source in recipe.merge]
    if weights is None:
        return None
    shares: dict[str, float] = {}
    for model, weight in zip(models, weights, strict=True):
        if not isinstance(model, str):
            return None
        shares[model] = shares.get(model, 0.0) + abs(weight)
    by = recipe.by
    if isinstance(by, MethodCall) and METHODS[by.name].takes_base(by.arguments):
        shares["base"] = shares.get("base", 0.0) + max(0.0, 1.0 - math.fsum(map(abs, weights)))
    total = math.fsum(shares.values())
    return {name: share / total for name, share in shares.items() if share} if total else None


def slot_shares(slot: Slot, branches: Sequence[Branch] = BRANCHES) -> dict[str, float] | None:
    """Return each model's share of a layer's branches, which count alike, were it not dropped.

    None for a layer with a branch without shares.
    """
    recipes = [slot.recipes[None]] if None in slot.recipes else list(map(slot.part, branches))
    shares: dict[str, float] = {}
    for recipe in recipes:
        own = None if recipe.maybe else _recipe_shares(recipe.recipe)
        if own is None:
            return None
        for name, share in own.items():
            shares[name] = shares.get(name, 0.0) + share / len(recipes)
    return shares


def _weights(merge: Merge) -> list[float] | None:
    """Return a number for each source; None where a choice or the tensors decide it."""
    by, count = merge.by, len(merge.merge)
    if by is None:
        numbers = _numbers(merge.share, 1)
        mean = [1.0 / count] * count if merge.share is None else None
        return mean if numbers is None else [1.0 - numbers[0], *numbers]
    if not isinstance(by, MethodCall) or by.name in _MEASURED:
        return None
    method = METHODS[by.name]
    if method.name == "slerp":
        numbers = _numbers(method.argument(by.arguments, "t"), 1)
        return None if numbers is None else [1.0 - numbers[0], *numbers]
    weight, scale = (method.argument(by.arguments, name) for name in ("weight", "scale"))
    weights = _numbers(1.0 / count if weight is None else weight, count)
    scales = _numbers(1.0 if scale is None else scale, 1)
    if weights is None or scales is None:
        return None
    mean_of = method.argument(by.arguments, "normalize") == "yes"
    divisor = (math.fsum(weights) if mean_of else 0.0) or 1.0
    return [number * scales[0] / divisor for number in weights]


def _numbers(value: object, count: int) -> list[float] | None:
    """Return a number, or several, as `count` numbers; None for choices and for nothing."""
    numbers = list(value) if isinstance(value, tuple) else [value]
    numbers = numbers * count if len(numbers) == 1 else numbers
    fixed = [float(number) for number in numbers if isinstance(number, int | float)]
    return fixed if len(fixed) == len(numbers) == count else None
