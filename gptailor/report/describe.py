"""A plan's layers in words: what each position of the output is made of, neighbours joined."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from gptailor.lang.format import groups, layer_words, model_words, range_words, value_words
from gptailor.plan import plan as p
from gptailor.plan.layers import Slot
from gptailor.plan.walk import choices


@dataclass(frozen=True)
class Row:
    """Neighbouring positions that go in step: which, and what is done there."""

    where: str
    what: str


def described_rows(slots: Sequence[Slot]) -> list[Row]:
    """One row for each run of positions with one recipe; a stack's items are numbered from L0."""
    found: list[Row] = []
    run: list[p.Layer] = []
    tail = ""
    for number, slot in enumerate(slots):
        position = number if slot.position is None else slot.position
        told = _alone(slot)
        if told is not None or _tail(slot) != tail:
            found += _told(run, tail)
            run, tail = [], _tail(slot)
        if told is not None:
            found.append(Row(f"L{position}", told + tail))
        else:
            made = slot.made[None]
            run.append(p.Layer(position=position, recipe=made.recipe, maybe=made.maybe))
    return _joined(found + _told(run, tail))


def _alone(slot: Slot) -> str | None:
    """What is no whole layer's recipe: a drop, parts."""
    if slot.dropped == "yes":
        return "dropped, bridged over" if slot.bridged else "dropped"
    if None in slot.made:
        return None
    parts = []
    for part, made in slot.made.items():
        entry = p.Layer(position=slot.position or 0, recipe=made.recipe, maybe=made.maybe)
        parts.append(f"{part}: {layer([entry])}")
    return "; ".join(parts)


def _tail(slot: Slot) -> str:
    """What may be said of a layer whatever it is made of."""
    scale = f", scaled by {value_words(slot.scale)}" if slot.scale is not None else ""
    return scale + ", or dropped" * (slot.dropped == "maybe" and slot.position is not None)


def _told(run: Sequence[p.Layer], tail: str) -> list[Row]:
    return [Row(range_words([e.position for e in g]), layer(g) + tail) for g in groups(run)]


def _joined(found: Iterable[Row]) -> list[Row]:
    """Equal neighbours in one row, but for those that name layers."""
    out: list[tuple[str, str, str]] = []
    for row in found:
        first, _, last = row.where.partition("..")
        if out and out[-1][2] == row.what and not re.search(r"\bL\d", row.what):
            out[-1] = (out[-1][0], last or first, row.what)
        else:
            out.append((first, last or first, row.what))
    return [Row(a if a == b else f"{a}..{b}", what) for a, b, what in out]


def layer(entries: Sequence[p.Layer]) -> str:
    """What layers that go in step are made of: `base`, `code L14`, `merge(…)`."""
    first = entries[0]
    maybe = "maybe " * first.maybe
    if isinstance(first.recipe, p.Take):
        taken = [e.recipe.take.layer or 0 for e in entries if isinstance(e.recipe, p.Take)]
        same = taken == [e.position for e in entries]
        place = "" if same else f" {range_words(taken)}"
        return maybe + model_words(first.recipe.take.model, bare=True) + place
    text = layer_words(entries).removeprefix(f"{range_words([e.position for e in entries])} ")
    return maybe + text.removeprefix("from ").removeprefix("= ")


def plan_summary(slots: Sequence[Slot]) -> str:
    """`30 layers: 20 of base, 3 merged, 7 dropped`."""
    counts: dict[str, int] = {}
    for slot in slots:
        counts[kind(slot)] = counts.get(kind(slot), 0) + 1
    return ", ".join(f"{count} {name}" for name, count in counts.items())


def kind(slot: Slot) -> str:
    """What a slot is, in a word or two; what is open comes before what may be dropped."""
    if slot.dropped == "yes":
        return "bridged over" if slot.bridged else "dropped"
    if any(choices(made.recipe) or (made.maybe and slot.position is not None)
           for made in slot.made.values()):  # fmt: skip
        return "open"
    if slot.dropped == "maybe":
        return "maybe there"
    recipes = [made.recipe for made in slot.made.values()]
    if any(isinstance(made, p.Merge) for made in recipes):
        return "merged"
    names = {made.take.model for made in recipes if isinstance(made, p.Take)}
    return f"of {names.pop()}" if len(names) == 1 else "mixed"
