"""A picture of a plan's layers: one cell a layer, a colour and a letter a model."""

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import click

from gptailor.lang.format import bridge_words, drop_any_words, mark_words, rest_words
from gptailor.plan import layers as outline
from gptailor.plan import plan as p
from gptailor.plan.layers import Slot
from gptailor.plan.plan import REST, Plan
from gptailor.plan.walk import open_choices
from gptailor.report import describe
from gptailor.report.describe import kind

COLOURS = ("blue", "green", "yellow", "magenta", "cyan", "red", "bright_blue", "bright_green")
"""The models' colours, the base's first; more models than colours start again."""

SYMBOLS = {
    "merged": "◆",
    "mixed": "◧",
    "open": "?",
    "maybe there": "○",
    "dropped": "·",
    "bridged over": "─",
}
"""Of layers that are not one model's."""


@dataclass(frozen=True)
class Cell:
    """How one layer looks: a symbol, and the colour of its model (None: no one model's)."""

    symbol: str
    colour: str | None
    kind: str


def letters(models: Sequence[str]) -> dict[str, str]:
    """A letter for each model: the first of its name that is free, else another that is."""
    taken: dict[str, str] = {}
    for name in models:
        free = [c for c in (*name, *name.upper(), *"0123456789abcdefghijklmnopqrstuvwxyz")
                if c not in taken.values() and c.isalnum()]  # fmt: skip
        taken[name] = free[0] if free else "#"
    return taken


def colours(models: Sequence[str]) -> dict[str, str]:
    """A colour for each model."""
    return {name: COLOURS[i % len(COLOURS)] for i, name in enumerate(models)}


def cells(slots: Sequence[Slot], models: Sequence[str]) -> list[Cell]:
    """A cell for each slot."""
    by_letter, by_colour = letters(models), colours(models)
    return [_cell(slot, by_letter, by_colour) for slot in slots]


def _cell(slot: Slot, by_letter: Mapping[str, str], by_colour: Mapping[str, str]) -> Cell:
    what = kind(slot)
    if what in SYMBOLS:
        return Cell(SYMBOLS[what], _dominant(slot, by_colour) if what == "merged" else None, what)
    name = what.removeprefix("of ")
    return Cell(by_letter.get(name, "#"), by_colour.get(name), what)


def _dominant(slot: Slot, by_colour: Mapping[str, str]) -> str | None:
    """A merge has its first source's colour."""
    for made in slot.made.values():
        if isinstance(made.recipe, p.Merge) and isinstance(made.recipe.merge[0].model, str):
            return by_colour.get(made.recipe.merge[0].model)
    return None


def map_lines(drawn: Sequence[Cell], width: int = 84) -> list[str]:
    """The cells as plain text, ten to a group, under a ruler of layer numbers, in so many columns.

    Each line of cells has about as many.
    """
    fitting = max(1, (width + 2) // 21) * 10
    count = max(1, -(-len(drawn) // fitting))
    per_line = -(-len(drawn) // (10 * count)) * 10
    out = []
    for start in range(0, len(drawn), per_line or 10):
        part = drawn[start : start + per_line]
        groups = [part[i : i + 10] for i in range(0, len(part), 10)]
        ruler = "  ".join(f"L{start + 10 * i}".ljust(19) for i in range(len(groups)))
        row = "  ".join(" ".join(cell.symbol for cell in group) for group in groups)
        out += [ruler.rstrip(), row]
    return out


def legend(drawn: Sequence[Cell], models: Sequence[str]) -> list[tuple[str, str]]:
    """The symbols that occur, and what each means."""
    by_letter = letters(models)
    seen = {cell.kind for cell in drawn}
    meant = [(by_letter[name], name) for name in models if f"of {name}" in seen]
    return meant + [(symbol, name) for name, symbol in SYMBOLS.items() if name in seen]


_MAP_INDENT = "  "


def plan_map(name: str, plan: Plan, count: int, *, known: bool, width: int) -> Iterator[str]:
    """The lines that show a plan over a base of so many layers; `known` is whether it has."""
    slots = outline.slots(plan, count)
    models = list(plan.models)
    drawn = cells(slots, models)
    yield f"{name}: {_what(plan, len(slots), known=known)}"
    yield from _wrapped(_summary(plan, slots), _MAP_INDENT, width)
    yield ""
    yield from _painted(drawn, map_lines(drawn, width - len(_MAP_INDENT)))
    yield ""
    yield from _legend(drawn, models, width)
    yield ""
    yield from table(_rows(plan, slots), width)


def table(rows: Sequence[describe.Row], width: int, least: int = 0) -> Iterator[str]:
    """Two columns, the second one wrapped."""
    wide = max([least, *(len(row.where) for row in rows)])
    for row in rows:
        first = f"{_MAP_INDENT}{row.where:<{wide}}  "
        yield from _wrapped(row.what, first, width)


def _what(plan: Plan, count: int, *, known: bool) -> str:
    if plan.stack is not None:
        return f"a stack of {count} layers"
    said = f"{count} layers of '{plan.models['base'].source}'"
    return said if known else f"at least {said}, which can't be read"


def _summary(plan: Plan, slots: Sequence[outline.Slot]) -> str:
    count = open_choices(plan)
    choices = f"; {count} choice{'s' * (count != 1)} open" if count else ""
    return describe.plan_summary(slots) + choices


def _rows(plan: Plan, slots: Sequence[outline.Slot]) -> list[describe.Row]:
    """Layers, then what else the plan says of the model."""
    found = describe.described_rows(slots)
    for choice in plan.drop_any:
        found.append(describe.Row("drop", drop_any_words(choice).removeprefix("drop ")))
    for where in REST:
        recipe = plan.rest(where)
        if recipe is not None:
            text = rest_words(where, recipe).removeprefix(f"{where} from ")
            found.append(describe.Row(where, text))
    if plan.dtype is not None:
        found.append(describe.Row("dtype", plan.dtype))
    for bridge in plan.bridges:
        text = (mark_words(bridge) + bridge_words(bridge)).replace("bridge ", "", 1)
        found.append(describe.Row("bridge", text))
    return found


def _wrapped(text: str, first: str, width: int) -> list[str]:
    """The text after its first words, later lines below it."""
    indent = " " * len(first)
    room = max(width, len(first) + 20)
    return textwrap.wrap(
        text, room, initial_indent=first, subsequent_indent=indent, break_on_hyphens=False
    )


def _painted(drawn: Sequence[Cell], lines: Sequence[str]) -> Iterator[str]:
    """The map's lines, each symbol in its model's colour; every second line is a ruler."""
    cells = iter(drawn)
    for i, line in enumerate(lines):
        if i % 2 == 0:
            yield _MAP_INDENT + click.style(line, dim=True)
        else:
            yield _MAP_INDENT + "".join(c if c == " " else _painted_cell(next(cells)) for c in line)


def _painted_cell(cell: Cell) -> str:
    if cell.colour is None:
        return cell.symbol
    return click.style(
        cell.symbol, fg=cell.colour, bold=(cell.kind == "merged") or None, reverse=True
    )


def _legend(drawn: Sequence[Cell], models: Sequence[str], width: int) -> Iterator[str]:
    """The symbols with their colours, as many to a line as fit."""
    colour_of = colours(models)
    line, used = _MAP_INDENT, 0
    for symbol, name in legend(drawn, models):
        size = len(symbol) + 1 + len(name)
        if used and len(_MAP_INDENT) + used + 3 + size > width:
            yield line
            line, used = _MAP_INDENT, 0
        colour = colour_of.get(name)
        key = click.style(symbol, fg=colour, reverse=True) if colour else symbol
        line += "   " * bool(used) + f"{key} {name}"
        used += size + 3 * bool(used)
    yield line
