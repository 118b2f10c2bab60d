"""Layers, numbers, methods and recipes of the tree into those of the plan."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

from gptailor.lang import tree
from gptailor.lang.draft import MOST_ENTRIES, Draft
from gptailor.plan import plan as p
from gptailor.plan.faults import Fault, Place, Span, nearest
from gptailor.plan.registry import METHODS, Method

_PARTS = ("attn", "mlp")


@dataclass(frozen=True, slots=True)
class At:
    """One layer that a list names: its own word at the ends of a range, else the range."""

    number: int
    span: Span
    range: Span


@dataclass(frozen=True, slots=True)
class Positions:
    """The layers that a list names, all of one part or all whole."""

    at: tuple[At, ...]
    part: p.Part | None
    span: Span

    @property
    def numbers(self) -> tuple[int, ...]:
        """The layer numbers."""
        return tuple(at.number for at in self.at)


# ------------------------------------------------------------------------------------------ layers


def positions_of(draft: Draft, layers: tree.Layers, *, whole: str = "") -> Positions | None:
    """The layers of a list; `whole` says what takes whole layers only. None if there is a fault."""
    before = len(draft.faults)
    parts = {r.part.text if r.part else None for r in layers.ranges}
    for r in layers.ranges:
        _check_part(draft, r, whole)
    if len(parts) > 1 and len(draft.faults) == before:
        draft.fault("P205", "this list names whole layers and parts, or two parts", layers.span,
                    "write a statement for each part")  # fmt: skip
    at = tuple(_expanded(draft, layers))
    if len(draft.faults) > before:
        return None
    return Positions(at, cast("p.Part | None", parts.pop()), layers.span)


def _check_part(draft: Draft, r: tree.Range, whole: str) -> None:
    if r.part is None:
        return
    if whole:
        draft.fault("P206", f"{whole} takes whole layers, not the part '.{r.part.text}'",
                    Span(r.part.span.start - 1, r.part.span.end))  # fmt: skip
    elif r.part.text not in _PARTS:
        draft.fault("P205", f"a layer has no part '{r.part.text}'", r.part.span,
                    nearest(r.part.text, _PARTS) or "the parts are 'attn' and 'mlp'")  # fmt: skip


def _expanded(draft: Draft, layers: tree.Layers) -> Iterator[At]:
    seen: set[int] = set()
    for r in layers.ranges:
        if not _sound(draft, r):
            continue
        numbers = range(r.first.number, r.last.number + 1)
        draft.entries += len(numbers)
        if draft.entries > MOST_ENTRIES:
            if draft.entries - len(numbers) <= MOST_ENTRIES:
                draft.fault("P214", f"the plan names more than {MOST_ENTRIES} layers", r.span)
            continue
        if repeated := seen.intersection(numbers):
            draft.fault("P202", f"L{min(repeated)} stands twice in this list", r.span)
        seen.update(numbers)
        for number in numbers:
            ends = {r.first.number: r.first.span, r.last.number: r.last.span}
            yield At(number, ends.get(number, r.span), r.span)


def is_a_layer(draft: Draft, word: tree.LayerWord) -> bool:
    """Whether a layer's number is one that models have; a fault if not."""
    if word.number > p.LARGEST_LAYER:
        draft.fault("P214", f"layer numbers end at {p.LARGEST_LAYER}", word.span)
        return False
    return True


def _sound(draft: Draft, r: tree.Range) -> bool:
    if not all(is_a_layer(draft, word) for word in (r.first, r.last)):
        return False
    if r.first.number > r.last.number:
        first, last = r.first.number, r.last.number
        draft.fault("P201", f"the range L{first}..L{last} descends", r.span,
                    f"write L{last}..L{first}")  # fmt: skip
        return False
    return True


# ----------------------------------------------------------------------------------------- numbers


def value_of(draft: Draft, numeral: tree.Numeral) -> p.Value | None:
    """A number or a choice of numbers; None, with a fault, if one of them is not finite."""
    if isinstance(numeral, tree.Fixed):
        return _finite(draft, numeral)
    fixed = numeral.options if isinstance(numeral, tree.OneNumber) else (numeral.low, numeral.high)
    numbers = [_finite(draft, number) for number in fixed]
    if any(number is None for number in numbers):
        return None
    found = tuple(number for number in numbers if number is not None)
    if isinstance(numeral, tree.OneNumber):
        return p.OneOfNumbers(one_of=found)
    return p.Interval(interval=(found[0], found[1]))


def _finite(draft: Draft, number: tree.Fixed) -> int | float | None:
    if math.isinf(number.value):
        draft.fault("P306", "the number is too large for a float", number.span)
        return None
    return number.value


def whole_number(draft: Draft, number: tree.Fixed, what: str, least: int = 0) -> int | None:
    """A whole number; a fault and None if it isn't one."""
    if isinstance(number.value, int) and least <= number.value < 2**63:
        return number.value
    draft.fault("P310", f"{what} is a whole number from {least} up", number.span)
    return None


# ----------------------------------------------------------------------------------------- methods


@dataclass(slots=True)
class Spanned:
    """Spans gathered under a place."""

    spans: dict[Place, Span]
    at: Place = ()

    def note(self, span: Span, *place: str | int) -> None:
        """This place inside has that span."""
        self.spans[self.at + place] = span

    def inside(self, *place: str | int) -> "Spanned":
        """The same spans, seen from a place inside."""
        return Spanned(self.spans, self.at + place)


def method_of(draft: Draft, how: tree.CallNode | tree.OneCall, spans: Spanned) -> p.By | None:
    """A method, or a choice of methods."""
    spans.note(how.span)
    if isinstance(how, tree.CallNode):
        return call(draft, how, spans)
    calls = [call(draft, c, spans.inside("one_of", i)) for i, c in enumerate(how.options)]
    if any(c is None for c in calls):
        return None
    return p.OneOfMethods(one_of=tuple(c for c in calls if c is not None))


def call(draft: Draft, node: tree.CallNode, spans: Spanned) -> p.MethodCall | None:
    """A method with its arguments bound to their names."""
    spans.note(node.span)
    spans.note(node.name.span, "name")
    method = METHODS.get(node.name.text)
    before = len(draft.faults)
    arguments: dict[str, p.Value | tuple[p.Value, ...]] = {}
    for name, givens in _bound(draft, node, method).items():
        spans.note(givens[0].span.to(givens[-1].span), "arguments", name)
        numbers = tuple(_number(draft, given) for given in givens)
        found = tuple(number for number in numbers if number is not None)
        variadic = method is not None and method.variadic and method.variadic.name == name
        if variadic:
            for i, given in enumerate(givens):
                spans.note(given.span, "arguments", name, i)
        if found:
            arguments[name] = found if variadic else found[0]
    if len(draft.faults) > before:
        return None
    return p.MethodCall(name=node.name.text, arguments=arguments)


def _bound(
    draft: Draft, node: tree.CallNode, method: Method | None
) -> dict[str, tuple[tree.ArgumentNode, ...]]:
    """Each argument under its name; an unknown method keeps its named ones for the check."""
    positional = [given for given in node.arguments if given.name is None]
    bound: dict[str, tuple[tree.ArgumentNode, ...]] = {}
    if method is not None and positional:
        if method.variadic:
            bound[method.variadic.name] = tuple(positional)
        else:
            free = [parameter.name for parameter in method.parameters]
            bound |= {n: (g,) for n, g in zip(free, positional, strict=False)}
            if len(positional) > len(free):
                draft.fault(
                    "P305",
                    f"'{method.name}' takes {_count(len(free), 'argument')}, not {len(positional)}",
                    positional[len(free)].span,
                    f"its arguments are {', '.join(free)}" if free else "",
                )
    _named(draft, node, bound)
    return bound


def _count(n: int, noun: str) -> str:
    return f"{n or 'no'} {noun}{'' if n == 1 else 's'}"


def _named(
    draft: Draft, node: tree.CallNode, bound: dict[str, tuple[tree.ArgumentNode, ...]]
) -> None:
    named = False
    for given in node.arguments:
        if given.name is not None:
            if given.name.text in bound:
                message = f"'{given.name.text}' is given twice"
                draft.fault("P305", message, given.span)
            bound.setdefault(given.name.text, (given,))
        elif named:
            draft.fault("P305", "an argument without a name stands after one with a name",
                        given.span)  # fmt: skip
        named |= given.name is not None


def _number(draft: Draft, given: tree.ArgumentNode) -> p.Value | None:
    if isinstance(given.value, tree.String | tree.Word):
        word = given.value.text
        draft.fault("P306", f"a number is needed, '{word}' is none", given.value.span)
        return None
    return value_of(draft, given.value)


# ----------------------------------------------------------------------------------------- recipes


def model_of(names: tree.Names, spans: Spanned) -> str | p.OneOfModels:
    """One model, or a choice of one."""
    spans.note(names.span)
    if names.how == "all":
        return names.names[0].text
    for i, word in enumerate(names.names):
        spans.note(word.span, "one_of", i)
    return p.OneOfModels(one_of=tuple(word.text for word in names.names))


@dataclass(frozen=True, slots=True)
class Pattern:
    """A recipe for a list of layers: at its n-th target it takes the n-th of each source's layers.

    `models` of a source is a name or choice; `layers` is None for what has no layers.
    """

    kind: str  # "take", "merge" or "any_of"
    models: tuple[str | p.OneOfModels, ...]
    layers: tuple[Positions | None, ...]
    share: p.Value | None
    by: p.By | None
    spans: dict[Place, Span]

    def recipe(self, n: int) -> p.Recipe:
        """The recipe for the n-th target."""
        at = [positions.at[n].number if positions else None for positions in self.layers]
        if self.kind == "any_of":
            names = tuple(m for m in self.models if isinstance(m, str))
            return p.Subset(any_of=names, layer=at[0], by=self.by)
        sources = tuple(
            p.LayerOf(model=model, layer=layer)
            for model, layer in zip(self.models, at, strict=True)
        )
        if self.kind == "take":
            return p.Take(take=sources[0])
        return p.Merge(merge=sources, share=self.share, by=self.by)

    def layer_spans(self, n: int) -> Iterator[tuple[Place, Span]]:
        """The spans of the n-th target's source layers."""
        for k, positions in enumerate(self.layers):
            if positions is not None and self.kind != "any_of":
                where = ("take",) if self.kind == "take" else ("merge", k)
                yield ("recipe", *where, "layer"), positions.at[n].span


def from_models(draft: Draft, origin: tree.From, at: Positions | None) -> Pattern | None:
    """`from math`, `from math, code by linear()`, `from any of math, code by …`."""
    spans = Spanned({}, ("recipe",))
    before = len(draft.faults)
    how = method_of(draft, origin.by, spans.inside("by")) if origin.by else None
    names = origin.models
    if names.how == "any":
        for i, word in enumerate(names.names):
            spans.note(word.span, "any_of", i)
        kind, models = "any_of", tuple(word.text for word in names.names)
        pattern = Pattern(kind, models, (at,) * len(models), None, how, spans.spans)
        return _unless(draft, before, pattern)
    if names.how == "all" and len(names.names) > 1 and origin.by is None:
        draft.fault("P307", "several models are given, and no method to merge them", names.span,
                    "add 'by' and a method, such as 'by linear()'")  # fmt: skip
    kind = "take" if origin.by is None else "merge"
    found: list[str | p.OneOfModels] = []
    words = (names,) if names.how == "one" else _each(names)
    for k, each in enumerate(words):
        where = ("take",) if kind == "take" else ("merge", k)
        found.append(model_of(each, spans.inside(*where, "model")))
    pattern = Pattern(kind, tuple(found), (at,) * len(found), None, how, spans.spans)
    return _unless(draft, before, pattern)


def _each(names: tree.Names) -> tuple[tree.Names, ...]:
    return tuple(tree.Names("all", (word,), word.span) for word in names.names)


def _unless(draft: Draft, before: int, pattern: Pattern) -> Pattern | None:
    return pattern if len(draft.faults) == before else None


def from_picked(draft: Draft, picked: tree.Picked, *, whole: str = "") -> Pattern | None:
    """`L14 chat`."""
    at = positions_of(draft, picked.layers, whole=whole)
    if at is None:
        return None
    spans = Spanned({}, ("recipe",))
    found = model_of(picked.model, spans.inside("take", "model"))
    return Pattern("take", (found,), (at,), None, None, spans.spans)


def from_merging(draft: Draft, node: tree.Merging, *, whole: str = "") -> Pattern | None:
    """`merge(L12 code, L14 chat, 0.5) by …`."""
    spans = Spanned({}, ("recipe",))
    spans.note(node.span)
    before = len(draft.faults)
    lists = [positions_of(draft, source.layers, whole=whole) for source in node.sources]
    models = tuple(
        model_of(source.model, spans.inside("merge", k, "model"))
        for k, source in enumerate(node.sources)
    )
    how = method_of(draft, node.by, spans.inside("by")) if node.by else None
    share = _share(draft, node, spans)
    if len(draft.faults) > before:
        return None
    found = tuple(at for at in lists if at is not None)
    for other in found[1:]:
        in_step(draft, found[0], other)
    return _unless(draft, before, Pattern("merge", models, found, share, how, spans.spans))


def _share(draft: Draft, node: tree.Merging, spans: Spanned) -> p.Value | None:
    if not node.shares:
        return None
    spans.note(node.shares[0].span, "share")
    many = len(node.shares) > 1
    if many or len(node.sources) != 2:
        numbers, sources = _count(len(node.shares), "number"), _count(len(node.sources), "source")
        draft.fault("P308", f"merge has {numbers} for {sources}", node.shares[0].span,
                    "one number is the second of two sources' share; for others write "
                    "'by linear(…)' with a number for each source")  # fmt: skip
        return None
    if node.by is not None:
        draft.fault("P308", "merge has a number and a method", node.shares[0].span,
                    "give the number to the method, or leave 'by' out")  # fmt: skip
        return None
    return value_of(draft, node.shares[0])


def in_step(draft: Draft, first: Positions, other: Positions) -> bool:
    """Both lists have one length and name one part."""
    if first.part != other.part:
        draft.fault("P204", f"{_part(other.part)} stands beside {_part(first.part)}", other.span,
                    "the target and all sources name the same part, or none")  # fmt: skip
    elif len(first.at) != len(other.at):
        lengths = f"{_count(len(other.at), 'layer')} here, {_count(len(first.at), 'layer')} there"
        draft.faults.append(Fault("P203", f"lists of unequal length: {lengths}", span=other.span,
                    help="targets and sources go in step; nothing is broadcast"))  # fmt: skip
    else:
        return True
    return False


def _part(part: str | None) -> str:
    return f"the part '.{part}'" if part else "a whole layer"
