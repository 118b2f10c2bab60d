"""A closed plan as a mergekit configuration: `to_mergekit`.

Each output layer is a slice by itself or a run of them; what differs between a layer's parts, or
between the layers and the rest of the model, is said by filters on Llama's tensor names.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml  # type: ignore[import-untyped,unused-ignore]

from gptailor.convert.mergekit.words import WRITERS, Words, calls_of
from gptailor.convert.note import ConversionError, Unsayable, dotted
from gptailor.plan import layers as outline
from gptailor.plan.faults import Place
from gptailor.plan.plan import LayerOf, Plan, Recipe, Take
from gptailor.plan.walk import open_choices

_FILTERS = {
    "attn": ("self_attn", "input_layernorm"),
    "embed": ("embed_tokens",),
    "norm": ("model.norm",),
    "head": ("lm_head",),
}
"""Words that stand in the names of a part's tensors alone; the MLP's value is the others'."""


def to_mergekit(plan: Plan, layers: int | None = None) -> str:
    """The YAML that makes mergekit merge what a plan says, on models named like Llama's.

    `layers` is the base's number of layers, which an overlay needs. Raises ConversionError for
    what mergekit can't say, with the place in the plan.
    """
    _no_other_statements(plan)
    slots = _slots(plan, layers)
    rows = [_Row({part: slot.part(part).recipe for part in outline.PARTS}) for slot in slots]
    ends = {w: plan.rest(w) or Take(take=LayerOf(model="base")) for w in ("embed", "norm", "head")}
    method = _method(slots, rows, ends)
    ends_of = [("embed", 0), ("norm", len(rows) - 1), ("head", len(rows) - 1)]
    for where, n in ends_of:
        rows[n].ends[where] = ends[where]
    words = WRITERS[method]
    last = words.models(rows[-1].recipes, plan.models)
    pieces = []
    for n, row in enumerate(rows):
        try:
            models = words.models(row.recipes, plan.models)
            if n == 0 and "weight" in words.by_source:
                models = list(dict.fromkeys([*models, *last]))
            pieces.append(_piece(row, words, models))
        except Unsayable as why:
            place = next((dotted(m.at) for m in slots[n].made.values() if m.at), f"layers[{n}]")
            raise ConversionError(str(why), place=place) from None
    _head_keeps_its_sources(pieces)
    document: dict[str, Any] = {
        "merge_method": method,
        "base_model": _reference(plan, "base"),
        "slices": [_said(plan, piece) for piece in _runs(pieces)],
        **_output(plan, merges=method != "passthrough"),
    }
    return str(yaml.dump(document, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100))


# ----------------------------------------------------------------------------- what can't be said


def _no_other_statements(plan: Plan) -> None:
    if open_choices(plan):
        raise ConversionError("the plan has open choices, and mergekit has none")
    for name, entries in (("scales", plan.scales), ("bridges", plan.bridges)):
        if entries:
            message = f"mergekit has nothing like '{name.removesuffix('s')}'"
            raise ConversionError(message, place=f"{name}[0]")


def _slots(plan: Plan, layers: int | None) -> list[outline.Slot]:
    if plan.stack is None and layers is None:
        message = "the base's number of layers isn't known"
        raise ConversionError(message, help="say how many layers the base has")
    return outline.kept(plan, layers or 0)


def _method(
    slots: Sequence[outline.Slot], rows: Sequence["_Row"], ends: Mapping[str, Recipe]
) -> str:
    """The one method of mergekit's that says all recipes."""
    found: dict[str, Place] = {}
    made = [one for slot in slots for one in slot.made.values()]
    recipes = [(one.recipe, one.at) for one in made] + [(r, (where,)) for where, r in ends.items()]
    for recipe, at in recipes:
        for name in calls_of(recipe):
            found.setdefault(name, at)
    if not found:
        return "passthrough" if _agree(rows, ends) else "linear"
    name, *others = found
    if others:
        message = (
            f"mergekit has one merge_method in a file, and these are '{name}' and '{others[0]}'"
        )
        raise ConversionError(message, place=dotted(found[others[0]]))
    if name not in WRITERS:
        message = f"mergekit has no '{name}' that gives the same tensors"
        raise ConversionError(message, place=dotted(found[name]))
    return name


def _agree(rows: Sequence["_Row"], ends: Mapping[str, Recipe]) -> bool:
    """Whether every slice is one model's, the rest of the model included."""
    for n, row in enumerate(rows):
        models = {_model(recipe) for recipe in row.parts.values()}
        layers = {r.take.layer for r in row.parts.values() if isinstance(r, Take)}
        models |= {_model(ends["embed"])} if n == 0 else set()
        models |= {_model(ends[w]) for w in ("norm", "head")} if n == len(rows) - 1 else set()
        if len(models) > 1 or len(layers) > 1:
            return False
    return True


def _model(recipe: Recipe) -> object:
    return recipe.take.model if isinstance(recipe, Take) else recipe


# ------------------------------------------------------------------------------------- the slices


@dataclass(frozen=True)
class _Row:
    """An output layer: the recipes of its parts, and of what else is made of its slice."""

    parts: Mapping[str, Recipe]
    ends: dict[str, Recipe] = field(default_factory=dict)

    @property
    def recipes(self) -> list[Recipe]:
        """All of them."""
        return [*self.parts.values(), *self.ends.values()]


@dataclass
class _Piece:
    """A slice: its sources as (model, first layer), how long it is, their parameters."""

    sources: list[tuple[str, int]]
    of_sources: list[dict[str, Any]]
    shared: dict[str, Any]
    base: str | None
    length: int = 1

    def continues(self, other: "_Piece") -> bool:
        """Whether this is the other's next layer."""
        then = [(model, first + other.length) for model, first in other.sources]
        same = (self.of_sources, self.shared, self.base) == (
            other.of_sources,
            other.shared,
            other.base,
        )
        return same and self.sources == then


def _piece(row: _Row, words: Words, models: Sequence[str]) -> _Piece:
    """A slice for a layer, and for the rest that is made with it."""
    recipes: dict[str, Recipe] = {**row.parts, **row.ends}
    layers = [_layer(row, model) for model in models]
    said = {where: words.parameters(recipe, models) for where, recipe in recipes.items()}
    shared, of_sources = {}, [dict[str, Any]() for _ in models]
    for name in words.shared:
        shared[name] = _filtered({w: s.shared.get(name) for w, s in said.items()})
    for name in words.by_source:
        for k, parameters in enumerate(of_sources):
            values = {w: s.of_sources[k].get(name) for w, s in said.items()}
            parameters[name] = _filtered(values)
    shared = {name: value for name, value in shared.items() if value is not None}
    kept = [{n: v for n, v in p.items() if v is not None} for p in of_sources]
    base = models[0] if words.base_first and models[0] != "base" else None
    return _Piece(list(zip(models, layers, strict=True)), kept, shared, base)


def _layer(row: _Row, model: str) -> int:
    """The layer of a model that a row reads: one, as a slice has one range for a model."""
    named = [pair for recipe in row.parts.values() for pair in outline.named_sources(recipe)]
    own = [layer for name, layer in named if name == model and layer is not None]
    every = [layer for _, layer in named if layer is not None]
    if len(set(own)) > 1:
        raise Unsayable(f"two layers of '{model}' in one, which mergekit refuses")
    for recipe in row.parts.values():
        names = [name for name, _ in outline.named_sources(recipe)]
        if len(set(names)) < len(names):
            raise Unsayable(
                f"a model twice in one merge ({', '.join(names)}), which mergekit refuses"
            )
    return own[0] if own else every[0]


def _filtered(values: Mapping[str, Any]) -> Any:
    """One value, or a list of values with filters where parts differ."""
    needed = {where: value for where, value in values.items() if value is not None}
    if not needed:
        return None
    rest = needed.get("mlp", next(iter(needed.values())))
    filters = [
        {"filter": filter_, "value": value}
        for where, value in needed.items()
        for filter_ in _FILTERS.get(where, ())
        if value != rest
    ]
    return [*filters, {"value": rest}] if filters else rest


def _head_keeps_its_sources(pieces: Sequence[_Piece]) -> None:
    """mergekit forgets sources of norm and head where the first slice has fewer than the last."""
    first, last = pieces[0], pieces[-1]
    if len(first.sources) < len(last.sources):
        message = (
            "the first layer has fewer sources than the last, whose number mergekit then takes "
            "for the final norm and the head"
        )
        raise ConversionError(message, place="layers")


def _runs(pieces: Sequence[_Piece]) -> Iterator[_Piece]:
    """Neighbours that go in step, joined."""
    run = pieces[0]
    for piece in pieces[1:]:
        if piece.continues(run):
            run.length += 1
        else:
            yield run
            run = piece
    yield run


# ------------------------------------------------------------------------------- as mergekit has it


def _said(plan: Plan, piece: _Piece) -> dict[str, Any]:
    sources = []
    for (model, first), parameters in zip(piece.sources, piece.of_sources, strict=True):
        source = {"model": _reference(plan, model), "layer_range": [first, first + piece.length]}
        sources.append(source | ({"parameters": parameters} if parameters else {}))
    said: dict[str, Any] = {"sources": sources}
    if piece.base is not None:
        said["base_model"] = _reference(plan, piece.base)
    return said | ({"parameters": piece.shared} if piece.shared else {})


def _reference(plan: Plan, name: str) -> str:
    """`owner/name@revision+adapter`."""
    model = plan.models[name]
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


def _output(plan: Plan, *, merges: bool) -> dict[str, Any]:
    """dtype and tokenizer: merges are computed in float32, as here."""
    said: dict[str, Any] = {}
    if plan.dtype is not None:
        said |= {"dtype": "float32", "out_dtype": plan.dtype} if merges else {"dtype": plan.dtype}
    if isinstance(plan.tokenizer, Take) and isinstance(plan.tokenizer.take.model, str):
        said["tokenizer_source"] = _reference(plan, plan.tokenizer.take.model)
    return said


class _Dumper(yaml.SafeDumper):  # type: ignore[misc,unused-ignore]
    """YAML with lists of numbers on one line, and without aliases."""

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def represent_list(self, data: Any) -> Any:
        """A list; one of numbers within brackets."""
        flow = all(isinstance(item, int | float) for item in data)
        return self.represent_sequence("tag:yaml.org,2002:seq", data, flow_style=flow)


_Dumper.add_representer(list, _Dumper.represent_list)
