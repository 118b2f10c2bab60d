"""A closed plan as a mergekit configuration: `to_mergekit`.

Output layers are joined to slices (`slices`), or are all layers of `models` where the plan says so
by `whole`; what differs between a layer's parts, or between the layers and the rest of the model,
is said by filters on Llama's tensor names.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from typing import Any, final

import yaml  # type: ignore[import-untyped,unused-ignore]

from gptailor.checkpoint.chat_template import read_template
from gptailor.checkpoint.files import CheckpointError
from gptailor.checkpoint.models import folder_of
from gptailor.convert.mergekit.methods import MERGEKIT_METHODS, same_method
from gptailor.convert.mergekit.mixture import MergekitMethod
from gptailor.convert.mergekit.pieces import layer_pieces
from gptailor.convert.mergekit.slices import BESIDE, SHARED, SaidLayer, written_slices
from gptailor.convert.mergekit.stages import refuse_beside_stages, stage_plan, stages_of
from gptailor.convert.mergekit.writing import method_call
from gptailor.convert.note import ConversionError, Unsayable, dotted
from gptailor.plan import layers as outline
from gptailor.plan.faults import Place
from gptailor.plan.needed import needed
from gptailor.plan.plan import Curve, LayerOf, Merge, Plan, Recipe, Take, TemplateOf
from gptailor.plan.registry import CHAT_TEMPLATES
from gptailor.plan.resolved import Resolved
from gptailor.plan.walk import named_models, open_choices, values
from gptailor.plan.written import written_out

_Row = dict[str, Recipe]
"""An output layer: the recipes of its parts, and of the rest that is made of its slice."""

_FORGOTTEN = (
    "the first layer has fewer sources than the last, whose number mergekit then takes for the "
    "final norm and the head"
)

_UNKNOWN = "the base's number of layers isn't known"
_SAY_LAYERS = "'--layers N' says how many layers the base has"


def to_mergekit(plan: Plan, layers: int | None = None) -> str:
    """The YAML that makes mergekit merge what a plan says, on models named like Llama's.

    Models that are made of others are documents of their own, each before those that name it.
    `layers` is the base's number of layers, which an overlay needs. Raises ConversionError for
    what mergekit can't say, with the place in the plan.
    """
    last = _document(plan, layers)
    stages: dict[str, dict[str, Any]] = {}
    for name in needed(plan, stages_of(plan, last)):
        if plan.models[name].made is not None:
            stages[name] = {"name": name, **_stage(plan, name, layers)}
    if stages:
        refuse_beside_stages(plan, [*stages], [*stages.values(), last])
    return str(yaml.dump_all([*stages.values(), last], Dumper=_Dumper, sort_keys=False,
                             allow_unicode=True, width=100))  # fmt: skip


def _stage(plan: Plan, name: str, layers: int | None) -> dict[str, Any]:
    """The document of a model that is made of others, by one recipe for everything."""
    stage = stage_plan(plan, name)
    try:
        found = _document(stage, layers or 1)
    except ConversionError as error:
        place = error.place if error.place.startswith("models.") else f"models.{name}"
        raise replace(error, place=place) from error
    curved = any(isinstance(value, Curve) for _, value in values(stage))
    if layers is None and ("slices" in found or curved):
        raise ConversionError(_UNKNOWN, place=f"models.{name}", help=_SAY_LAYERS)
    return found


def _document(plan: Plan, layers: int | None) -> dict[str, Any]:
    """A plan as one document."""
    says_whole = plan.whole is not None
    slots = _kept(plan, layers)
    plan = written_out(plan, layers or 0)
    rows: list[_Row] = layer_pieces(slots)
    for where, row in (("embed", rows[0]), ("norm", rows[-1]), ("head", rows[-1])):
        row[where] = plan.rest(where) or Take(take=LayerOf(model="base"))
    method = _method(slots, rows)
    said = list(_said_layers(plan, method, slots, rows))
    if len(said[0].models) < len(said[-1].models):
        raise ConversionError(_FORGOTTEN, place="layers")
    slices = written_slices(said)
    base = _reference(plan, "base")
    whole = says_whole and _is_whole(slices, base, layers)
    document: dict[str, Any] = {
        "merge_method": method.name,
        "base_model": base,
        **(_as_models(slices[0]) if whole else {"slices": slices}),
    }
    if plan.dtype is not None:  # merges are computed in float32, as here
        merges = {"dtype": "float32", "out_dtype": plan.dtype}
        once = method.name == "passthrough" or plan.dtype == "float32"
        document |= {"dtype": plan.dtype} if once else merges
    if plan.tokenizer == "union":
        _refuse_other_rows(plan, method, rows, slices)
        document["tokenizer_source"] = "union"
    elif isinstance(plan.tokenizer, Take) and isinstance(plan.tokenizer.take.model, str):
        document["tokenizer_source"] = _reference(plan, plan.tokenizer.take.model)
    if plan.chat_template is not None:
        document["chat_template"] = _template(plan)
    return document


def _is_whole(slices: Sequence[Mapping[str, Any]], base: str, layers: int | None) -> bool:
    """Whether all layers of all models are one slice, whose base is the file's and among them.

    mergekit adds a base that isn't to `models`, where `linear` and others have no place for it.
    """
    spans = [source["layer_range"] for one in slices for source in one["sources"]]
    there = any(source["model"] == base for source in slices[0]["sources"])
    return there and "base_model" not in slices[0] and all(span == [0, layers] for span in spans)


def _as_models(one: Mapping[str, Any]) -> dict[str, Any]:
    """The same without ranges: mergekit then takes all layers that the models have."""
    models = [{k: v for k, v in source.items() if k != "layer_range"} for source in one["sources"]]
    return {"models": models, **{k: v for k, v in one.items() if k != "sources"}}


def _refuse_other_rows(
    plan: Plan, method: MergekitMethod, rows: Sequence[_Row], slices: Sequence[dict[str, Any]]
) -> None:
    """Raise ConversionError where mergekit would make a token's row of other models than the plan.

    It makes the rows that a model lacks of those of the slice's models, whatever their weight.
    """
    every = {_reference(plan, name) for name in plan.models}
    for where, row, one in (("embed", rows[0], slices[0]), ("head", rows[-1], slices[-1])):
        names = {name for _, name, _ in named_models(row[where])}
        names |= {"base"} if isinstance(row[where], Merge) and method.base_beside else set()
        there = {source["model"] for source in one["sources"]}
        if there != every or "base_model" in one or names not in ({"base"}, set(plan.models)):
            message = (
                f"mergekit makes the rows that the {where} lacks of the models of a slice, and the "
                "plan of all its models"
            )
            help_ = "merge all models in the first layer and the last, the embedding and the head"
            raise ConversionError(message, place="tokenizer", help=help_)


def _template(plan: Plan) -> str:
    """A chat template: by its name, or what its file holds."""
    said = plan.chat_template or ""
    if isinstance(said, TemplateOf):
        message = "mergekit takes the template that most models have, not the one of a model"
        help_ = "write it to a file, and name that"
        raise ConversionError(message, place="chat_template", help=help_)
    if said in CHAT_TEMPLATES:
        return said
    try:
        return read_template(folder_of(plan, said))
    except CheckpointError as error:
        message = f"{error.message} ({error.path})"
        raise ConversionError(message, place="chat_template", help=error.help) from error


def _kept(plan: Plan, layers: int | None) -> list[outline.Slot]:
    """The output's layers; a ConversionError for statements that mergekit hasn't."""
    if open_choices(plan):
        raise ConversionError("the plan has open choices, and mergekit has none")
    for name, entries in (("scale", plan.scales), ("bridge", plan.bridges)):
        if entries:
            raise ConversionError(f"mergekit has nothing like '{name}'", place=f"{name}s[0]")
    if plan.heal is not None:
        raise ConversionError("mergekit has nothing like 'heal'", place="heal")
    if plan.stack is None and layers is None:
        raise ConversionError(_UNKNOWN, help=_SAY_LAYERS)
    return list(Resolved(plan, layers or 0).kept)


def _method(slots: Sequence[outline.Slot], rows: Sequence[_Row]) -> MergekitMethod:
    found: dict[str, Place] = {}
    made = [(one.recipe, one.at) for slot in slots for one in slot.made.values()]
    ends = [(row[where], (where,)) for row in rows for where in BESIDE if where in row]
    for recipe, at in [*made, *ends]:
        if isinstance(recipe, Merge):
            found.setdefault(method_call(recipe).name, at)
    if not found:
        return MERGEKIT_METHODS["passthrough" if all(map(_agrees, rows)) else "linear"]
    name, *others = found
    if others:
        two = f"'{name}' and '{others[0]}'"
        message = f"mergekit has one merge_method in a file, and these are {two}"
        raise ConversionError(message, place=dotted(found[others[0]]))
    method = same_method(name)
    if method is None:
        message = f"mergekit has no '{name}' that gives the same tensors"
        raise ConversionError(message, place=dotted(found[name]))
    return method


def _agrees(row: _Row) -> bool:
    """Whether all of a row, which has no merges, is of one layer of one model."""
    takes = [(where, recipe.take) for where, recipe in row.items() if isinstance(recipe, Take)]
    layers = {take.layer for where, take in takes if where not in BESIDE}
    return len({take.model for _, take in takes}) == len(layers) == 1


def _models(method: MergekitMethod, row: _Row, plan: Plan) -> list[str]:
    """The models of a slice, in the recipes' order; the base first, where it stands beside them."""
    orders = [[name for _, name, _ in named_models(recipe)] for recipe in row.values()]
    models = _in_order(orders)
    if method.base_beside:
        return ["base", *(name for name in models if name != "base")]
    if method.base == "first":
        if len(models) == 1:
            models += [name for name in plan.models if name not in models][:1]
        if len(models) > 2:
            named = f"{', '.join(models)}: mergekit's {method.name}"
            raise Unsayable(f"{named} takes two models in a slice")
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


def _said_layers(
    plan: Plan, method: MergekitMethod, slots: Sequence[outline.Slot], rows: Sequence[_Row]
) -> Iterator[SaidLayer]:
    """Each output layer; the first has the last one's models too, where they have weights."""
    for n, row in enumerate(rows):
        try:
            models = _models(method, row, plan)
            if n == 0 and "weight" in method.by_source:
                models = list(dict.fromkeys([*models, *_models(method, rows[-1], plan)]))
            yield _said_layer(plan, method, row, models)
        except Unsayable as why:
            place = next((dotted(m.at) for m in slots[n].made.values() if m.at), f"layers[{n}]")
            raise ConversionError(str(why), place=place) from None


def _said_layer(plan: Plan, method: MergekitMethod, row: _Row, models: Sequence[str]) -> SaidLayer:
    assert method.write is not None
    layers = tuple(_layer(row, model) for model in models)
    said: dict[tuple[int, str], dict[str, Any]] = {}
    for where, recipe in row.items():
        own, shared = method.write(recipe, models)
        for k, name in [(k, n) for k in range(len(models)) for n in method.by_source]:
            if name in own[k]:
                said.setdefault((k, name), {})[where] = own[k][name]
        for name in method.shared:
            if name in shared:
                said.setdefault((SHARED, name), {})[where] = shared[name]
    other = method.base == "first" and models[0] != "base"
    base = _reference(plan, models[0]) if other else None
    return SaidLayer(tuple(_reference(plan, model) for model in models), layers, base, said)


def _layer(row: _Row, model: str) -> int:
    """The layer of a model that a row reads: one, as a slice has one range for a model."""
    inner = [recipe for where, recipe in row.items() if where not in BESIDE]
    named = [[(name, layer) for _, name, layer in named_models(recipe)] for recipe in inner]
    every = [(name, layer) for pairs in named for name, layer in pairs if layer is not None]
    own = [layer for name, layer in every if name == model]
    if len(set(own)) > 1:
        raise Unsayable(f"two layers of '{model}' in one, which mergekit refuses")
    for pairs in named:
        names = [name for name, _ in pairs]
        if len(set(names)) < len(names):
            twice = ", ".join(names)
            raise Unsayable(f"a model twice in one merge ({twice}), which mergekit refuses")
    return own[0] if own else every[0][1]


def _reference(plan: Plan, name: str) -> str:
    """`owner/name@revision+adapter`; a model that is made of others by its name."""
    model = plan.models[name]
    if model.made is not None:
        return name
    if not model.source or model.source.endswith(".tailor"):
        message = f"'{name}' is made by a plan, which mergekit has no model for"
        help_ = "compile it, and name its folder"
        raise ConversionError(message, place=f"models.{name}", help=help_)
    for text in (model.source, model.revision or ""):
        if "+" in text or "@" in text:
            message = f"'{text}' has a '+' or '@', which mergekit reads as something else"
            raise ConversionError(message, place=f"models.{name}")
    said = model.source + (f"@{model.revision}" if model.revision is not None else "")
    if model.on is None:
        return said
    if plan.models[model.on].on is not None:
        raise ConversionError("mergekit has one adapter to a model", place=f"models.{name}")
    return f"{_reference(plan, model.on)}+{said}"


@final
class _Dumper(yaml.SafeDumper):  # type: ignore[misc,unused-ignore]
    """YAML with lists of numbers on one line, and without aliases."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


_Dumper.add_representer(list, lambda dumper, data: dumper.represent_sequence(
    "tag:yaml.org,2002:seq", data, flow_style=all(isinstance(one, int | float) for one in data)
))  # fmt: skip
