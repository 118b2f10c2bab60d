"""The plan while it is gathered, and what statements share: layers, numbers and methods."""

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast, final

from gptailor.lang import tree
from gptailor.plan import plan as p
from gptailor.plan.faults import Also, Fault, Origin, Place, Source, Span, nearest
from gptailor.plan.registry import METHODS, Method, Parameter

Spans = Mapping[Place, Span]

MOST_ENTRIES = 200_000
"""Positions that one file may name in all; more is a slip, and would fill the memory."""

_PLACES: Mapping[str, Place] = {"limit": ("stack", "limit")} | {
    name: ("search", name) for name in ("fidelity", "trials", "seed")
}
"""Where in a plan stands what can be said once, if not under its own name."""

_LISTS: dict[str, tuple[Place, Callable[[Any], Any] | None]] = {
    "layers": (("layers",), p.normal_order),
    "drops": (("drops",), p.normal_order),
    "drop_any": (("drop_any",), p.normal_order),
    "scales": (("scales",), p.normal_order),
    "bridges": (("bridges",), p.normal_order),
    "items": (("stack", "items"), None),
    "objectives": (("search", "objectives"), None),
}
"""A plan's lists, where they stand, and their order if it isn't the text's."""


@final
@dataclass(slots=True)
class Placed:
    """An entry of the plan and the spans inside it."""

    entry: Any
    spans: Spans


@final
@dataclass(slots=True)
class Draft:
    """What was gathered so far."""

    single: dict[str, Placed] = field(default_factory=dict)
    models: dict[str, Placed] = field(default_factory=dict)
    lists: dict[str, list[Placed]] = field(default_factory=lambda: defaultdict(list))
    faults: list[Fault] = field(default_factory=list)
    groups: int = 0  # `tied` statements
    entries: int = 0  # positions named

    def fault(self, code: str, message: str, span: Span, help_: str = "", *also: Also) -> None:
        """Note a fault."""
        self.faults.append(Fault(code, message, span=span, help=help_, also=also))

    def once(self, name: str, value: object, span: Span, spans: Spans | None = None) -> None:
        """Note what can be said once; a fault if it was said before."""
        if (known := self.single.get(name)) is not None:
            also = Also("first said here", span=known.spans[()])
            self.fault("P401", f"'{name}' is said twice", span, "keep one of the two", also)
            return
        self.single[name] = Placed(value, {**(spans or {}), (): span})

    def add(self, name: str, entry: object, spans: Spans) -> None:
        """Note an entry of one of the plan's lists."""
        self.lists[name].append(Placed(entry, spans))

    def plan(self, source: Source, folder: Path) -> p.Plan:
        """The plan, knowing where it was read from."""
        spans = {_PLACES.get(name, (name,)): placed.spans for name, placed in self.single.items()}
        spans |= {("models", name): model.spans for name, model in self.models.items()}
        single = {name: placed.entry for name, placed in self.single.items()}
        lists: dict[str, Any] = {
            name: single.get(name) for name in ("dtype", "chat_template", "heal", *p.REST)
        }
        for name, (place, order) in _LISTS.items():
            found = self.lists[name]
            if order is not None:
                found = sorted(found, key=lambda placed: order(placed.entry))
            spans |= {(*place, i): placed.spans for i, placed in enumerate(found)}
            said = tuple(placed.entry for placed in found)
            lists[name] = said if name in ("drop_any", "objectives") else p.retied(said)
        items, objectives = lists.pop("items"), lists.pop("objectives")
        budget = {name: single.get(name) for name in ("fidelity", "trials", "seed")}
        blocks: dict[str, Any] = {
            "stack": p.built(p.Stack, items=items, limit=single.get("limit")),
            "search": p.built(p.Search, objectives=objectives, **budget),
        }
        made = p.built(
            p.Plan,
            version=single.get("tailor", 1),
            models={name: placed.entry for name, placed in self.models.items()},
            **lists,
            **{name: block for name, block in blocks.items() if name in single},
        )
        return made.read_from(Origin(source, folder, spans))


# ------------------------------------------------------------------------------------------ layers


def once_in_words(draft: Draft, where: str, said: tree.Word | tree.String, span: Span) -> None:
    """Note a tokenizer or a chat template that isn't made by a recipe."""
    if where == "chat_template" and isinstance(said, tree.Word):
        value = p.built(p.TemplateOf, model=said.text)
        draft.once(where, value, span, {("model",): said.span})
    else:
        draft.once(where, said.text, span)


@final
@dataclass(frozen=True, slots=True)
class At:
    """One layer that a list names: its own word at the ends of a range, else the range."""

    number: int
    span: Span
    range: Span


@final
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


def positions_of(draft: Draft, layers: tree.Layers, *, whole: str = "") -> Positions | None:
    """The layers of a list; `whole` says what takes whole layers only. None if there is a fault."""
    before = len(draft.faults)
    parts = {r.part.text if r.part else None for r in layers.ranges}
    for r in layers.ranges:
        if r.part is not None and whole:
            draft.fault("P206", f"{whole} takes whole layers, not the part '.{r.part.text}'",
                        Span(r.part.span.start - 1, r.part.span.end))  # fmt: skip
        elif r.part is not None and r.part.text not in ("attn", "mlp"):
            draft.fault("P205", f"a layer has no part '{r.part.text}'", r.part.span,
                        nearest(r.part.text, ("attn", "mlp"))
                        or "the parts are 'attn' and 'mlp'")  # fmt: skip
    if len(parts) > 1 and len(draft.faults) == before:
        draft.fault("P205", "this list names whole layers and parts, or two parts", layers.span,
                    "write a statement for each part")  # fmt: skip
    at = tuple(_expanded(draft, layers))
    if len(draft.faults) > before:
        return None
    return Positions(at, cast("p.Part | None", parts.pop()), layers.span)


def _expanded(draft: Draft, layers: tree.Layers) -> Iterator[At]:
    seen: set[int] = set()
    for r in layers.ranges:
        first, last = r.first.number, r.last.number
        if not all(is_a_layer(draft, word) for word in (r.first, r.last)):
            continue
        if first > last:
            draft.fault("P201", f"the range L{first}..L{last} descends", r.span,
                        f"write L{last}..L{first}")  # fmt: skip
            continue
        numbers = range(first, last + 1)
        draft.entries += len(numbers)
        if draft.entries > MOST_ENTRIES:
            if draft.entries - len(numbers) <= MOST_ENTRIES:
                draft.fault("P214", f"the plan names more than {MOST_ENTRIES} layers", r.span)
            continue
        if repeated := seen.intersection(numbers):
            draft.fault("P202", f"L{min(repeated)} stands twice in this list", r.span)
        seen.update(numbers)
        for number in numbers:
            ends = {first: r.first.span, last: r.last.span}
            yield At(number, ends.get(number, r.span), r.span)


def is_a_layer(draft: Draft, word: tree.LayerWord) -> bool:
    """Whether a layer's number is one that models have; a fault if not."""
    if word.number > p.LARGEST_LAYER:
        draft.fault("P214", f"layer numbers end at {p.LARGEST_LAYER}", word.span)
        return False
    return True


def in_step(draft: Draft, first: Positions, other: Positions) -> bool:
    """Both lists have one length and name one part."""
    if first.part != other.part:
        here, there = (f"the part '.{at.part}'" if at.part else "a whole layer"
                       for at in (other, first))  # fmt: skip
        draft.fault("P204", f"{here} stands beside {there}", other.span,
                    "the target and all sources name the same part, or none")  # fmt: skip
    elif len(first.at) != len(other.at):
        here, there = count_words(len(other.at), "layer"), count_words(len(first.at), "layer")
        draft.fault("P203", f"lists of unequal length: {here} here, {there} there", other.span,
                    "targets and sources go in step; nothing is broadcast")  # fmt: skip
    else:
        return True
    return False


# ----------------------------------------------------------------------------------------- numbers


def value_of(
    draft: Draft, numeral: tree.Numeral | tree.EachSource | tree.String | tree.Word
) -> p.Value | None:
    """A number or a choice of numbers; None, with a fault, if it is none or not finite."""
    if isinstance(numeral, tree.EachSource):
        draft.fault("P306", "one number is needed, not a list", numeral.span)
        return None
    if isinstance(numeral, tree.String | tree.Word):
        draft.fault("P306", f"a number is needed, '{numeral.text}' is none", numeral.span)
        return None
    if isinstance(numeral, tree.Fixed):
        return _finite(draft, numeral)
    fixed = numeral.options if isinstance(numeral, tree.OneNumber) else (numeral.low, numeral.high)
    found = tuple(n for number in fixed if (n := _finite(draft, number)) is not None)
    if len(found) < len(fixed):
        return None
    if isinstance(numeral, tree.OneNumber):
        return p.built(p.OneOfNumbers, one_of=found)
    return p.built(p.Interval, interval=(found[0], found[1]))


def _finite(draft: Draft, number: tree.Fixed) -> int | float | None:
    if math.isinf(number.value):
        draft.fault("P306", "the number is too large for a float", number.span)
        return None
    return number.value


def whole_number(draft: Draft, number: tree.Numeral, what: str, least: int = 0) -> int | None:
    """A whole number; a fault and None if it isn't one."""
    value = number.value if isinstance(number, tree.Fixed) else None
    if isinstance(value, int) and least <= value < 2**63:
        return value
    help_ = "" if isinstance(number, tree.Fixed) else "it can't be a choice"
    draft.fault("P310", f"{what} is a whole number from {least} up", number.span, help_)
    return None


def count_words(n: int, noun: str) -> str:
    """`no layer`, `1 layer`, `2 layers`."""
    return f"{n or 'no'} {noun}{'' if n == 1 else 's'}"


# ------------------------------------------------------------------------------- models and methods


@final
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


def model_of(pick: tree.Word | tree.OneOf, spans: Spanned) -> str | p.OneOfModels:
    """One model, or a choice of one."""
    spans.note(pick.span)
    if isinstance(pick, tree.Word):
        return pick.text
    for i, word in enumerate(pick.names):
        spans.note(word.span, "one_of", i)
    return p.built(p.OneOfModels, one_of=tuple(word.text for word in pick.names))


def method_of(draft: Draft, how: tree.CallNode | tree.OneCall, spans: Spanned) -> p.By | None:
    """A method, or a choice of methods."""
    spans.note(how.span)
    if isinstance(how, tree.CallNode):
        return _call(draft, how, spans)
    calls = [_call(draft, c, spans.inside("one_of", i)) for i, c in enumerate(how.options)]
    found = tuple(call for call in calls if call is not None)
    return p.built(p.OneOfMethods, one_of=found) if len(found) == len(calls) else None


def _call(draft: Draft, node: tree.CallNode, spans: Spanned) -> p.MethodCall | None:
    spans.note(node.span)
    spans.note(node.name.span, "name")
    method = METHODS.get(node.name.text)
    before = len(draft.faults)
    arguments: dict[str, p.Value | tuple[p.Value, ...] | str] = {}
    for name, givens in _bound(draft, node, method).items():
        parameter = method.parameter(name) if method is not None else None
        value = _argument(draft, parameter, givens, spans.inside("arguments", name))
        if value is not None:
            arguments[name] = value
    if len(draft.faults) > before:
        return None
    return p.built(p.MethodCall, name=node.name.text, arguments=arguments)


def _argument(
    draft: Draft, parameter: Parameter | None, givens: Sequence[tree.ArgumentNode], spans: Spanned
) -> p.Value | tuple[p.Value, ...] | str | None:
    """What an argument comes to: whether a bare name is a word or a number's, its parameter says.

    What is unknown keeps its words, for the check.
    """
    spans.note(givens[0].span.to(givens[-1].span))
    first = givens[0].value
    if isinstance(first, tree.Word) and (parameter is None or parameter.words):
        return first.text
    listed = len(givens) == 1 and isinstance(first, tree.EachSource)
    said = first.numbers if isinstance(first, tree.EachSource) and listed else givens
    found: list[p.Value] = []
    for i, one in enumerate(said):
        numeral = one.value if isinstance(one, tree.ArgumentNode) else one
        if (number := value_of(draft, numeral)) is not None:
            found.append(number)
        if listed or (parameter is not None and parameter.variadic):
            spans.note(one.span, i)
    if not found:
        return None
    return tuple(found) if listed or (parameter and parameter.variadic) else found[0]


def _bound(
    draft: Draft, node: tree.CallNode, method: Method | None
) -> dict[str, tuple[tree.ArgumentNode, ...]]:
    """Each argument under its name; an unknown method keeps its named ones for the check."""
    positional = tuple(given for given in node.arguments if given.name is None)
    bound: dict[str, tuple[tree.ArgumentNode, ...]] = {}
    if method is not None and positional and method.variadic:
        bound[method.variadic.name] = positional
    elif method is not None and positional:
        free = [parameter.name for parameter in method.positional]
        bound |= {n: (g,) for n, g in zip(free, positional, strict=False)}
        if len(positional) > len(free):
            draft.fault(
                "P305",
                f"'{method.name}' takes {count_words(len(free), 'argument')}, "
                f"not {len(positional)}",
                positional[len(free)].span,
                _taken(method),
            )
    named = False
    for given in node.arguments:
        if given.name is not None:
            named = True
            if given.name.text in bound:
                draft.fault("P305", f"'{given.name.text}' is given twice", given.span)
            bound.setdefault(given.name.text, (given,))
        elif named:
            draft.fault("P305", "an argument without a name stands after one with a name",
                        given.span)  # fmt: skip
    return bound


def _taken(method: Method) -> str:
    """What a method's arguments are, those that are given by name alone last."""
    names = [parameter.name for parameter in method.positional]
    named = [f"{parameter.name}=…" for parameter in method.parameters if parameter.named]
    return f"its arguments are {', '.join(names + named)}" if names or named else ""


def stepped(entry: Any, step: int) -> tuple[Any, ...]:
    """What an entry says, moved on by so many layers."""

    def moved(source: Any) -> Any:
        after = None if source.layer is None else source.layer + step  # may be past the last
        return source.model_copy(update={"layer": after})

    position = getattr(entry, "position", None)
    recipe = getattr(entry, "recipe", None)
    if isinstance(recipe, p.Take):
        recipe = p.built(p.Take, take=moved(recipe.take))
    elif isinstance(recipe, p.Merge):
        recipe = recipe.model_copy(update={"merge": tuple(map(moved, recipe.merge))})
    elif isinstance(recipe, p.Subset):
        recipe = moved(recipe)
    factor = getattr(entry, "factor", None)
    return None if position is None else position + step, entry.maybe, factor, recipe
