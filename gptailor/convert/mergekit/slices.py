"""Output layers as mergekit's slices: equal neighbours joined, numbers along the depth as lists."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, final

from gptailor.plan.written import curve_at

BESIDE = ("embed", "norm", "head")
"""What of a model is beside its layers."""

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
"""Words in the names of a part's tensors, the first of which decides; the MLP has what is left."""

_MOST_KNOTS = 16
_DIGITS = 12
"""Significant digits of a knot between two layers, which no layer has."""

SHARED = -1
"""The block of a slice's own parameters; those of its sources are numbered from 0."""

Said = Mapping[tuple[int, str], Mapping[str, Any]]
"""The values of each block's parameters, by what of the layer (or beside the layers) has them."""


@final
@dataclass(frozen=True)
class SaidLayer:
    """An output layer: a layer of each of some models, and what the parameters are there.

    `said` has values of the layer's parts; that of the first layer also those of `embed`, that of
    the last those of `norm` and `head`. `base_model` is there where it is another than the file's.
    """

    models: tuple[str, ...]
    layers: tuple[int, ...]
    base_model: str | None
    said: Said

    def follows(self, other: "SaidLayer") -> bool:
        """Whether it has the next layers of the same models, and values of the same parameters."""
        after = tuple(layer + 1 for layer in other.layers)
        alike = (self.models, self.layers, self.base_model) == (
            other.models, after, other.base_model,
        )  # fmt: skip
        return alike and _parts(self.said, bool) == _parts(other.said, bool)


def _parts(said: Said, kind: type = object) -> dict[tuple[int, str, str], Any]:
    """The values of a layer's parts; with `bool` only which there are."""
    found = {(*key, where): v for key, of in said.items() for where, v in of.items()}
    return {k: v if kind is object else True for k, v in found.items() if k[2] not in BESIDE}


def written_slices(layers: Sequence[SaidLayer]) -> list[dict[str, Any]]:
    """The slices of some output layers, as few as there can be."""
    return [_slice(group) for stretch in _stretches(layers) for group in _groups(stretch)]


def _stretches(layers: Sequence[SaidLayer]) -> Iterator[list[SaidLayer]]:
    """Neighbours that one slice may have, should their numbers lie on lines."""
    found = [layers[0]]
    for before, one in pairwise(layers):
        if not one.follows(before):
            yield found
            found = []
        found.append(one)
    yield found


def _groups(stretch: Sequence[SaidLayer]) -> list[list[SaidLayer]]:
    """A stretch whole where lists say it with fewer numbers than slices; else its equal runs.

    Of these, neighbours of one layer each are tried again.
    """
    runs: list[list[SaidLayer]] = []
    for one in stretch:
        if runs and _parts(runs[-1][-1].said) == _parts(one.said):
            runs[-1].append(one)
        else:
            runs.append([one])
    if len(runs) < 3 or _lists(stretch, len(runs)):
        return [list(stretch)] if len(runs) > 2 else runs
    found: list[list[SaidLayer]] = []
    alone: list[SaidLayer] = []
    for run in [*runs, []]:
        if len(run) == 1:
            alone += run
            continue
        whole = len(alone) > 2 and _lists(alone, len(alone))
        found += [alone] if whole else [[one] for one in alone]
        found += [run] if run else []
        alone = []
    return found


def _lists(layers: Sequence[SaidLayer], most: int) -> bool:
    """Whether at most so many numbers for each parameter say what it is in each layer."""
    return all(
        not isinstance(value := knots_of([_parts(one.said)[key] for one in layers]), list)
        or 0 < len(value) <= most
        for key in _parts(layers[0].said)
    )


def knots_of(values: Sequence[Any]) -> Any:
    """One value where all are equal; else a list between whose numbers mergekit finds all.

    It is the shortest that gives each number to the last bit; an empty one: none does.
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
    """The number at a place between layers, on the line through the two before it."""
    before = int(at)
    if before == at:
        return values[before]
    left = max(before - 1, 0)
    slope = values[left + 1] - values[left]
    return float(f"{values[left] + slope * (at - left):.{_DIGITS}g}")


def _slice(group: Sequence[SaidLayer]) -> dict[str, Any]:
    first = group[0]
    sources = []
    for k, (model, layer) in enumerate(zip(first.models, first.layers, strict=True)):
        said = {"model": model, "layer_range": [layer, layer + len(group)]}
        sources.append(said | _parameters(group, k))
    found: dict[str, Any] = {"sources": sources}
    if first.base_model is not None:
        found["base_model"] = first.base_model
    return found | _parameters(group, SHARED)


def _parameters(group: Sequence[SaidLayer], block: int) -> dict[str, Any]:
    """A block's parameters, if any: a value each, or values with filters where parts differ."""
    found: dict[str, Any] = {}
    names = dict.fromkeys(name for one in group for of, name in one.said if of == block)
    for name in names:
        each = [one.said.get((block, name), {}) for one in group]
        wheres = dict.fromkeys(where for of in each for where in of)
        needed = {w: knots_of([of[w] for of in each if w in of]) for w in wheres}
        main = needed.get("mlp", needed.get("mlp.projections", next(iter(needed.values()))))
        others = [] if "mlp" in needed else [value for value in needed.values() if value != main]
        said = [(rest, _filters(needed, rest)) for rest in [main, *others]]
        rest, filters = min(said, key=lambda one: len(one[1]))
        found[name] = [*filters, {"value": rest}] if filters else rest
    return {"parameters": found} if found else {}


def _filters(needed: Mapping[str, Any], rest: Any) -> list[dict[str, Any]]:
    """Filters for what isn't the rest; what is beside the layers gets a list's first number.

    A projection's stands before that of all its branch has left, and is needed where they differ.
    """
    begin = rest[0] if isinstance(rest, list) else rest
    left = {where: begin if where in BESIDE else rest for where in needed}
    for where in needed:
        branch, _, role = where.partition(".")
        if role not in ("", "projections", "norm"):
            left[where] = needed.get(f"{branch}.projections", rest)
    return [
        {"filter": filter_, "value": value}
        for where, value in needed.items()
        for filter_ in _FILTERS.get(where, ())
        if value != left[where]
    ]
