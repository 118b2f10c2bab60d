"""How much of a layer is whose, as its recipe says it: nothing is measured, no model is read."""

import math

from gptailor.plan.layers import Slot
from gptailor.plan.parts import BRANCHES
from gptailor.plan.recipe import Merge, MethodCall, Recipe, Take
from gptailor.plan.registry import METHODS

_MEASURED = frozenset(["nearswap", "arcee_fusion"])
"""Methods that take so much of the second source as its numbers say."""


def recipe_shares(recipe: Recipe) -> dict[str, float] | None:
    """Each model's share of what a recipe makes; they sum to 1.

    A merge's weights are taken by their size, and what task vectors leave is the base's. None of a
    recipe with choices, and of a method that goes by what it finds in the models.
    """
    if isinstance(recipe, Take):
        model = recipe.take.model
        return {model: 1.0} if isinstance(model, str) else None
    if not isinstance(recipe, Merge):
        return None
    weights = _weights(recipe)
    models = [one.model for one in recipe.merge]
    if weights is None:
        return None
    found: dict[str, float] = {}
    for model, weight in zip(models, weights, strict=True):
        if not isinstance(model, str):
            return None
        found[model] = found.get(model, 0.0) + abs(weight)
    if _adds_to_base(recipe):
        found["base"] = found.get("base", 0.0) + max(0.0, 1.0 - math.fsum(map(abs, weights)))
    whole = math.fsum(found.values())
    return {name: share / whole for name, share in found.items() if share} if whole else None


def slot_shares(slot: Slot) -> dict[str, float] | None:
    """Each model's share of a layer, whose branches count alike; None where one of them has none.

    None of a layer that is dropped, or may be, too.
    """
    if slot.dropped != "no":
        return None
    made = [slot.made[None]] if None in slot.made else [slot.part(part) for part in BRANCHES]
    each = [None if one.maybe else recipe_shares(one.recipe) for one in made]
    found: dict[str, float] = {}
    for one in each:
        if one is None:
            return None
        for name, share in one.items():
            found[name] = found.get(name, 0.0) + share / len(each)
    return found


def _adds_to_base(merge: Merge) -> bool:
    if not isinstance(merge.by, MethodCall):
        return False
    return METHODS[merge.by.name].takes_base(merge.by.arguments)


def _weights(merge: Merge) -> list[float] | None:
    """A number for each source; None where a choice, or a model's numbers, say it."""
    by, count = merge.by, len(merge.merge)
    if by is None:
        said = _numbers(merge.share, 1)
        mean = [1.0 / count] * count if merge.share is None else None
        return mean if said is None else [1.0 - said[0], *said]
    if not isinstance(by, MethodCall) or by.name in _MEASURED:
        return None
    method = METHODS[by.name]
    if method.name == "slerp":
        said = _numbers(method.argument(by.arguments, "t"), 1)
        return None if said is None else [1.0 - said[0], *said]
    weight, scale = (method.argument(by.arguments, name) for name in ("weight", "scale"))
    weights = _numbers(1.0 / count if weight is None else weight, count)
    scales = _numbers(1.0 if scale is None else scale, 1)
    if weights is None or scales is None:
        return None
    mean_of = method.argument(by.arguments, "normalize") == "yes"
    divisor = (math.fsum(weights) if mean_of else 0.0) or 1.0
    return [one * scales[0] / divisor for one in weights]


def _numbers(said: object, count: int) -> list[float] | None:
    """A number, or several, as so many; None of choices and of nothing."""
    numbers = list(said) if isinstance(said, tuple) else [said]
    numbers = numbers * count if len(numbers) == 1 else numbers
    found = [float(one) for one in numbers if isinstance(one, int | float)]
    return found if len(found) == len(numbers) == count else None
