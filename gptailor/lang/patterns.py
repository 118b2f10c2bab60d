"""Recipes for lists of layers, from the statements that contain them."""

from dataclasses import dataclass, replace
from typing import final

from gptailor.lang import draft as d
from gptailor.lang import tree
from gptailor.lang.calls import Spanned, method_of, model_of
from gptailor.plan import plan as p
from gptailor.plan.faults import Place, Span
from gptailor.plan.sites import has_curve, revalued


@final
@dataclass(frozen=True, slots=True)
class Pattern:
    """A recipe for a list of layers: at its n-th target it takes the n-th of each source's layers.

    `models` of a source is a name or choice; `layers` is None for embedding, norm and head.
    """

    kind: str  # "take", "merge" or "any_of"
    models: tuple[str | p.OneOfModels, ...]
    layers: tuple[d.Positions | None, ...]
    spans: dict[Place, Span]
    by: p.By | None = None
    share: p.Value | None = None

    def recipe(self, n: int) -> p.Recipe:
        """Return the recipe for the n-th target."""
        at = [positions.at[n].number if positions else None for positions in self.layers]
        if self.kind == "any_of":
            names = tuple(m for m in self.models if isinstance(m, str))
            return p.built(p.Subset, any_of=names, layer=at[0], by=self.by)
        both = zip(self.models, at, strict=True)
        sources = tuple(p.built(p.LayerOf, model=model, layer=layer) for model, layer in both)
        if self.kind == "take":
            return p.built(p.Take, take=sources[0])
        return p.built(p.Merge, merge=sources, share=self.share, by=self.by)

    def over(self, first: int, last: int) -> "Pattern":
        """Return the pattern with its curves over these positions, unless they have their own."""
        own = p.built(p.Merge, merge=(), share=self.share, by=self.by)
        if not has_curve(own):
            return self
        extended = revalued(own, lambda value: p.over_positions(value, first, last))
        assert isinstance(extended, p.Merge)
        return replace(self, share=extended.share, by=extended.by)

    def all_spans(self, n: int) -> dict[Place, Span]:
        """Return the spans of the n-th target's recipe: the common ones, and its source layers."""
        spans = dict(self.spans)
        for k, positions in enumerate(self.layers):
            if positions is not None and self.kind != "any_of":
                where = ("take",) if self.kind == "take" else ("merge", k)
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
        kind, places = "any_of", [("any_of", i) for i in range(len(picks))]
    elif origin.by is not None:
        kind, places = "merge", [("merge", k, "model") for k in range(len(picks))]
    else:
        kind, places = "take", [("take", "model")] * len(picks)
        if len(picks) > 1:
            draft.fault("P307", "several models are given, and no method to merge them",
                        named.span, "add 'by' and a method, such as 'by linear()'")  # fmt: skip
    models = tuple(
        model_of(pick, spans.inside(*place)) for pick, place in zip(picks, places, strict=True)
    )
    pattern = Pattern(kind, models, (at,) * len(models), spans.spans, how)
    return pattern if len(draft.faults) == before else None


def picked_pattern(draft: d.Draft, picked: tree.Picked, *, taker: str = "") -> Pattern | None:
    """Return the pattern of `L12 code`, `L12 one of (code, chat)`."""
    at = d.positions_of(draft, picked.layers, taker=taker)
    spans = Spanned({}, ("recipe",))
    model = model_of(picked.model, spans.inside("take", "model"))
    return Pattern("take", (model,), (at,), spans.spans) if at is not None else None


def merging_pattern(draft: d.Draft, node: tree.Merging, *, taker: str = "") -> Pattern | None:
    """Return the pattern of `merge(L12 code, L14 chat, 0.5) by …`."""
    spans = Spanned({}, ("recipe",))
    spans.note(node.span)
    before = len(draft.faults)
    lists = [d.positions_of(draft, source.layers, taker=taker) for source in node.sources]
    models = tuple(
        model_of(source.model, spans.inside("merge", k, "model"))
        for k, source in enumerate(node.sources)
    )
    how = method_of(draft, node.by, spans.inside("by")) if node.by else None
    share = _share(draft, node, spans)
    positions = tuple(at for at in lists if at is not None)
    if len(draft.faults) == before:
        for other in positions[1:]:
            d.in_step(draft, positions[0], other)
    if len(draft.faults) > before:
        return None
    return Pattern("merge", models, positions, spans.spans, how, share)


def _share(draft: d.Draft, node: tree.Merging, spans: Spanned) -> p.Value | None:
    if not node.shares:
        return None
    spans.note(node.shares[0].span, "share")
    if len(node.shares) > 1 or len(node.sources) != 2:
        numbers = d.count_words(len(node.shares), "number")
        sources = d.count_words(len(node.sources), "source")
        draft.fault("P308", f"merge has {numbers} for {sources}", node.shares[0].span,
                    "a number is the second source's share; for other merges write "
                    "'by linear(…)' with a number for each source")  # fmt: skip
        return None
    if node.by is not None:
        draft.fault("P308", "merge has a number and a method", node.shares[0].span,
                    "give the number to the method, or leave 'by' out")  # fmt: skip
        return None
    return d.value_of(draft, node.shares[0])
