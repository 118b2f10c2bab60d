"""The predecessor's layer-wise fusion as an overlay: a method for each group of layers."""

import re
from typing import Any

from gptailor.convert.naming import short_name
from gptailor.convert.note import ConversionError, Note
from gptailor.convert.paper.keys import BASES, CANDIDATES_13B, selections
from gptailor.plan.plan import Layer, LayerOf, Merge, MethodCall, Model, Part, Plan

_PARTS: tuple[tuple[Part, str], ...] = (("attn", "self_attn"), ("mlp", "mlp"))
_NORMS = "the norms of {} have a {} of their own; in the plan they get what their branches get"
_WEIGHTS = "the weights of {} are taken to be normalised to a sum of 1"
_TRIM = (
    "a mask rate is 1 - density here; its code trims a group's tensors as one, gptailor each "
    "tensor by itself"
)
_ENDS = "the file doesn't say what embedding, norm and head are made of: they are the base's"


def from_fusion(document: dict[str, Any], layers: int | None) -> tuple[Plan, list[Note]]:
    """The plan of a layer-wise fusion: as many groups as there are methods, equally long."""
    methods = selections(document)
    layers = layers or 40
    if layers % len(methods):
        message = f"{layers} layers don't make {len(methods)} groups of equal length"
        raise ConversionError(message, place="layer_selection_method")
    size = layers // len(methods)
    sources = _sources(document)
    notes = [Note("", _ENDS)]
    entries = []
    for group, method in enumerate(methods):
        positions = range(group * size, (group + 1) * size)
        said = f"L{positions[0]}..L{positions[-1]}"
        calls = {p: _call(document, group, paramset, method, sources) for p, paramset in _PARTS}
        notes.append(Note(f"layer_{group}_paramset_base", _NORMS.format(said, method)))
        notes += _notes(method, group, said)
        for n in positions:
            for part, call in calls.items():
                layer_of = tuple(LayerOf(model=name, layer=n) for name in sources)
                entries.append(Layer(position=n, part=part, recipe=Merge(merge=layer_of, by=call)))
    base = BASES.get(layers, "./base")
    models = {"base": base, **sources}
    declared = {name: Model(source=source) for name, source in models.items()}
    return Plan(models=declared, layers=tuple(entries)), notes


def _notes(method: str, group: int, said: str) -> list[Note]:
    place = f"layer_selection_method_{group}"
    message = {"linear": _WEIGHTS.format(said), "ties": _TRIM}.get(method)
    return [Note(place, message)] if message is not None else []


def _sources(document: dict[str, Any]) -> dict[str, str]:
    """The models that the keys name; in the paper's order if they are the paper's."""
    named = (re.fullmatch(r"model_(.+)_layer_\d+_paramset_.+", key) for key in document)
    found = sorted({match[1] for match in named if match is not None})
    if not found:
        raise ConversionError("the keys name no models")
    if set(found) == set(CANDIDATES_13B.values()):
        return dict(CANDIDATES_13B)
    names: dict[str, str] = {}
    for source in found:
        names[short_name(source, names)] = source
    return names


def _call(
    document: dict[str, Any], group: int, paramset: str, method: str, sources: dict[str, str]
) -> MethodCall:
    where = f"layer_{group}_paramset_{paramset}_method_{method}_param"
    if method == "linear":
        keys = [f"model_{source}_{where}_weights" for source in sources.values()]
        weights = [_number(document, key) for key in keys]
        if sum(weights) <= 0:
            raise ConversionError("the weights sum to no more than 0", place=keys[0])
        shares = tuple(weight / sum(weights) for weight in weights)
        return MethodCall(name="linear", arguments={"weights": shares})
    if method == "task_arithmetic":
        scale = _number(document, f"{where}_scaling_coefficient")
        return MethodCall(name="task_arithmetic", arguments={"scales": (scale,)})
    if method == "ties":
        density = 1.0 - _number(document, f"{where}_param_value_mask_rate")
        scale = _number(document, f"{where}_scaling_coefficient")
        return MethodCall(name="ties", arguments={"density": density, "scale": scale})
    place = f"layer_selection_method_{group}"
    if method == "slerp":
        message = f"slerp of {len(sources)} models with a t for each; here it merges two"
        raise ConversionError(message, place=place)
    raise ConversionError(f"there is no method '{method}' in these files", place=place)


def _number(document: dict[str, Any], key: str) -> float:
    value = document.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ConversionError(f"this is {value!r}, and not a number", place=key)
    return float(value)
