"""A closed plan as a mergekit configuration: `export_mergekit`.

Output layers are joined to slices, or are all layers of `models` where the plan has `whole`.
Differences between a layer's parts, or between the layers and the rest of the model, are filters on
Llama's tensor names; numbers that change along the depth are lists.

Models that are made of others are documents of their own: mergekit-multi makes a document with a
`name` before those that name it as a model. It takes any text of a document that equals such a name
for that model.
"""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import combinations, groupby, pairwise
from pathlib import Path
from typing import Any, final

import yaml  # type: ignore[import-untyped,unused-ignore]

from gptailor.checkpoint.files import CheckpointError
from gptailor.checkpoint.models import folder_of, is_local
from gptailor.checkpoint.tokenizer_settings import read_template
from gptailor.lang.importers import ConversionError
from gptailor.lang.parse import plan_or_file
from gptailor.plan.arguments import Positive
from gptailor.plan.faults import Origin, Place, dotted
from gptailor.plan.layer_parts import BRANCHES, NORMS, Branch, is_pattern
from gptailor.plan.model_dependencies import needed
from gptailor.plan.plan import (
    Curve,
    LayerOf,
    Merge,
    Plan,
    Recipe,
    Take,
    TemplateOf,
    Whole,
    is_at_url,
)
from gptailor.plan.registry import CHAT_TEMPLATES, DTYPES
from gptailor.plan.resolved import Resolved, Slot
from gptailor.plan.sites import named_models, open_choices, values
from gptailor.plan.written_out import curve_at
from gptailor.plugins.mergekit.methods import (
    MERGEKIT_METHODS,
    InexpressibleError,
    MergekitMethod,
    SliceRecipe,
    method_call,
)

_ENDS = ("embed", "norm", "head")
_STAGE_DTYPE = "float32"
"""The dtype of stages, so that nothing is rounded between them."""
_REFERENCES = ("model", "base_model")
"""Keys of a document that name a model."""

_UNKNOWN = "the base's number of layers is unknown"
_HOW_TO_COUNT = "give the number of the base's layers by --layers N"
_HOW_TO_USE = "compile the plan, and name its folder as a model in mergekit's file"

_PartRecipes = dict[str, Recipe]
"""The recipes of an output layer's parts; `embed`, `norm` and `head` belong to the outer layers.

Parts are `attn`, or `attn.projections` and `attn.norm` with projections such as `attn.q`, and so on
for `mlp`.
"""


def export_mergekit(plan: Plan | str | Path, layers: Positive | None = None) -> str:
    """Return the YAML of a plan or its file for mergekit, its filters for names like Llama's.

    Models made of other models are documents of their own, each before the documents that name it.
    `layers` is the base's number of layers, which an overlay needs. Raises ConversionError for
    statements without an equivalent, with the place in the plan.
    """
    return mergekit_text(plan_or_file(plan), layers)


def mergekit_text(plan: Plan, layers: int | None, *, tied: bool = False) -> str:
    """Return the YAML of a plan, as `export_mergekit` does.

    With `tied` the base's head is its embedding, so an output without a `head` has no head to take.
    """
    try:
        last = _document(plan, layers, tied=tied)
        stages: dict[str, dict[str, Any]] = {}
        paths = (text.partition("+")[0] for key, text in _texts(last) if key in _REFERENCES)
        models = [path for path in dict.fromkeys(paths) if path in plan.models]
        for name in needed(plan, [path for path in models if plan.models[path].made is not None]):
            if (recipe := plan.models[name].made) is not None:
                stages[name] = {"name": name, **_stage(plan, name, recipe, layers)}
        if stages:
            _refuse_beside_stages(plan, [*stages], [*stages.values(), last])
        return str(yaml.dump_all([*stages.values(), last], Dumper=_Dumper, sort_keys=False,
                                 allow_unicode=True, width=100))  # fmt: skip
    except ConversionError as error:
        raise _with_line(error, Resolved(plan, layers or 0).plan.origin) from error


def _with_line(error: ConversionError, origin: Origin | None) -> ConversionError:
    """Return an error with the line of its place in the plan's text, if the plan has one."""
    words = re.findall(r"[^.\[\]]+", error.place)
    at = tuple(int(word) if word.isdigit() else word for word in words)
    if origin is None or (span := origin.span(at)) is None:
        return error
    line, _ = origin.source.position(span.start)
    return replace(error, name=origin.source.name, line=line, in_plan=True)


@final
class _Dumper(yaml.SafeDumper):  # type: ignore[misc,unused-ignore]
    """YAML with lists of numbers on one line, and without aliases."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


_Dumper.add_representer(list, lambda dumper, data: dumper.represent_sequence(
    "tag:yaml.org,2002:seq", data, flow_style=all(isinstance(x, int | float) for x in data)
))  # fmt: skip


# ---------------------------------------------------------------------------------------- documents


def _document(plan: Plan, layers: int | None, *, tied: bool = False) -> dict[str, Any]:
    """Return a plan as one document."""
    has_whole = plan.whole is not None
    _refuse_inexpressible(plan, layers)
    resolved = Resolved(plan, layers or 0)
    slots, plan = resolved.kept, resolved.plan
    if not slots:
        raise ConversionError(
            "expected a plan that keeps a layer, got one that drops all layers",
            place="drops[0]",
            help="keep at least one layer",
        )
    rows = _recipes_of_parts(slots)
    ends = [("embed", rows[0]), ("norm", rows[-1]), ("head", rows[-1])]
    headless = tied and plan.rest("head") is None
    for where, row in ends[:2] if headless else ends:
        row[where] = plan.rest(where) or Take(take=LayerOf(model="base"))
    method = _method(slots, rows)
    exported = list(_exported_layers(plan, method, slots, rows))
    if len(exported[0].models) < len(exported[-1].models):
        raise ConversionError(
            "the first layer has fewer sources than the last, and mergekit takes the last's number "
            "for the final norm and the head",
            place="layers",
        )
    slices = [_slice(group) for run in _consecutive(exported) for group in _groups(run)]
    base = _reference(plan, "base")
    document: dict[str, Any] = {"merge_method": method.name, "base_model": base}
    if has_whole and _is_whole(slices, base, layers):
        document |= _as_models(slices[0])
    else:
        document["slices"] = slices
    if plan.dtype is not None:  # merges are computed in float32, as here
        if method.name == "passthrough" or plan.dtype == "float32":
            document["dtype"] = plan.dtype
        else:
            document |= {"dtype": "float32", "out_dtype": plan.dtype}
    if plan.tokenizer == "union":
        _refuse_other_rows(plan, method, rows, slices)
        document["tokenizer_source"] = "union"
    elif isinstance(plan.tokenizer, Take) and isinstance(plan.tokenizer.take.model, str):
        document["tokenizer_source"] = _reference(plan, plan.tokenizer.take.model)
    if plan.chat_template is not None:
        document["chat_template"] = _chat_template(plan)
    return document


def _refuse_inexpressible(plan: Plan, layers: int | None) -> None:
    """Raise ConversionError for statements without an equivalent."""
    if open_choices(plan):
        raise ConversionError("the plan has open choices, which mergekit can't express")
    fits = {"scale": plan.scales, "bridge": plan.bridges}
    places = {name: f"{name}s[0]" for name, entries in fits.items() if entries}
    places |= {
        name: name for name in (*plan.text_fits, *(["heal"] if plan.heal is not None else []))
    }
    for name, place in places.items():
        raise ConversionError(f"mergekit can't express '{name}'", place=place, help=_HOW_TO_USE)
    if plan.stack is None and layers is None:
        raise ConversionError(_UNKNOWN, help=_HOW_TO_COUNT)


def _method(slots: Sequence[Slot], rows: Sequence[_PartRecipes]) -> MergekitMethod:
    """Return the one method of the document."""
    places: dict[str, Place] = {}
    recipes = [(entry.recipe, entry.at) for slot in slots for entry in slot.recipes.values()]
    recipes += [(row[where], (where,)) for row in rows for where in _ENDS if where in row]
    for recipe, at in recipes:
        if isinstance(recipe, Merge):
            places.setdefault(method_call(recipe).name, at)
    if not places:
        return MERGEKIT_METHODS["passthrough" if all(map(_is_one_layer, rows)) else "linear"]
    name, *others = places
    if others:
        two = f"'{name}' and '{others[0]}'"
        raise ConversionError(
            f"mergekit has one merge_method in a file, but the plan has {two}",
            place=dotted(places[others[0]]),
            help=_HOW_TO_USE,
        )
    method = next(
        (m for m in MERGEKIT_METHODS.values() if m.here == name and m.write is not None), None
    )
    if method is None:
        differs = next((m.differs for m in MERGEKIT_METHODS.values() if m.here == name), "")
        message = f"mergekit has no method '{name}'"
        if differs:
            message = f"mergekit can't reproduce '{name}': {differs}"
        raise ConversionError(message, place=dotted(places[name]), help=_HOW_TO_USE)
    return method


def _is_one_layer(row: _PartRecipes) -> bool:
    """Return whether all parts of a row without merges come from one layer of one model."""
    takes = [(where, recipe.take) for where, recipe in row.items() if isinstance(recipe, Take)]
    layers = {take.layer for where, take in takes if where not in _ENDS}
    return len({take.model for _, take in takes}) == len(layers) == 1


def _is_whole(slices: Sequence[Mapping[str, Any]], base: str, layers: int | None) -> bool:
    """Return whether one slice has all layers of all models, and the file's base among them.

    mergekit adds a missing base to `models`, where `linear` and others have no place for it.
    """
    ranges = [source["layer_range"] for piece in slices for source in piece["sources"]]
    has_base = any(source["model"] == base for source in slices[0]["sources"])
    return has_base and "base_model" not in slices[0] and all(r == [0, layers] for r in ranges)


def _as_models(piece: Mapping[str, Any]) -> dict[str, Any]:
    """Return a slice as `models`, without ranges."""
    models = [
        {key: value for key, value in source.items() if key != "layer_range"}
        for source in piece["sources"]
    ]
    return {"models": models, **{key: v for key, v in piece.items() if key != "sources"}}


def _refuse_other_rows(
    plan: Plan,
    method: MergekitMethod,
    rows: Sequence[_PartRecipes],
    slices: Sequence[dict[str, Any]],
) -> None:
    """Raise ConversionError where mergekit makes a token's row from other models than the plan.

    mergekit fills rows that a model lacks from the slice's models, whatever their weight.
    """
    every = {_reference(plan, name) for name in plan.models}
    ends = [("embed", rows[0], slices[0]), ("head", rows[-1], slices[-1])]
    for where, row, piece in (end for end in ends if end[0] in end[1]):
        names = {name for _, name, _ in named_models(row[where])}
        names |= {"base"} if isinstance(row[where], Merge) and method.base_beside else set()
        models = {source["model"] for source in piece["sources"]}
        if models != every or "base_model" in piece or names not in ({"base"}, set(plan.models)):
            raise ConversionError(
                f"mergekit makes missing rows of the {where} from the models of a slice, the plan "
                "from all its models",
                place="tokenizer",
                help="merge all models in the first layer and the last, the embedding and the head",
            )


def _chat_template(plan: Plan) -> str:
    """Return the name of a chat template, or the text in its file."""
    template = plan.chat_template or ""
    if isinstance(template, TemplateOf):
        raise ConversionError(
            "mergekit takes the template that most models have, not a model's template",
            place="chat_template",
            help="write it to a file, and name the file",
        )
    if template in CHAT_TEMPLATES:
        return template
    try:
        return read_template(folder_of(plan, template))
    except CheckpointError as error:
        raise ConversionError(
            f"{error.message} ({error.path})", place="chat_template", help=error.help
        ) from error


def _reference(plan: Plan, name: str) -> str:
    """Return a model as `owner/name@revision+adapter`; a made model by its name."""
    model = plan.models[name]
    if model.made is not None:
        return name
    if not model.source or model.source.endswith(".tailor"):
        raise ConversionError(
            f"'{name}' is a plan's output, which mergekit can't read",
            place=f"models.{name}",
            help="compile it, and name its folder",
        )
    local = is_local(model.source) and not is_at_url(model.source)
    source = _path_from_here(plan, model.source) if local else model.source
    for text in (source, model.revision or ""):
        if "+" in text or "@" in text:
            raise ConversionError(
                f"'{text}' has a '+' or '@', which mergekit misreads",
                place=f"models.{name}",
            )
    reference = source + (f"@{model.revision}" if model.revision is not None else "")
    if model.on is None:
        return reference
    if plan.models[model.on].on is not None:
        raise ConversionError("mergekit allows one adapter for each model", place=f"models.{name}")
    return f"{_reference(plan, model.on)}+{reference}"


def _path_from_here(plan: Plan, source: str) -> str:
    """Return a local source as mergekit reads it: relative to the folder that it runs in."""
    path = Path(os.path.abspath(folder_of(plan, source)))  # noqa: PTH100 (links stay)
    here = Path.cwd()
    return f"./{path.relative_to(here).as_posix()}" if path.is_relative_to(here) else str(path)


# ------------------------------------------------------------------------------- models of models


def _stage(plan: Plan, name: str, recipe: Recipe, layers: int | None) -> dict[str, Any]:
    """Return the document of a model that one recipe makes of other models."""
    stage = Plan(
        models=plan.models, numbers=plan.numbers, dtype=_STAGE_DTYPE, whole=Whole(recipe=recipe)
    )
    try:
        document = _document(stage, layers or 1)
    except ConversionError as error:
        place = error.place if error.place.startswith("models.") else f"models.{name}"
        raise replace(error, place=place) from error
    has_curve = any(isinstance(value, Curve) for _, value in values(stage))
    if layers is None and ("slices" in document or has_curve):
        raise ConversionError(_UNKNOWN, place=f"models.{name}", help=_HOW_TO_COUNT)
    return document


def _refuse_beside_stages(
    plan: Plan, stages: Sequence[str], documents: Sequence[Mapping[str, Any]]
) -> None:
    """Raise ConversionError for settings that mergekit reads differently in a file with stages."""
    if plan.tokenizer is not None:
        raise ConversionError(
            "each of mergekit's stages has a tokenizer of its own, the base's",
            place="tokenizer",
            help=f"compile '{stages[0]}' alone, and name its folder",
        )
    if plan.dtype is None:
        raise ConversionError(
            f"'{stages[0]}' is made of models, as a stage in {_STAGE_DTYPE}, and without a dtype "
            "mergekit writes the output as wide as its sources are, not as the base is",
            place="dtype",
            help=f"write 'dtype' with the base's dtype: {', '.join(DTYPES)}",
        )
    for name, model in plan.models.items():
        if model.made is None and model.on is None and model.source in stages:
            raise ConversionError(
                f"mergekit would use the merged model in place of '{model.source}'",
                place=f"models.{name}",
                help=f"give 'model {model.source}' another name",
            )
    for key, text in (pair for document in documents for pair in _texts(document)):
        if key in (*_REFERENCES, "name"):
            continue
        if (path := text.partition("+")[0].partition("@")[0]) in stages:
            raise ConversionError(
                f"mergekit would read '{text}' as the model, not as the document's {key}",
                place=f"models.{path}",
                help=f"give 'model {path}' another name",
            )
        if text.count("@") > 1 and text.count("+") < 2:  # mergekit stops at an impossible model
            raise ConversionError(
                "mergekit would read a template with several '@' as a model",
                place=key,
                help=f"compile '{stages[0]}' alone, and name its folder",
            )


def _texts(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Yield all texts of a document, each with its key."""
    if isinstance(value, str):
        yield key, value
    items = value if isinstance(value, list) else ()
    pairs = value.items() if isinstance(value, dict) else ((key, item) for item in items)
    for inner_key, inner in pairs:
        yield from _texts(inner, inner_key)


# -------------------------------------------------------------------------- parts and their filters

_NORM: Mapping[Branch, str] = {
    "attn": "input_layernorm.weight",
    "mlp": "post_attention_layernorm.weight",
}
_PROJECTIONS: Mapping[Branch, Mapping[str, str]] = {
    "attn": {f"attn.{role}": f"self_attn.{role}_proj.weight" for role in "qkvo"},
    "mlp": {f"mlp.{role}": f"mlp.{role}_proj.weight" for role in ("gate", "up", "down")},
}
"""Llama's tensors, which the filters match."""

_FILTERS = {
    "attn": ("self_attn", "input_layernorm"),
    **{f"attn.{role}": (f".{role}_proj",) for role in "qkvo"},
    "attn.projections": ("self_attn",),
    "attn.norm": ("input_layernorm",),
    **{f"mlp.{role}": (f".{role}_proj",) for role in ("gate", "up", "down")},
    "mlp.projections": (".mlp.",),
    "mlp.norm": ("post_attention_layernorm",),
    "embed": ("embed_tokens",),
    "norm": ("model.norm",),
    "head": ("lm_head",),
}
"""Filters of each part; the first that matches a tensor decides, and the MLP has the rest."""


def _recipes_of_parts(slots: Sequence[Slot]) -> list[_PartRecipes]:
    """Return the parts of each layer: the same in all layers, and as few as distinguish recipes.

    Raises ConversionError for a part that Llama's layers lack, or a pattern on other names.
    """
    known = {None, NORMS, *_PROJECTIONS, *_PROJECTIONS["attn"], *_PROJECTIONS["mlp"]}
    for slot in slots:
        for part, entry in slot.recipes.items():
            if part in known:
                continue
            message = (
                f"the part '{part}' isn't one of Llama's parts, for which mergekit has filters"
            )
            if is_pattern(part):
                message = f"the pattern {part} may match other tensors in mergekit"
            raise ConversionError(message, place=dotted(entry.at))
    levels = {branch: max(_level(slot, branch) for slot in slots) for branch in BRANCHES}
    return [
        {
            part: recipe
            for branch in BRANCHES
            for part, recipe in _branch_parts(slot, branch, levels[branch])
        }
        for slot in slots
    ]


def _level(slot: Slot, branch: Branch) -> int:
    """Return how finely a branch is split: whole (0), its norm apart (1), each projection (2)."""
    *projections, norm = [recipe for _, recipe in _branch_parts(slot, branch, 2)]
    if any(recipe != projections[0] for recipe in projections):
        return 2
    return int(norm != projections[0])


def _branch_parts(slot: Slot, branch: Branch, level: int) -> list[tuple[str, Recipe]]:
    """Return a branch's parts; a filter on a projection comes before that on the branch's rest."""
    coarse = norm = slot.part(branch).recipe
    projections: list[tuple[str, Recipe]] = [(name, coarse) for name in _PROJECTIONS[branch]]
    if slot.parted:
        projections = [
            (name, slot.tensor(branch, name, tensor).recipe)
            for name, tensor in _PROJECTIONS[branch].items()
        ]
        norm = slot.tensor(branch, NORMS, _NORM[branch]).recipe
    if level == 0:
        return [(branch, norm)]
    other = coarse if level == 2 else projections[0][1]
    parts = [(f"{branch}.projections", other), (f"{branch}.norm", norm)]
    return [*projections, *parts] if level == 2 else parts


# ------------------------------------------------------------------------------------------ layers

_SLICE = -1
"""The block of a slice's own parameters; its sources' blocks are numbered from 0."""


@final
@dataclass(frozen=True)
class _ExportedLayer:
    """An output layer: a layer of each of some models, and its parameters.

    `parameters` has each block's values by the layer's parts; the first layer also has `embed`'s
    values, the last layer `norm`'s and `head`'s. `base_model` is set where it isn't the file's.
    """

    models: tuple[str, ...]
    layers: tuple[int, ...]
    base_model: str | None
    parameters: Mapping[tuple[int, str], Mapping[str, Any]]

    def follows(self, other: "_ExportedLayer") -> bool:
        """Return whether it has the next layers of the same models, and the same parameters."""
        after = tuple(layer + 1 for layer in other.layers)
        return (self.models, self.layers, self.base_model, self.values.keys()) == (
            other.models, after, other.base_model, other.values.keys(),
        )  # fmt: skip

    @cached_property
    def values(self) -> dict[tuple[int, str, str], Any]:
        """The values of the layer's parts, by block, parameter and part."""
        return {
            (*key, part): value
            for key, by_part in self.parameters.items()
            for part, value in by_part.items()
            if part not in _ENDS
        }


def _exported_layers(
    plan: Plan,
    method: MergekitMethod,
    slots: Sequence[Slot],
    rows: Sequence[_PartRecipes],
) -> Iterator[_ExportedLayer]:
    """Yield each output layer; the first has the last one's models too, where they have weights."""
    for n, row in enumerate(rows):
        try:
            models = _slice_models(method, row, plan)
            if n == 0 and "weight" in method.by_source:
                models = list(dict.fromkeys([*models, *_slice_models(method, rows[-1], plan)]))
            yield _exported_layer(plan, method, row, models)
        except InexpressibleError as reason:
            place = next((dotted(e.at) for e in slots[n].recipes.values() if e.at), "")
            raise ConversionError(str(reason), place=place) from None


def _slice_models(method: MergekitMethod, row: _PartRecipes, plan: Plan) -> list[str]:
    """Return the models of a slice in the recipes' order, the base first if mergekit adds it."""
    models = _merged_order(
        [[name for _, name, _ in named_models(recipe)] for recipe in row.values()]
    )
    if method.base_beside:
        return ["base", *(name for name in models if name != "base")]
    if method.base == "first":
        if len(models) == 1:
            models += [name for name in plan.models if name not in models][:1]
        if len(models) > 2:
            raise InexpressibleError(
                f"{', '.join(models)}: mergekit's {method.name} takes two models in a slice"
            )
    return models


def _merged_order(orders: Sequence[Sequence[str]]) -> list[str]:
    """Return all names in an order that agrees with all orders, or else with the longest."""
    names = list(dict.fromkeys(name for order in sorted(orders, key=len)[::-1] for name in order))
    merged: list[str] = []
    while names:
        later = {b for order in orders for a, b in combinations(order, 2) if a in names}
        merged.append(next((name for name in names if name not in later), names[0]))
        names.remove(merged[-1])
    return merged


def _exported_layer(
    plan: Plan, method: MergekitMethod, row: _PartRecipes, models: Sequence[str]
) -> _ExportedLayer:
    assert method.write is not None
    layers = tuple(_layer_of(row, model) for model in models)
    parameters: dict[tuple[int, str], dict[str, Any]] = {}
    for part, recipe in row.items():
        blocks, shared = method.write(SliceRecipe(recipe, method, models))
        for k, block in (*enumerate(blocks), (_SLICE, shared)):
            for name in (name for name in method.parameters if name in block):
                parameters.setdefault((k, name), {})[part] = block[name]
    is_other_base = method.base == "first" and models[0] != "base"
    base = _reference(plan, models[0]) if is_other_base else None
    references = tuple(_reference(plan, model) for model in models)
    return _ExportedLayer(references, layers, base, parameters)


def _layer_of(row: _PartRecipes, model: str) -> int:
    """Return the one layer of a model that a row reads, or another model's if it reads no layer."""
    recipes = [recipe for part, recipe in row.items() if part not in _ENDS]
    sources = [[(name, layer) for _, name, layer in named_models(recipe)] for recipe in recipes]
    layers = [(name, layer) for pairs in sources for name, layer in pairs if layer is not None]
    own = [layer for name, layer in layers if name == model]
    if len(set(own)) > 1:
        raise InexpressibleError(f"mergekit refuses two layers of '{model}' in one merge")
    for pairs in sources:
        names = [name for name, _ in pairs]
        if len(set(names)) < len(names):
            raise InexpressibleError(
                f"a model twice in one merge ({', '.join(names)}), which mergekit refuses"
            )
    return own[0] if own else layers[0][1]


# ------------------------------------------------------------------------------------------ slices

_MOST_KNOTS = 16
_DIGITS = 12
"""Significant digits of a knot that lies between two layers."""


def _consecutive(layers: Sequence[_ExportedLayer]) -> list[Sequence[_ExportedLayer]]:
    """Return runs of layers that one slice may have, if their numbers lie on lines."""
    starts = [n for n in range(1, len(layers)) if not layers[n].follows(layers[n - 1])]
    return [layers[start:end] for start, end in pairwise([0, *starts, len(layers)])]


def _groups(run: Sequence[_ExportedLayer]) -> list[list[_ExportedLayer]]:
    """Return a run whole if its lists need fewer numbers than slices; else split where it changes.

    Neighbours that are alone after the split are tried as a run again.
    """
    equal = [list(group) for _, group in groupby(run, key=lambda layer: layer.values)]
    if len(equal) < 3:
        return equal
    if _fits_lists(run, len(equal)):
        return [list(run)]
    groups: list[list[_ExportedLayer]] = []
    for is_single, members in groupby(equal, key=lambda group: len(group) == 1):
        split = list(members)
        singles = [group[0] for group in split]
        joins = is_single and len(singles) > 2 and _fits_lists(singles, len(singles))
        groups += [singles] if joins else split
    return groups


def _fits_lists(layers: Sequence[_ExportedLayer], most: int) -> bool:
    """Return whether lists of at most `most` numbers give each parameter in each layer."""
    lists = (knots_of([layer.values[key] for layer in layers]) for key in layers[0].values)
    return all(not isinstance(knots, list) or 0 < len(knots) <= most for knots in lists)


def knots_of(values: Sequence[Any]) -> Any:
    """Return one value if all are equal; else a list from which mergekit interpolates each value.

    The list is the shortest that gives each number to the last bit; it may be empty.
    """
    first, *others = values
    if all(value == first for value in others):
        return first
    if any(isinstance(value, bool) for value in values):
        return []
    last = len(values) - 1
    for count in [*range(2, min(len(values), _MOST_KNOTS)), len(values)]:
        knots = [_knot(values, k * last / (count - 1)) for k in range(count)]
        if all(curve_at(knots, i, 0, last) == value for i, value in enumerate(values)):
            return knots
    return []


def _knot(values: Sequence[float], at: float) -> float:
    """Return the number at a place between layers, on the line through the two before it."""
    before = int(at)
    if before == at:
        return values[before]
    left = max(before - 1, 0)
    slope = values[left + 1] - values[left]
    return float(f"{values[left] + slope * (at - left):.{_DIGITS}g}")


def _slice(group: Sequence[_ExportedLayer]) -> dict[str, Any]:
    first = group[0]
    sources = [
        {"model": model, "layer_range": [layer, layer + len(group)], **_parameters(group, k)}
        for k, (model, layer) in enumerate(zip(first.models, first.layers, strict=True))
    ]
    base = {} if first.base_model is None else {"base_model": first.base_model}
    return {"sources": sources, **base, **_parameters(group, _SLICE)}


def _parameters(group: Sequence[_ExportedLayer], block: int) -> dict[str, Any]:
    """Return a block's parameters, if any: single values, or values with filters by part."""
    parameters: dict[str, Any] = {}
    for name in dict.fromkeys(n for layer in group for of, n in layer.parameters if of == block):
        each = [layer.parameters.get((block, name), {}) for layer in group]
        parts = dict.fromkeys(part for by_part in each for part in by_part)
        value_of = {
            part: knots_of([by_part[part] for by_part in each if part in by_part]) for part in parts
        }
        main = value_of.get("mlp", value_of.get("mlp.projections", next(iter(value_of.values()))))
        others = [] if "mlp" in value_of else [v for v in value_of.values() if v != main]
        candidates = [(default, _filters(value_of, default)) for default in [main, *others]]
        default, filters = min(candidates, key=lambda candidate: len(candidate[1]))
        parameters[name] = [*filters, {"value": default}] if filters else default
    return {"parameters": parameters} if parameters else {}


def _filters(value_of: Mapping[str, Any], default: Any) -> list[dict[str, Any]]:
    """Return filters for the parts with another value than `default`.

    Embedding, norm and head get a list's first number from mergekit. A projection's filter stands
    before the filter of its branch's other projections, and is needed where they differ.
    """
    first = default[0] if isinstance(default, list) else default
    unfiltered = {part: first if part in _ENDS else default for part in value_of}
    for part in value_of:
        branch, _, role = part.partition(".")
        if role not in ("", "projections", "norm"):
            unfiltered[part] = value_of.get(f"{branch}.projections", default)
    return [
        {"filter": word, "value": value}
        for part, value in value_of.items()
        for word in _FILTERS.get(part, ())
        if value != unfiltered[part]
    ]
