"""A plan's layers in words: what each position of the output is made of, neighbours joined."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from gptailor import plan as p
from gptailor.lang import words
from gptailor.lang.format import groups
from gptailor.outline import Slot


@dataclass(frozen=True)
class Row:
    """Neighbouring positions that go in step: which, and what is done there."""

    where: str
    what: str


def rows(slots: Sequence[Slot]) -> list[Row]:
    """One row for each run of positions with one recipe; a stack's items are numbered from L0."""
    found: list[Row] = []
    run: list[p.Layer] = []
    for number, slot in enumerate(slots):
        position = number if slot.position is None else slot.position
        said = _special(slot)
        if said is not None:
            found += _told(run)
            run = []
            found.append(Row(f"L{position}", said))
        else:
            made = slot.made[None]
            run.append(p.Layer(position=position, recipe=made.recipe, maybe=made.maybe))
    return _joined(found + _told(run))


def _special(slot: Slot) -> str | None:
    """What a run of plain recipes can't say: drops, parts, scales."""
    if slot.dropped == "yes":
        return "dropped"
    scale = f", scaled by {words.value(slot.scale)}" if slot.scale is not None else ""
    maybe = ", or dropped" if slot.dropped == "maybe" and slot.position is not None else ""
    if None in slot.made and not scale and not maybe:
        return None
    parts = [f"{part}: " * (part is not None) + recipe(m.recipe) for part, m in slot.made.items()]
    return "; ".join(parts) + scale + maybe


def _told(run: Sequence[p.Layer]) -> list[Row]:
    return [Row(words.ranges([e.position for e in g]), layer(g)) for g in groups(run)]


def _joined(found: Iterable[Row]) -> list[Row]:
    """Equal neighbours in one row."""
    out: list[tuple[str, str, str]] = []
    for row in found:
        first, _, last = row.where.partition("..")
        if out and out[-1][2] == row.what and row.what == "dropped":
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
        place = "" if same else f" {words.ranges(taken)}"
        return maybe + words.model(first.recipe.take.model, bare=True) + place
    text = words.decision(entries).removeprefix(f"{words.ranges([e.position for e in entries])} ")
    return maybe + text.removeprefix("from ").removeprefix("= ")


def recipe(made: p.Recipe) -> str:
    """What one layer is made of, in the language's words."""
    if isinstance(made, p.Take):
        return words.item([p.Item(recipe=made)])
    if isinstance(made, p.Merge):
        return words.merge([made], None)
    return words.rest("", made).removeprefix(" from ")


def summary(slots: Sequence[Slot]) -> str:
    """`30 layers: 20 of base, 3 merged, 7 dropped`."""
    counts: dict[str, int] = {}
    for slot in slots:
        counts[kind(slot)] = counts.get(kind(slot), 0) + 1
    return ", ".join(f"{count} {name}" for name, count in counts.items())


def kind(slot: Slot) -> str:
    """What a slot is, in a word or two."""
    if slot.dropped == "yes":
        return "dropped"
    recipes = [made.recipe for made in slot.made.values()]
    if any(isinstance(made, p.Subset) for made in recipes) or slot.dropped == "maybe":
        return "open"
    if any(isinstance(made, p.Merge) for made in recipes):
        return "merged"
    names = {made.take.model for made in recipes if isinstance(made, p.Take)}
    name = names.pop() if len(names) == 1 else None
    return f"of {name}" if isinstance(name, str) else ("mixed" if name is None else "open")
