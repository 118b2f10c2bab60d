"""Write a plan from a JSON file of search results of the GPTailor paper or of its predecessor.

python examples/paper_plans.py 13b-1.json -o 13b-1.tailor    # needs gptailor alone

The plans in plans/llama2 were made in this way. The paper (arXiv 2506.20480) prunes: some layers
leave, and each other layer is the base's, a candidate's, or several candidates' by task arithmetic.
Its predecessor (arXiv 2502.04030) fuses groups of layers by a method each (layer-wise), or stacks
candidates' layers (depth-wise).
"""

import argparse
import json
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise, permutations
from pathlib import Path
from typing import Any

import gptailor
from gptailor.checks.plan import check_alone
from gptailor.lang.importers import ConversionError, Note
from gptailor.plan import plan as p
from gptailor.plan.faults import errors
from gptailor.plan.resolved import own
from gptailor.plugins.mergekit.importer import short_name

_BASES = {32: "meta-llama/Llama-2-7b-hf", 40: "meta-llama/Llama-2-13b-hf"}
"""The paper's bases, by their number of layers."""

_CANDIDATES_13B = {
    "chat": "WizardLMTeam/WizardLM-13B-V1.2",
    "math": "vanillaOVO/WizardMath-13B-V1.0",
    "code": "layoric/llama-2-13b-code-alpaca",
}
"""The candidates of the paper's 13B searches, in order."""

_Choices = dict[str, Any]
_Parsed = tuple[dict[str, str], dict[str, Any], list[Note]]
"""The sources of a plan's models by name, the plan's other fields, and notes."""


def from_paper(
    document: object, name: str = "", *, layers: int | None = None, models: Sequence[str] = ()
) -> tuple[p.Plan, list[Note]]:
    """Return the plan of a released JSON, and notes; the kind of file is guessed from its keys.

    `name` is the file's, for messages. `models` are the candidates' sources in order, where the
    file doesn't name them; `layers` is the base's number of layers, where the file doesn't tell.
    Raises ConversionError for an unknown kind, and for choices that a plan can't express.
    """
    try:
        plan, notes = _converted(document, layers, models)
    except ConversionError as error:
        raise replace(error, name=name) from error
    return plan, [replace(note, name=name) for note in notes]


def _converted(
    document: object, layers: int | None, sources: Sequence[str]
) -> tuple[p.Plan, list[Note]]:
    if not isinstance(document, dict):
        raise ConversionError("expected a JSON object of a search's choices")
    if _numbered(document, r"layer_selection_method_(\d+)"):
        models, fields, notes = _from_layer_wise(document, layers or 40)
    elif any("_block_" in key for key in document):
        models, fields, notes = _from_depth_wise(document, sources)
    elif _numbered(document, r"layer_(\d+)_candidate_(\d+)"):
        models, fields, notes = _from_pruning(document, layers, sources)
    else:
        message = "unknown keys: expected those of a released file"
        raise ConversionError(message, help="known are pruning, layer-wise and depth-wise fusion")
    plan = p.Plan(models={name: p.Model(source=of) for name, of in models.items()}, **fields)
    if faults := errors(check_alone(plan)):
        raise ConversionError(faults[0].message, help=faults[0].help)
    return plan, notes


def _numbered(document: _Choices, pattern: str) -> dict[tuple[int, ...], str]:
    """Return the keys that match a pattern, by the numbers in them, in order."""
    matches = (re.fullmatch(pattern, key) for key in document)
    keys = {tuple(int(n) for n in match.groups()): match[0] for match in matches if match}
    return dict(sorted(keys.items()))


def _number(document: _Choices, key: str, *, whole: bool = False) -> int | float:
    value = document.get(key)
    if isinstance(value, bool) or not isinstance(value, int if whole else int | float):
        kind = "a whole number" if whole else "a number"
        raise ConversionError(f"expected {kind}, got {value!r}", place=key)
    return value


def _bit(document: _Choices, key: str, value: object) -> bool:
    if str(value) not in ("0", "1"):
        raise ConversionError(f"expected 0 or 1, got {value!r}", place=key)
    return str(value) == "1"


def _family(
    layers: int, count: int, sources: Sequence[str]
) -> tuple[dict[str, str], list[str], list[Note]]:
    """Return the models of a file that names none: the user's, the paper's, or placeholders.

    These are their sources by name, the candidates' names in order, and notes.
    """
    if sources and len(sources) != count:
        raise ConversionError(f"the file has {count} candidates, and {len(sources)} are given")
    messages = []
    if layers not in _BASES:
        messages.append(f"the base of {layers} layers is not known: './base' stands for it")
    if sources:
        candidates = _short_names(sources)
    elif layers == 40 and count == 3:
        candidates = _CANDIDATES_13B
        messages.append("the file names no models: these are those of the paper's 13B runs")
    else:
        candidates = {f"candidate_{k}": f"./candidate_{k}" for k in range(count)}
        messages.append("the candidates are recorded nowhere: placeholders stand for them")
    models = {"base": _BASES.get(layers, "./base"), **candidates}
    return models, list(candidates), [Note("", message) for message in messages]


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


def _from_pruning(document: _Choices, layers: int | None, sources: Sequence[str]) -> _Parsed:
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
    models, candidates, notes = _family(layers, count, sources)
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
    fields: dict[str, Any] = {where: recipe for where, recipe in ends.items() if recipe != base}
    entries = (p.Layer(position=n, recipe=r) for n, r in recipes.items() if r != own(n))
    drops = tuple(p.Drop(position=n) for n in removed)
    return models, {**fields, "layers": tuple(entries), "drops": drops}, notes


def _pruned(
    document: _Choices, number: int, candidates: Sequence[str], layer: int | None
) -> p.Recipe:
    """Return the recipe of a layer: the base's, the one chosen candidate's, or a merge of several.

    `number` is the layer in the file, `layer` the one in the plan; None outside the layers.
    """
    chosen = []
    for k, name in enumerate(candidates):
        key = f"layer_{number}_candidate_{k}"
        chosen += [name] if _bit(document, key, _number(document, key, whole=True)) else []
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


def _from_depth_wise(document: _Choices, sources: Sequence[str]) -> _Parsed:
    """Return a stack: at each place an ordered subset of the candidates' layers, or the base's.

    The embedding is that of the first layer's model; norm and head are those of the last one's.
    """
    blocks = _numbered(document, r"layer_(\d+)_block_(\d+)_selection")
    layers, count = (1 + max(numbers) for numbers in zip(*blocks, strict=True))
    if len(blocks) != layers * count:
        raise ConversionError(f"not every layer of {layers} has its {count} blocks")
    models, candidates, notes = _family(layers, count, sources)
    orders = list(permutations(range(count)))
    chosen: dict[int, list[int]] = {}
    for n in range(layers):
        bits = [_bit(document, blocks[n, k], document[blocks[n, k]]) for k in range(count)]
        chosen[n] = [k for k, bit in enumerate(bits) if bit]
        if len(chosen[n]) < 2:
            continue
        key = f"layer_{n}_permutation_selection"
        value = str(document.get(key, "0"))
        if not value.isdecimal() or int(value) >= len(orders):
            message = f"expected one of {len(orders)} orders, got {value!r}"
            raise ConversionError(message, place=key)
        notes += [Note(key, _ORDER.format(int(value), count))] if int(value) else []
        chosen[n] = [k for k in orders[int(value)] if k in chosen[n]]
    for (n,), key in _numbered(document, r"scale_(\d+)").items():
        message = _MULTIPLIED.format(n, document[key])
        notes += [Note(key, message)] if document[key] != 1 else []
    named = {n: [candidates[k] for k in of] or ["base"] for n, of in chosen.items()}
    stacked = [p.LayerOf(model=name, layer=n) for n, names in named.items() for name in names]
    items = tuple(p.Item(recipe=p.Take(take=layer)) for layer in stacked)
    first, last = stacked[0].model, stacked[-1].model
    ends = (("embed", first), ("norm", last), ("head", last))
    fields = {where: p.Take(take=p.LayerOf(model=of)) for where, of in ends if of != "base"}
    return models, {**fields, "stack": p.Stack(items=items)}, notes


# -------------------------------------------------------------------------------------- layer-wise

_PARTS = {"attn": "self_attn", "mlp": "mlp", "norms": "base"}
"""The files' parameter sets by part; the last is also that of embedding, final norm and head."""
_METHOD_NOTES = {
    "linear": "the weights of {} are taken to be normalised to a sum of 1",
    "ties": "a mask rate is 1 - density here",
}


def _from_layer_wise(document: _Choices, layers: int) -> _Parsed:
    """Return an overlay of equally long groups of layers, one for each method.

    The embedding has the first group's recipe of norms, the final norm and the head the last's.
    """
    keys = _numbered(document, r"layer_selection_method_(\d+)")
    if [number for (number,) in keys] != list(range(len(keys))):
        message = "the group numbers must start at 0"
        raise ConversionError(message, place="layer_selection_method")
    if layers % len(keys):
        message = f"{layers} layers don't make {len(keys)} groups of equal length"
        raise ConversionError(message, place="layer_selection_method")
    size = layers // len(keys)
    matches = (re.fullmatch(r"model_(.+)_layer_\d+_paramset_.+", key) for key in document)
    named = sorted({match[1] for match in matches if match is not None})
    if not named:
        raise ConversionError("the keys name no models")
    of_paper = set(named) == set(_CANDIDATES_13B.values())  # in the paper's order
    sources = _CANDIDATES_13B if of_paper else _short_names(named)
    notes: list[Note] = []
    entries: list[p.Layer] = []
    ends: dict[str, Any] = {}
    for (group,), key in keys.items():
        method = str(document[key])
        positions = range(group * size, (group + 1) * size)
        calls = {part: _call(document, (group, of), method, sources) for part, of in _PARTS.items()}
        end = p.Merge(merge=tuple(p.LayerOf(model=name) for name in sources), by=calls["norms"])
        ends |= {"embed": ends.get("embed", end), "norm": end, "head": end}
        if method in _METHOD_NOTES:
            span = f"L{positions[0]}..L{positions[-1]}"
            notes.append(Note(key, _METHOD_NOTES[method].format(span)))
        for n in positions:
            merge = tuple(p.LayerOf(model=name, layer=n) for name in sources)
            recipes = {part: p.Merge(merge=merge, by=call) for part, call in calls.items()}
            entries += [p.Layer(position=n, part=of, recipe=r) for of, r in recipes.items()]
    models = {"base": _BASES.get(layers, "./base"), **sources}
    return models, {**ends, "layers": tuple(entries)}, notes


def _call(
    document: _Choices, where: tuple[int, str], method: str, sources: Mapping[str, str]
) -> p.MethodCall:
    """Return the method of a group of layers, with the arguments of one of its parameter sets."""
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
            message = _slerp_message(document, start, sources)
        raise ConversionError(message, place=f"layer_selection_method_{group}")
    return p.MethodCall(name=method, arguments=arguments)


def _slerp_message(document: _Choices, start: str, sources: Mapping[str, str]) -> str:
    """Return why a slerp of several models can't be converted, and which two its code merges."""
    key = f"model_{{}}_{start.removesuffix('slerp_param')}slerp_param_slerp_t"
    shares = {name: _number(document, key.format(source)) for name, source in sources.items()}
    largest = sorted(shares, key=lambda name: -shares[name])[:2]
    pair = " and ".join(f"'{name}' ({shares[name]:.3g})" for name in largest)
    return (
        f"slerp merges the two models of the largest t there, {pair}, and the file doesn't say how "
        "they share; write these lines by hand, by slerp(t)"
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the plan of a file or write it, and print notes on standard error."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("file", type=Path, help="a released JSON file")
    parser.add_argument("-o", "--output", type=Path, metavar="PLAN",
        help="the plan to write; default: standard output")  # fmt: skip
    parser.add_argument("--layers", type=int, metavar="N",
        help="the base's number of layers, if the file doesn't determine it")  # fmt: skip
    parser.add_argument("--candidate", dest="candidates", action="append", default=[],
        metavar="SOURCE", help="a candidate, in the file's order; the file doesn't name "
        "its candidates; again for more")  # fmt: skip
    given = parser.parse_args(arguments)
    try:
        document = json.loads(given.file.read_text("utf-8"))
        plan, notes = from_paper(
            document, str(given.file), layers=given.layers, models=given.candidates
        )
        if given.output is None:
            print(gptailor.format(plan), end="")
        else:
            with given.output.open("x", encoding="utf-8") as file:
                file.write(gptailor.format(plan))
    except ConversionError as error:
        sys.exit(f"error: {error}")
    except (OSError, ValueError, RecursionError) as error:
        sys.exit(f"error: {given.file}: {error}")
    for note in notes:
        print(f"note: {note}", file=sys.stderr)


if __name__ == "__main__":
    main()
