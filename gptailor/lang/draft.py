"""The plan while it is gathered, and parts that statements share: layers and numbers."""

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, final

from gptailor.lang import tree
from gptailor.plan import plan as p
from gptailor.plan.bounds import LARGEST_LAYER, MOST_ENTRIES, MOST_LAYERS
from gptailor.plan.faults import TOO_LARGE, Also, Fault, Origin, Place, Source, Span, nearest
from gptailor.plan.layer_parts import Part, unknown_part
from gptailor.plan.registry import LARGEST_SINGLE

Spans = Mapping[Place, Span]


@final
@dataclass(frozen=True, slots=True)
class Placed:
    """A value of the plan, with its span at () and the spans of the places inside it."""

    entry: Any
    spans: Spans = field(default_factory=dict)

    def __or__(self, more: Mapping[Any, Span]) -> "Placed":
        """Return the value with more spans."""
        return Placed(self.entry, {**self.spans, **more})


def spanned(node: tree.TreeNode, value: object) -> Placed:
    """Return a value that a node stands for."""
    return Placed(value, {(): node.span})


def placed_text(node: tree.Word | tree.String | None) -> Placed | None:
    """Return the text of a node, if it is present."""
    return None if node is None else spanned(node, node.text)


def spans_in(parts: Mapping[Any, Placed]) -> Spans:
    """Return the spans of parts by their places in the whole."""
    return {(at, *inner): span for at, part in parts.items() for inner, span in part.spans.items()}


def listed_parts(parts: Sequence[Placed]) -> Placed:
    """Return a tuple of these values."""
    return Placed(tuple(part.entry for part in parts), spans_in(dict(enumerate(parts))))


def placed_data(kind: Callable[..., p.Closed], span: Span | None, **parts: Placed | None) -> Placed:
    """Return data of these parts; absent ones have their default."""
    present = {name: part for name, part in parts.items() if part is not None}
    entry = p.built(kind, **{name: part.entry for name, part in present.items()})
    return Placed(entry, {**({} if span is None else {(): span}), **spans_in(present)})


@final
@dataclass(slots=True)
class Draft:
    """The plan gathered so far."""

    single: dict[Place, Placed] = field(default_factory=dict)
    lists: dict[Place, list[Placed]] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)
    entries: int = 0  # the named layers, and the entries listed for each of them

    def fault(self, code: str, message: str, span: Span, help_: str = "", *also: Also) -> None:
        """Add a fault."""
        self.faults.append(Fault(code, message, span=span, help=help_, also=also))

    def has_room(self, more: int, span: Span) -> bool:
        """Count layers that are named, or entries listed for each; add a fault beyond the limit."""
        self.entries += more
        if self.entries - more <= MOST_ENTRIES < self.entries:
            message = f"the plan names more than {MOST_ENTRIES:,} layers, models and numbers"
            self.fault(TOO_LARGE, message, span, "write several plans")
        return self.entries <= MOST_ENTRIES

    def once(self, at: Place, placed: Placed) -> None:
        """Set a single value; add a fault if it was set before."""
        if (earlier := self.single.setdefault(at, placed)) is not placed:
            also = Also("first given here", span=earlier.spans[()])
            words, help_ = f"'{at[-1]}' is given twice", "keep one of the two"
            if isinstance(placed.entry, p.TextFit):
                help_ += "; to use both texts, join them in one file"
            self.fault("P401", words, placed.spans[()], help_, also)

    def add(self, at: Place, placed: Placed) -> None:
        """Add an entry to one of the plan's lists."""
        self.lists.setdefault(at, []).append(placed)

    def plan(self, source: Source, folder: Path) -> p.Plan:
        """Return the plan with its origin."""
        spans = {at: placed.spans for at, placed in self.single.items()}
        values = {at: placed.entry for at, placed in self.single.items()}
        for at, gathered in self.lists.items():
            ordered = [self._with_named_count(placed) for placed in gathered]
            ordered.sort(key=lambda placed: p.normal_order(placed.entry))
            spans |= {(*at, i): placed.spans for i, placed in enumerate(ordered)}
            values[at] = p.retied([placed.entry for placed in ordered])
        inside: dict[Place, dict[str, Any]] = defaultdict(dict)
        for at, value in values.items():
            inside[at[:-1]][str(at[-1])] = value
        fields = inside[()] | {name: inside[name,] for name in ("models", "numbers")}
        if "stack" in fields:
            fields["stack"] = p.built(p.Stack, **{"items": ()} | inside["stack",])
        if "search" in fields:
            fields["search"] = p.built(p.Search, **inside["search",])
        return p.built(p.Plan, **fields).read_from(Origin(source, folder, spans))

    def _with_named_count(self, placed: Placed) -> Placed:
        """Return a drop by choice with the number that its count names; a rule refuses others."""
        entry = placed.entry
        number = self.single.get(("numbers", getattr(entry, "named", None) or ""))
        if number is None or not isinstance(number.entry, int):
            return placed
        return Placed(entry.model_copy(update={"count": number.entry}), placed.spans)


# ------------------------------------------------------------------------------------------ layers


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
    part: Part | None
    span: Span

    @property
    def numbers(self) -> tuple[int, ...]:
        """Return the layer numbers."""
        return tuple(at.number for at in self.at)


def positions_of(draft: Draft, layers: tree.Layers, *, taker: str = "") -> Positions | None:
    """Return the layers of a list; None if there is a fault.

    `taker` is a statement that takes whole layers only, as messages name it.
    """
    before = len(draft.faults)
    if len(layers.ranges) > MOST_LAYERS:
        message = f"expected at most {MOST_LAYERS:,} layers in one list, got more"
        draft.fault("P214", message, layers.span)
        return None
    parts = {r.part.text if r.part else None for r in layers.ranges}
    for r in layers.ranges:
        if r.part is not None and taker:
            message = f"{taker} takes whole layers, not the part '.{r.part.text}'"
            span = Span(r.part.span.start - 1, r.part.span.end)
            draft.fault("P206", message, span, "name the whole layer")
        else:
            part_named(draft, r.part)
    if len(parts) > 1 and len(draft.faults) == before:
        message = "expected one part in a list, or whole layers, got several"
        draft.fault("P205", message, layers.span, "write a statement for each part")
    at = tuple(_expanded(draft, layers))
    if len(draft.faults) > before:
        return None
    return Positions(at, parts.pop(), layers.span)


def part_named(draft: Draft, word: tree.Word | None) -> Part | None:
    """Return the part of a layer that a word stands for; None without one, and with a fault."""
    if word is None or (wrong := unknown_part(word.text)) is None:
        return None if word is None else word.text
    draft.fault("P205", wrong[0], word.span, wrong[1])
    return None


def _expanded(draft: Draft, layers: tree.Layers) -> Iterator[At]:
    seen: set[int] = set()
    for r in layers.ranges:
        if (ends := stretch(draft, r)) is None:
            continue
        first, last = ends
        numbers = range(first, last + 1)
        if not draft.has_room(len(numbers), r.span):
            break
        if repeated := seen.intersection(numbers):
            draft.fault(
                "P202", f"L{min(repeated)} is in this list twice", r.span, "remove one of the two"
            )
        seen.update(numbers)
        for number in numbers:
            edges = {first: r.first.span, last: r.last.span}
            yield At(number, edges.get(number, r.span), r.span)


def is_a_layer(draft: Draft, word: tree.LayerWord) -> bool:
    """Return whether a model may have a layer of this number; add a fault if not."""
    if word.number > LARGEST_LAYER:
        message = f"expected a layer up to L{LARGEST_LAYER}, got L{word.number}"
        draft.fault("P214", message, word.span)
        return False
    return True


def in_step(draft: Draft, first: Positions, other: Positions) -> bool:
    """Return whether both lists have one length and name one part; add a fault if not."""
    if first.part != other.part:
        actual, expected = (f"the part '.{at.part}'" if at.part else "a whole layer"
                       for at in (other, first))  # fmt: skip
        draft.fault("P204", f"expected {expected}, got {actual}", other.span,
                    "name the same part in the target and all sources, or no part")  # fmt: skip
    elif len(first.at) != len(other.at):
        actual, expected = count_words(len(other.at), "layer"), count_words(len(first.at), "layer")
        draft.fault("P203", f"expected {expected} as in the statement's first list, got {actual}",
                    other.span, "name one source layer for each target")  # fmt: skip
    else:
        return True
    return False


# ----------------------------------------------------------------------------------------- numbers


def value_of(
    draft: Draft, numeral: tree.Numeral | tree.EachSource | tree.String | tree.Word
) -> p.Value | None:
    """Return a number, a name of one, a curve or a choice;

    None, with a fault, for anything else.
    """
    match numeral:
        case tree.EachSource() | tree.String():
            message = "expected one number, got a list"
            if isinstance(numeral, tree.String):
                message = f"expected a number, got '{numeral.text}'"
            draft.fault("P306", message, numeral.span)
            return None
        case tree.Word():
            return p.built(p.Named, named=numeral.text)
        case tree.Curving():
            return _curve(draft, numeral)
        case tree.Fixed():
            return _finite(draft, numeral)
        case tree.OneNumber():
            options = _all_finite(draft, numeral.options)
            return p.built(p.OneOfNumbers, one_of=options) if options else None
        case tree.Between():
            bounds = _all_finite(draft, (numeral.low, numeral.high))
            return p.built(p.Interval, interval=(bounds[0], bounds[1])) if bounds else None


def _all_finite(draft: Draft, nodes: tuple[tree.Fixed, ...]) -> tuple[int | float, ...] | None:
    numbers = tuple(n for number in nodes if (n := _finite(draft, number)) is not None)
    return numbers if len(numbers) == len(nodes) else None


def _curve(draft: Draft, node: tree.Curving) -> p.Curve | None:
    if node.name.text != "curve":
        message = f"there is no function '{node.name.text}'"
        help_ = (
            nearest(node.name.text, ["curve"])
            or "a number that depends on the layer is written curve(0.0, 1.0)"
        )
        draft.fault("P301", message, node.name.span, help_)
        return None
    knots = [
        knot for knot in (_knot(draft, knot_node) for knot_node in node.knots) if knot is not None
    ]
    over = None if node.over is None else stretch(draft, node.over)
    if len(knots) < len(node.knots) or (over is None) != (node.over is None):
        return None
    return p.built(p.Curve, curve=tuple(knots), over=over)


def _knot(draft: Draft, node: tree.Numeral | tree.Word) -> p.Number | p.Named | None:
    if isinstance(node, tree.Between | tree.OneNumber):
        help_ = "name the choice, as in let mix = 0.0..1.0, and write its name"
        draft.fault("P510", "a curve's knot can't be a choice", node.span, help_)
        return None
    value = value_of(draft, node)
    return value if isinstance(value, int | float | p.Named) else None


def stretch(draft: Draft, node: tree.Range) -> tuple[int, int] | None:
    """Return the first and the last layer of a range; None, with a fault, if it descends."""
    first, last = node.first.number, node.last.number
    if not all(is_a_layer(draft, word) for word in (node.first, node.last)):
        return None
    if first > last:
        draft.fault("P201", f"the range L{first}..L{last} descends", node.span,
                    f"write L{last}..L{first}")  # fmt: skip
        return None
    return first, last


def _finite(draft: Draft, number: tree.Fixed) -> int | float | None:
    if math.isinf(number.value):
        message = f"expected at most {LARGEST_SINGLE:.9g}, the largest float32, got a larger one"
        draft.fault("P306", message, number.span)
        return None
    return number.value


def whole_number(
    draft: Draft, number: tree.Numeral, what: str, least: int = 0, *, named: str | None = None
) -> Placed | None:
    """Return a whole number; None, with a fault, for another value.

    `named` are the words for the least number, if a rule reports smaller ones.
    """
    value = number.value if isinstance(number, tree.Fixed) else None
    if isinstance(value, int) and least <= value < 2**63:
        return spanned(number, value)
    help_ = "" if isinstance(number, tree.Fixed) else "write one number, not a choice"
    at_least = f" of at least {least}" if named is None else named
    draft.fault("P310", f"{what} must be a whole number{at_least}", number.span, help_)
    return None


def count_of(draft: Draft, node: tree.Fixed | tree.Between, what: str) -> Placed | None:
    """Return a count, or a range of counts; None, with a fault, for another value."""
    if isinstance(node, tree.Fixed):
        return whole_number(draft, node, what, named="")
    low, high = (whole_number(draft, end, what, named="") for end in (node.low, node.high))
    if low is None or high is None:
        return None
    return spanned(node, p.built(p.CountRange, between=(low.entry, high.entry)))


def cut_size(draft: Draft, node: tree.Fixed | tree.SizesNode | tree.Word, what: str) -> Placed:
    """Return a size, the name of one, or a range of sizes; 1, with a fault, for another value."""
    if isinstance(node, tree.Word):
        return spanned(node, p.built(p.Named, named=node.text))
    if isinstance(node, tree.Fixed):
        return whole_number(draft, node, what, 1) or spanned(node, 1)
    low, high = (whole_number(draft, end, what, 1) for end in (node.low, node.high))
    step = node.step and whole_number(draft, node.step, "a 'step' of sizes", 1)
    if low is None or high is None or (step is None) != (node.step is None):
        return spanned(node, 1)
    size = placed_data(p.SizeRange, None, between=Placed((low.entry, high.entry)), step=step)
    return spanned(node, size.entry)


def placed_number(draft: Draft, node: Any) -> Placed | None:
    """Return a number as `value_of` does, with its span."""
    value = value_of(draft, node)
    return None if value is None else spanned(node, value)


def count_words(n: int, noun: str) -> str:
    """Return `no layer`, `1 layer`, `2 layers`."""
    return f"{n or 'no'} {noun}{'' if n == 1 else 's'}"
