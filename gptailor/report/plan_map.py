"""A plan's layers in words, and the map of them for a terminal."""

import re
import textwrap
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import final

import click

from gptailor.checkpoint.models import source_from_here
from gptailor.lang import words as tailor
from gptailor.plan import plan as p
from gptailor.plan.layers import Made, Slot, blocks
from gptailor.plan.plan import REST, Plan
from gptailor.plan.resolved import Resolved
from gptailor.plan.walk import drops_by_choice, open_choices
from gptailor.plan.windows import stretch_of, window_words
from gptailor.report.cells import (
    Cell,
    Glyph,
    MapRow,
    cell_row,
    cells,
    colours,
    kind,
    legend,
    map_lines,
    share_rows,
)


@final
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


def rows_with_runs(resolved: Resolved) -> list[Row]:
    """Return the rows of a plan's layers, and one for each block that repeats."""
    return [*described_rows(resolved.slots), *block_rows(resolved.plan)]


def block_rows(plan: Plan) -> Iterator[Row]:
    """A row for each block that comes again: `L6..L9`, `2 runs`."""
    for one in blocks(plan):
        yield Row(window_words(stretch_of(one)), f"{p.count_text(_runs(one.times))} runs")


def _alone(slot: Slot) -> str | None:
    if slot.dropped == "yes":
        return "dropped, bridged over" if slot.bridged else "dropped"
    if slot.made.keys() == {None}:
        whole = slot.made[None]
        return None if whole.below is None else _chain(slot, whole)
    said = [(slot.called(part), _chain(slot, made)) for part, made in slot.made.items()]
    return "; ".join(f"{part}: {what}" if part else what for part, what in said)


def _chain(slot: Slot, made: Made) -> str:
    """What is there, and what else where that isn't taken."""
    position = slot.position or 0
    entries = (p.Layer(position=position, recipe=m.recipe, maybe=m.maybe) for m in made.chain)
    return ", else ".join(layer([entry]) for entry in entries)


def _tail(slot: Slot) -> str:
    """What may be said of a layer whatever it is made of."""
    scale = f", scaled by {tailor.value_words(slot.scale)}" if slot.scale is not None else ""
    dropped = ", or dropped" * (slot.dropped == "maybe" and slot.position is not None)
    return scale + ", healed" * slot.healed + dropped


def _told(run: Sequence[p.Layer], tail: str) -> list[Row]:
    return [
        Row(tailor.range_words([e.position for e in g]), layer(g) + tail)
        for g in tailor.groups(run)
    ]


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
        place = "" if same else f" {tailor.range_words(taken)}"
        return maybe + tailor.model_words(first.recipe.take.model, bare=True) + place
    text = tailor.layer_words(entries).removeprefix(
        f"{tailor.range_words([e.position for e in entries])} "
    )
    return maybe + text.removeprefix("from ").removeprefix("= ")


def plan_summary(slots: Sequence[Slot]) -> str:
    """`30 layers: 20 of base, 3 merged, 7 dropped`."""
    return ", ".join(f"{count} {name}" for name, count in Counter(map(kind, slots)).items())


def repeats_in_words(resolved: Resolved) -> str:
    """Return `; 4 more by 'repeat': 34 layers` for a plan with blocks that repeat, or nothing."""
    once = sum(slot.dropped != "yes" for slot in resolved.slots)
    more = len(resolved.remaining) - once
    return f"; {more} more by 'repeat': {once + more} layers" if more else ""


_MAP_INDENT = "  "


def plan_map(name: str, resolved: Resolved, *, known: bool, width: int) -> Iterator[str]:
    """Yield the lines that show a plan; `known` is whether the base's depth was read."""
    plan, found = resolved.declared, resolved.slots
    models = list(plan.models)
    drawn = cells(resolved)
    yield from _wrapped(f"{name}: {_size_said(resolved, known=known)}", "", width)
    choices = resolved.choices if known else open_choices(plan)
    said = [plan_summary(found) + repeats_in_words(resolved)] if found else []
    said += [f"{choices} choice{'s' * (choices != 1)} open"] if choices else []
    yield from _wrapped("; ".join(said), _MAP_INDENT, width)
    yield ""
    if drawn:
        below = share_rows(resolved)
        yield from map(painted, map_lines([cell_row(drawn), *below], width))
        yield ""
        yield from painted_legend(drawn, models, width, below)
        yield ""
    named = [Row("let", f"{n} = {tailor.value_words(v)}") for n, v in plan.numbers.items()]
    made = ((n, m) for n, m in plan.models.items() if m.made is not None)
    named += [Row("model", f"{n} = {tailor.model_source(m)}") for n, m in made]
    unsaid = [] if known or plan.stack is not None else [*_of_all(plan)]
    yield from table([*_rows(resolved), *unsaid, *named], width)


def _of_all(plan: Plan) -> Iterator[Row]:
    """What holds of layers that nobody can count here."""
    said: list[tuple[p.Open, str]] = [(one, tailor.others_words(one)) for one in plan.others]
    said += [] if plan.whole is None else [(plan.whole, tailor.whole_words(plan.whole))]
    for entry, words in said:
        where, _, what = words.partition(" ")
        yield Row(where, tailor.mark_words(entry) + what.removeprefix("from "))


def _size_said(resolved: Resolved, *, known: bool) -> str:
    """Return the base's number of layers, or the output's where its blocks are certain."""
    plan, slots = resolved.declared, resolved.slots
    if plan.stack is not None:
        return f"a stack of {len(slots)} layers"
    base = source_from_here(plan, plan.models["base"].source)
    if not known:
        many = f"at least {len(slots)} layers" if slots else "some layers"
        return f"{many} of '{base}', which can't be read"
    if plan.repeats and resolved.layers_are_certain:
        return f"{len(resolved.kept)} layers (the base '{base}' has {len(slots)})"
    return f"{len(slots)} layers of '{base}'"


def table(rows: Sequence[Row], width: int, least: int = 0) -> Iterator[str]:
    """Two columns, the second one wrapped."""
    wide = max([least, *(len(row.where) for row in rows)])
    for row in rows:
        first = f"{_MAP_INDENT}{row.where:<{wide}}  "
        yield from _wrapped(row.what, first, width)


def _rows(resolved: Resolved) -> list[Row]:
    plan, slots = resolved.plan, resolved.slots
    found = [*described_rows(slots), *_twice(plan, slots)]
    for _, choice in drops_by_choice(plan):
        words = tailor.mark_words(choice) + tailor.some_dropped_words(choice)
        found.append(Row("drop", words.replace("drop ", "", 1)))
    for repeat in plan.repeats:
        words = tailor.mark_words(repeat) + tailor.repeat_words(repeat)
        runs = p.count_text(_runs(repeat.times))
        found.append(Row("repeat", f"{words.replace('repeat ', '', 1)}: {runs} runs"))
    for where in (*REST, "chat_template"):
        if (said := getattr(plan, where)) is not None:
            text = tailor.rest_words(where, said).removeprefix(f"{where} ").removeprefix("from ")
            found.append(Row(where, text))
    if plan.dtype is not None:
        found.append(Row("dtype", plan.dtype))
    for bridge in plan.bridges:
        text = (tailor.mark_words(bridge) + tailor.bridge_words(bridge)).replace("bridge ", "", 1)
        found.append(Row("bridge", text))
    if plan.heal is not None:
        found.append(Row("heal", tailor.heal_words(plan.heal).removeprefix("heal ")))
    return found


def _twice(plan: Plan, slots: Sequence[Slot]) -> Iterator[Row]:
    """Which layers of a model stand several times in a stack."""
    recipes = (slot.made[None].recipe for slot in slots if plan.stack is not None)
    taken = (one.take for one in recipes if isinstance(one, p.Take))
    runs = Counter((one.model, one.layer) for one in taken if isinstance(one.model, str))
    often = {(model, count) for (model, _), count in runs.items() if count > 1}
    for model, count in sorted(often):
        layers = sorted(
            n or 0 for (name, n), times in runs.items() if (name, times) == (model, count)
        )
        yield Row("again", f"{model} {tailor.range_words(layers)}: {count} runs")


def _runs(times: p.Count) -> p.Count:
    """A block that comes again once runs twice."""
    if isinstance(times, p.CountRange):
        return p.CountRange(between=(times.between[0] + 1, times.between[1] + 1))
    return times + 1


def _wrapped(text: str, first: str, width: int) -> list[str]:
    """The text after its first words, later lines below it."""
    indent = " " * len(first)
    room = max(width, len(first) + 20)
    return textwrap.wrap(
        text, room, initial_indent=first, subsequent_indent=indent, break_on_hyphens=False,
        break_long_words=False,
    )  # fmt: skip


def painted(line: Sequence[Glyph]) -> str:
    """A map's line with its colours."""
    return "".join(
        one.text
        if one[1:] == (None, False, False, False)
        else click.style(one.text, fg=one.colour, reverse=one.reverse or None,
                         bold=one.bold or None, dim=one.dim or None)
        for one in line
    )  # fmt: skip


def painted_legend(
    drawn: Sequence[Cell], models: Sequence[str], width: int, rows: Sequence[MapRow] = ()
) -> Iterator[str]:
    """The symbols with their colours, as many to a line as fit."""
    colour_of = colours(models)
    line, used = _MAP_INDENT, 0
    for symbol, name in legend(drawn, models, rows):
        size = len(symbol) + 1 + len(name)
        if used and len(_MAP_INDENT) + used + 3 + size > width:
            yield line
            line, used = _MAP_INDENT, 0
        colour = colour_of.get(name)
        key = click.style(symbol, fg=colour, reverse=True) if colour else symbol
        line += "   " * bool(used) + f"{key} {name}"
        used += size + 3 * bool(used)
    yield line
