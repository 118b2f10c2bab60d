"""The search results that the GPTailor paper and its predecessor released, as plans: `from_paper`.

The paper (arXiv 2506.20480) prunes: some layers leave, each other one is the base's, a
candidate's, or several candidates' by task arithmetic. Its predecessor (arXiv 2502.04030) fuses
groups of layers by a method each (layer-wise), or lays candidates' layers one after the other
(depth-wise).
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from gptailor.checks.plan import check_alone
from gptailor.convert.note import ConversionError, Note
from gptailor.convert.paper.depthwise import from_depth_wise
from gptailor.convert.paper.keys import PaperFamily, family_of, is_fusion, numbered
from gptailor.convert.paper.layerwise import from_fusion
from gptailor.plan.faults import errors
from gptailor.plan.plan import Drop, Layer, LayerOf, Merge, MethodCall, Plan, Recipe, Take

_CANDIDATE = r"layer_(\d+)_candidate_(\d+)"
_OUTPUT = r"layer_(\d+)_output_scale"
_REMOVED = r"remove_idx_(\d+)"
_SEARCHED = "'{}' is {!r}: it was searched, its code doesn't apply it, and neither does the plan"
_INDEX = (
    "after a removal the paper's code takes the base's layer at the output's number for the "
    "task vectors, which changes {} here; the plan takes the base's own layer"
)


def from_paper(
    document: object, *, layers: int | None = None, models: Sequence[str] = ()
) -> tuple[Plan, list[Note]]:
    """The plan of a released JSON, and what differs; its kind is guessed from its keys.

    `models` are the candidates' sources in order, where the file doesn't name them; `layers` is
    the base's number of layers, where the file doesn't tell. Raises ConversionError for what is
    none of the known kinds, or can't be said.
    """
    if not isinstance(document, dict):
        raise ConversionError("this is no JSON object of a search's choices")
    if is_fusion(document):
        plan, notes = from_fusion(document, layers)
    elif any("_block_" in key for key in document):
        plan, notes = from_depth_wise(document, models)
    elif numbered(document, _CANDIDATE):
        plan, notes = _from_pruning(document, layers, models)
    else:
        message = "the keys are of none of the released kinds"
        raise ConversionError(message, help="known are pruning, layer-wise and depth-wise fusion")
    if faults := errors(check_alone(plan)):
        raise ConversionError(faults[0].message, help=faults[0].help)
    return plan, notes


def _from_pruning(
    document: dict[str, Any], layers: int | None, models: Sequence[str]
) -> tuple[Plan, list[Note]]:
    choices = numbered(document, _CANDIDATE)
    removed = sorted(_whole(document, key) for key in numbered(document, _REMOVED).values())
    if any(a == b for a, b in pairwise(removed)):
        raise ConversionError("a layer is removed twice", place="remove_idx")
    kept = sorted({layer for layer, _ in choices})
    count = len({candidate for _, candidate in choices})
    if layers is None:
        layers = max([*kept, *removed]) + 1
    if sorted([*kept, *removed]) != list(range(layers)):
        message = f"kept and removed layers are not the {layers} layers of a base, each once"
        raise ConversionError(message, help="a layer has its candidates or is removed")
    family, notes = family_of(layers, count, models)
    recipes = {layer: _recipe(document, layer, family) for layer in kept}
    notes += _ignored(document) + _indices(recipes)
    return _pruned(recipes, removed, family), notes


def _recipe(document: dict[str, Any], layer: int, family: PaperFamily) -> Recipe:
    """None is the base's, one is that one's, more are merged."""
    chosen = []
    for k, name in enumerate(family.candidates):
        key = f"layer_{layer}_candidate_{k}"
        if _whole(document, key) not in (0, 1):
            raise ConversionError(f"this is {document[key]!r}, and not 0 or 1", place=key)
        chosen += [name] * _whole(document, key)
    if len(chosen) < 2:
        return Take(take=LayerOf(model=chosen[0] if chosen else "base", layer=layer))
    key = f"layer_{layer}_merge_scale_factor"
    scale = document.get(key)
    if isinstance(scale, bool) or not isinstance(scale, int | float):
        raise ConversionError(f"this is {scale!r}, and not a number", place=key)
    sources = tuple(LayerOf(model=name, layer=layer) for name in chosen)
    call = MethodCall(name="task_arithmetic", arguments={"scales": (float(scale),)})
    return Merge(merge=sources, by=call)


def _pruned(recipes: dict[int, Recipe], removed: Sequence[int], family: PaperFamily) -> Plan:
    """The plan; embedding of the first kept layer's recipe, norm and head of the last one's."""
    entries = tuple(
        Layer(position=n, recipe=recipe)
        for n, recipe in recipes.items()
        if recipe != Take(take=LayerOf(model="base", layer=n))
    )
    first, last = _anywhere(recipes[min(recipes)]), _anywhere(recipes[max(recipes)])
    return Plan(
        models=family.models,
        embed=first,
        norm=last,
        head=last,
        layers=entries,
        drops=tuple(Drop(position=n) for n in removed),
    )


def _anywhere(recipe: Recipe) -> Recipe | None:
    """The recipe for a tensor that is in no layer; None for the base's own."""
    if isinstance(recipe, Take):
        model = recipe.take.model
        return None if model == "base" else Take(take=LayerOf(model=model))
    assert isinstance(recipe, Merge)
    sources = tuple(LayerOf(model=source.model) for source in recipe.merge)
    return recipe.model_copy(update={"merge": sources})


def _ignored(document: dict[str, Any]) -> list[Note]:
    """The output scales that the search found and its code ignores."""
    keys = numbered(document, _OUTPUT).values()
    return [Note(key, _SEARCHED.format(key, document[key])) for key in keys if document[key] != 1]


def _indices(recipes: dict[int, Recipe]) -> list[Note]:
    """Where the paper's base index is another and has an effect: N·λ isn't 1."""
    notes = []
    for output, (position, recipe) in enumerate(recipes.items()):
        if output == position or not isinstance(recipe, Merge):
            continue
        call = recipe.by
        assert isinstance(call, MethodCall)
        scale = call.arguments["scales"]
        assert isinstance(scale, tuple)
        (share,) = scale
        if isinstance(share, float) and abs(len(recipe.merge) * share - 1) > 1e-9:
            place = f"layer_{position}_merge_scale_factor"
            notes.append(Note(place, _INDEX.format(f"L{position}")))
    return notes


def _whole(document: dict[str, Any], key: str) -> int:
    value = document.get(key)
    if isinstance(value, bool) or not isinstance(value, int):
        raise ConversionError(f"this is {value!r}, and not a whole number", place=key)
    return value
