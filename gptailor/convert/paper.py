"""The search results that the GPTailor paper and its predecessor released, as plans: `from_paper`.

The paper (arXiv 2506.20480) prunes: some layers leave, each other one is the base's, a
candidate's, or several candidates' by task arithmetic. Its predecessor (arXiv 2502.04030) fuses
groups of layers by a method each (layer-wise), or lays candidates' layers one after the other
(depth-wise).
"""

import re
from collections.abc import Mapping, Sequence
from itertools import pairwise, permutations
from typing import Any

from gptailor.checks.plan import check_alone
from gptailor.convert.note import ConversionError, Note, short_name
from gptailor.plan import plan as p
from gptailor.plan.faults import errors
from gptailor.plan.layers import own

_BASES = {32: "meta-llama/Llama-2-7b-hf", 40: "meta-llama/Llama-2-13b-hf"}
"""The paper's bases, by their number of layers."""

_CANDIDATES_13B = {
    "chat": "WizardLMTeam/WizardLM-13B-V1.2",
    "math": "vanillaOVO/WizardMath-13B-V1.0",
    "code": "layoric/llama-2-13b-code-alpaca",
}
"""The candidates of the paper's 13B searches, in order."""

_Choices = dict[str, Any]
_Found = tuple[dict[str, str], dict[str, Any], list[Note]]
"""The sources of a plan's models by their names, what else it says, and notes."""


def from_paper(
    document: object, *, layers: int | None = None, models: Sequence[str] = ()
) -> tuple[p.Plan, list[Note]]:
    """The plan of a released JSON, and what differs; its kind is guessed from its keys.

    `models` are the candidates' sources in order, where the file doesn't name them; `layers` is
    the base's number of layers, where the file doesn't tell. Raises ConversionError for what is
    none of the known kinds, or can't be said.
    """
    if not isinstance(document, dict):
        raise ConversionError("this is no JSON object of a search's choices")
    if _numbered(document, r"layer_selection_method_(\d+)"):
        sources, said, notes = _from_layer_wise(document, layers or 40)
    elif any("_block_" in key for key in document):
        sources, said, notes = _from_depth_wise(document, models)
    elif _numbered(document, r"layer_(\d+)_candidate_(\d+)"):
        sources, said, notes = _from_pruning(document, layers, models)
    else:
        message = "the keys are of none of the released kinds"
        raise ConversionError(message, help="known are pruning, layer-wise and depth-wise fusion")
    plan = p.Plan(models={name: p.Model(source=of) for name, of in sources.items()}, **said)
    if faults := errors(check_alone(plan)):
        raise ConversionError(faults[0].message, help=faults[0].help)
    return plan, notes


def _numbered(document: _Choices, pattern: str) -> dict[tuple[int, ...], str]:
    """The keys of a form, by the numbers in them, in order."""
    matches = (re.fullmatch(pattern, key) for key in document)
    found = {tuple(int(n) for n in match.groups()): match[0] for match in matches if match}
    return dict(sorted(found.items()))


def _number(document: _Choices, key: str, *, whole: bool = False) -> int | float:
    value = document.get(key)
    if isinstance(value, bool) or not isinstance(value, int if whole else int | float):
        kind = "a whole number" if whole else "a number"
        raise ConversionError(f"this is {value!r}, and not {kind}", place=key)
    return value


def _family(
    layers: int, count: int, given: Sequence[str]
) -> tuple[dict[str, str], list[str], list[Note]]:
    """The models of a file that names none: those that are given, the paper's, or placeholders.

    Their sources by their names, the candidates' names in order, and notes.
    """
    if given and len(given) != count:
        raise ConversionError(f"the file has {count} candidates, and {len(given)} are given")
    said = []
    if layers not in _BASES:
        said.append(f"the base of {layers} layers is not known: './base' stands for it")
    if given:
        candidates = _short_names(given)
    elif layers == 40 and count == 3:
        candidates = _CANDIDATES_13B
        said.append("the file names no models: these are those of the paper's 13B runs")
    else:
        candidates = {f"candidate_{k}": f"./candidate_{k}" for k in range(count)}
        said.append("the candidates are recorded nowhere: placeholders stand for them")
    models = {"base": _BASES.get(layers, "./base"), **candidates}
    return models, list(candidates), [Note("", message) for message in said]


def _short_names(sources: Sequence[str]) -> dict[str, str]:
    names: dict[str, str] = {}
    for source in sources:
        names[short_name(source, names)] = source
    return names


# ----------------------------------------------------------------------------------------- pruning

_SEARCHED = "'{}' is {!r}: it was searched, its code doesn't apply it, and neither does the plan"
_INDEX = (
    "after a removal the paper's code takes the base's layer at the output's number for the "
    "task vectors, which changes L{} here; the plan takes the base's own layer"
)


def _from_pruning(document: _Choices, layers: int | None, given: Sequence[str]) -> _Found:
    choices = _numbered(document, r"layer_(\d+)_candidate_(\d+)")
    keys = _numbered(document, r"remove_idx_(\d+)").values()
    removed = sorted(int(_number(document, key, whole=True)) for key in keys)
    if any(a == b for a, b in pairwise(removed)):
        raise ConversionError("a layer is removed twice", place="remove_idx")
    kept = sorted({layer for layer, _ in choices})
    count = len({candidate for _, candidate in choices})
    if layers is None:
        layers = max([*kept, *removed]) + 1
    if sorted([*kept, *removed]) != list(range(layers)):
        message = f"kept and removed layers are not the {layers} layers of a base, each once"
        raise ConversionError(message, help="a layer has its candidates or is removed")
    models, candidates, notes = _family(layers, count, given)
    recipes = {n: _pruned(document, n, candidates, n) for n in kept}
    for key in _numbered(document, r"layer_(\d+)_output_scale").values():
        notes += [Note(key, _SEARCHED.format(key, document[key]))] if document[key] != 1 else []
    for output, (layer, recipe) in enumerate(recipes.items()):
        key = f"layer_{layer}_merge_scale_factor"
        count = len(recipe.merge) if isinstance(recipe, p.Merge) else 0
        # the base's layer has no effect where the coefficients sum to 1
        if output != layer and count and abs(count * document[key] - 1) > 1e-9:
            notes.append(Note(key, _INDEX.format(layer)))
    base = p.Take(take=p.LayerOf(model="base"))
    places = (("embed", kept[0]), ("norm", kept[-1]), ("head", kept[-1]))
    ends = {where: _pruned(document, n, candidates, None) for where, n in places}
    said: dict[str, Any] = {where: recipe for where, recipe in ends.items() if recipe != base}
    entries = (p.Layer(position=n, recipe=r) for n, r in recipes.items() if r != own(n))
    drops = tuple(p.Drop(position=n) for n in removed)
    return models, {**said, "layers": tuple(entries), "drops": drops}, notes


def _pruned(
    document: _Choices, number: int, candidates: Sequence[str], layer: int | None
) -> p.Recipe:
    """What a layer's choices make of a layer: none is the base's, one is that one's, more merge."""
    chosen = []
    for k, name in enumerate(candidates):
        key = f"layer_{number}_candidate_{k}"
        if (bit := _number(document, key, whole=True)) not in (0, 1):
            raise ConversionError(f"this is {bit!r}, and not 0 or 1", place=key)
        chosen += [name] if bit else []
    if len(chosen) < 2:
        return p.Take(take=p.LayerOf(model=chosen[0] if chosen else "base", layer=layer))
    scale = float(_number(document, f"layer_{number}_merge_scale_factor"))
    sources = tuple(p.LayerOf(model=name, layer=layer) for name in chosen)
    call = p.MethodCall(name="task_arithmetic", arguments={"weight": (scale,)})
    return p.Merge(merge=sources, by=call)


# -------------------------------------------------------------------------------------- depth-wise

_MULTIPLIED = (
    "the hidden state after L{} is multiplied by {!r} there; a stack has no scale, so that the "
    "plan does not say this"
)
_ORDER = "the order {} of {} models is taken as the one of that number in lexicographic order"


def _from_depth_wise(document: _Choices, given: Sequence[str]) -> _Found:
    """A stack: an ordered subset of the candidates' layers at each place, or the base's layer.

    The embedding is that of the first layer's model, norm and head are those of the last one's.
    """
    blocks = _numbered(document, r"layer_(\d+)_block_(\d+)_selection")
    layers, count = (1 + max(numbers) for numbers in zip(*blocks, strict=True))
    if len(blocks) != layers * count:
        raise ConversionError(f"not every layer of {layers} has its {count} blocks")
    models, candidates, notes = _family(layers, count, given)
    orders = list(permutations(range(count)))
    chosen: dict[int, list[int]] = {}
    for n in range(layers):
        for k in range(count):
            if str(value := document[blocks[n, k]]) not in ("0", "1"):
                raise ConversionError(f"this is {value!r}, and not 0 or 1", place=blocks[n, k])
        chosen[n] = [k for k in range(count) if str(document[blocks[n, k]]) == "1"]
        if len(chosen[n]) < 2:
            continue
        key = f"layer_{n}_permutation_selection"
        value = str(document.get(key, "0"))
        if not value.isdecimal() or int(value) >= len(orders):
            message = f"this is {value!r}, and not one of {len(orders)} orders"
            raise ConversionError(message, place=key)
        notes += [Note(key, _ORDER.format(int(value), count))] if int(value) else []
        chosen[n] = [k for k in orders[int(value)] if k in chosen[n]]
    for (n,), key in _numbered(document, r"scale_(\d+)").items():
        message = _MULTIPLIED.format(n, document[key])
        notes += [Note(key, message)] if document[key] != 1 else []
    named = {n: [candidates[k] for k in of] or ["base"] for n, of in chosen.items()}
    taken = [p.LayerOf(model=name, layer=n) for n, names in named.items() for name in names]
    items = tuple(p.Item(recipe=p.Take(take=layer)) for layer in taken)
    ends = (("embed", taken[0].model), ("norm", taken[-1].model), ("head", taken[-1].model))
    said = {where: p.Take(take=p.LayerOf(model=of)) for where, of in ends if of != "base"}
    return models, {**said, "stack": p.Stack(items=items)}, notes


# -------------------------------------------------------------------------------------- layer-wise

_PARTS = {"attn": "self_attn", "mlp": "mlp", "norms": "base"}
"""The files' parameter sets by the parts that they are of; the last is of the ends too."""
_OF_METHOD = {
    "linear": "the weights of {} are taken to be normalised to a sum of 1",
    "ties": "a mask rate is 1 - density here",
}


def _from_layer_wise(document: _Choices, layers: int) -> _Found:
    """An overlay: as many groups of layers, equally long, as there are methods.

    The embedding is made as the first group's norms are, the final norm and the head as the last's.
    """
    keys = _numbered(document, r"layer_selection_method_(\d+)")
    if [number for (number,) in keys] != list(range(len(keys))):
        message = "the groups aren't numbered from 0 on"
        raise ConversionError(message, place="layer_selection_method")
    if layers % len(keys):
        message = f"{layers} layers don't make {len(keys)} groups of equal length"
        raise ConversionError(message, place="layer_selection_method")
    size = layers // len(keys)
    named = (re.fullmatch(r"model_(.+)_layer_\d+_paramset_.+", key) for key in document)
    found = sorted({match[1] for match in named if match is not None})
    if not found:
        raise ConversionError("the keys name no models")
    of_paper = set(found) == set(_CANDIDATES_13B.values())  # in the paper's order
    sources = _CANDIDATES_13B if of_paper else _short_names(found)
    notes: list[Note] = []
    entries: list[p.Layer] = []
    ends: dict[str, Any] = {}
    for (group,), key in keys.items():
        method = str(document[key])
        positions = range(group * size, (group + 1) * size)
        calls = {part: _call(document, (group, of), method, sources) for part, of in _PARTS.items()}
        made = p.Merge(merge=tuple(p.LayerOf(model=name) for name in sources), by=calls["norms"])
        ends |= {"embed": ends.get("embed", made), "norm": made, "head": made}
        said = f"L{positions[0]}..L{positions[-1]}"
        if method in _OF_METHOD:
            notes.append(Note(key, _OF_METHOD[method].format(said)))
        for n in positions:
            merge = tuple(p.LayerOf(model=name, layer=n) for name in sources)
            recipes = {part: p.Merge(merge=merge, by=call) for part, call in calls.items()}
            entries += [p.Layer(position=n, part=of, recipe=r) for of, r in recipes.items()]
    models = {"base": _BASES.get(layers, "./base"), **sources}
    return models, {**ends, "layers": tuple(entries)}, notes


def _call(
    document: _Choices, where: tuple[int, str], method: str, sources: Mapping[str, str]
) -> p.MethodCall:
    group, paramset = where
    start = f"layer_{group}_paramset_{paramset}_method_{method}_param"
    arguments: dict[str, Any]
    if method == "linear":
        keys = [f"model_{source}_{start}_weights" for source in sources.values()]
        weights = [float(_number(document, key)) for key in keys]
        if sum(weights) <= 0:
            raise ConversionError("the weights sum to no more than 0", place=keys[0])
        arguments = {"weight": tuple(weight / sum(weights) for weight in weights)}
    elif method == "task_arithmetic":
        arguments = {"weight": (float(_number(document, f"{start}_scaling_coefficient")),)}
    elif method == "ties":
        density = 1.0 - _number(document, f"{start}_param_value_mask_rate")
        scale = float(_number(document, f"{start}_scaling_coefficient"))
        arguments = {"density": density, "scale": scale}
    else:
        message = f"there is no method '{method}' in these files"
        if method == "slerp":
            message = _two_largest(document, start, sources)
        raise ConversionError(message, place=f"layer_selection_method_{group}")
    return p.MethodCall(name=method, arguments=arguments)


def _two_largest(document: _Choices, start: str, sources: Mapping[str, str]) -> str:
    """Why a slerp of several models isn't said, and which two its code merges."""
    key = f"model_{{}}_{start.removesuffix('slerp_param')}slerp_param_slerp_t"
    shares = {name: _number(document, key.format(source)) for name, source in sources.items()}
    two = sorted(shares, key=lambda name: -shares[name])[:2]
    said = " and ".join(f"'{name}' ({shares[name]:.3g})" for name in two)
    return (
        f"slerp merges the two models of the largest t there, {said}, and the file doesn't say how "
        "they share; write these lines by hand, by slerp(t)"
    )
