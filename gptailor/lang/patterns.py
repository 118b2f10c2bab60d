"""Recipes for lists of layers, from the statements that contain them."""

from dataclasses import dataclass, replace
from typing import final

from gptailor.lang import draft as d
from gptailor.lang import tree
from gptailor.lang.calls import Spanned, method_of, model_of
from gptailor.plan import plan as p
from gptailor.plan.faults import Place, Span
from gptailor.plan.sites import has_curve, layered, revalued, sources


@final
@dataclass(frozen=True, slots=True)
class Pattern:
    """A recipe for a list of layers: at its n-th target it takes the n-th of each source's layers.

    `layers` are those of each source, None for embedding, norm and head.
    """

    recipe: p.Recipe
    layers: tuple[d.Positions | None, ...]
    spans: dict[Place, Span]

    def at(self, n: int) -> p.Recipe:
        """Return the recipe for the n-th target."""
        return layered(self.recipe, [each.at[n].number if each else None for each in self.layers])

    def over(self, first: int, last: int) -> "Pattern":
        """Return the pattern with its curves over these positions, unless they have their own."""
        if not has_curve(self.recipe):
            return self
        recipe = revalued(self.recipe, lambda value: p.over_positions(value, first, last))
        return replace(self, recipe=recipe)

    def all_spans(self, n: int) -> dict[Place, Span]:
        """Return the spans of the n-th target's recipe: the common ones, and its source layers."""
        spans = dict(self.spans)
        for (where, _), positions in zip(sources(self.recipe), self.layers, strict=True):
            if positions is not None and not isinstance(self.recipe, p.Subset):
                spans["recipe", *where, "layer"] = positions.at[n].span
        return spans


def models_pattern(draft: d.Draft, origin: tree.From, at: d.Positions | None) -> Pattern | None:
    """Return the pattern of `from math`, `from math, code by …`, `from any of math, code`."""
    spans = Spanned({}, ("recipe",))
    before = len(draft.faults)
    how = method_of(draft, origin.by, spans.inside("by")) if origin.by else None
    named = origin.models
    picks: list[tree.Word | tree.OneOf] = []
    picks += [named] if isinstance(named, tree.OneOf) else named.names
    places: list[Place]
    if isinstance(named, tree.AnyOf):
        places = [("any_of", i) for i in range(len(picks))]
    elif origin.by is not None:
        places = [("merge", k, "model") for k in range(len(picks))]
    else:
        places = [("take", "model")] * len(picks)
        if len(picks) > 1:
            draft.fault("P307", "several models are given, and no method to merge them",
                        named.span, "add 'by' and a method, such as 'by linear()'")  # fmt: skip
    models = tuple(
        model_of(pick, spans.inside(*place)) for pick, place in zip(picks, places, strict=True)
    )
    if len(draft.faults) > before:
        return None
    layers = tuple(p.built(p.LayerOf, model=model, layer=None) for model in models)
    recipe: p.Recipe = p.built(p.Take, take=layers[0])
    if isinstance(named, tree.AnyOf):
        names = tuple(word.text for word in named.names)
        recipe = p.built(p.Subset, any_of=names, layer=None, by=how)
    elif how is not None:
        recipe = p.built(p.Merge, merge=layers, share=None, by=how)
    return Pattern(recipe, (at,) * len(models), spans.spans)


def picked_pattern(draft: d.Draft, picked: tree.Picked, *, taker: str = "") -> Pattern | None:
    """Return the pattern of `L12 code`, `L12 one of (code, chat)`."""
    at = d.positions_of(draft, picked.layers, taker=taker)
    spans = Spanned({}, ("recipe",))
    model = model_of(picked.model, spans.inside("take", "model"))
    recipe = p.built(p.Take, take=p.built(p.LayerOf, model=model, layer=None))
    return Pattern(recipe, (at,), spans.spans) if at is not None else None


def merging_pattern(draft: d.Draft, node: tree.Merging, *, taker: str = "") -> Pattern | None:
    """Return the pattern of `merge(L12 code, L14 chat, 0.5) by …`."""
    spans = Spanned({}, ("recipe",))
    spans.note(node.span)
    before = len(draft.faults)
    lists = [d.positions_of(draft, source.layers, taker=taker) for source in node.sources]
    layers = []
    for k, source in enumerate(node.sources):
        model = model_of(source.model, spans.inside("merge", k, "model"))
        layers.append(p.built(p.LayerOf, model=model, layer=None))
    how = method_of(draft, node.by, spans.inside("by")) if node.by else None
    share = _share(draft, node, spans)
    positions = tuple(at for at in lists if at is not None)
    if len(draft.faults) == before:
        for other in positions[1:]:
            d.in_step(draft, positions[0], other)
    if len(draft.faults) > before:
        return None
    recipe = p.built(p.Merge, merge=tuple(layers), share=share, by=how)
    return Pattern(recipe, positions, spans.spans)


def _share(draft: d.Draft, node: tree.Merging, spans: Spanned) -> p.Value | None:
    if not node.shares:
        return None
    spans.note(node.shares[0].span, "share")
    if len(node.shares) > 1 or len(node.sources) != 2:
        numbers = d.count_words(len(node.shares), "number")
        named = d.count_words(len(node.sources), "source")
        draft.fault("P308", f"merge has {numbers} for {named}", node.shares[0].span,
                    "a number is the second source's share; for other merges write "
                    "'by linear(…)' with a number for each source")  # fmt: skip
        return None
    if node.by is not None:
        draft.fault("P308", "merge has a number and a method", node.shares[0].span,
                    "give the number to the method, or leave 'by' out")  # fmt: skip
        return None
    return d.value_of(draft, node.shares[0])
