"""A plan as a terminal shows it: a map in colours, a legend, and what each layer is made of."""

import textwrap
from collections.abc import Iterator, Sequence

import click

from gptailor import outline
from gptailor.checks.places import open_choices
from gptailor.lang import words
from gptailor.plan import REST, Plan
from gptailor.report import describe, layer_map

_MAP_INDENT = "  "


def plan_map(name: str, plan: Plan, count: int, *, known: bool, width: int) -> Iterator[str]:
    """The lines that show a plan over a base of so many layers; `known` is whether it has."""
    slots = outline.slots(plan, count)
    models = list(plan.models)
    drawn = layer_map.cells(slots, models)
    yield f"{name}: {_what(plan, len(slots), known=known)}"
    yield from _wrapped(_summary(plan, slots), _MAP_INDENT, width)
    yield ""
    yield from _painted(drawn, layer_map.map_lines(drawn, width - len(_MAP_INDENT)))
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
        found.append(describe.Row("drop", words.drop_any(choice).removeprefix("drop ")))
    for where in REST:
        recipe = plan.rest(where)
        if recipe is not None:
            text = words.rest(where, recipe).removeprefix(f"{where} from ")
            found.append(describe.Row(where, text))
    if plan.dtype is not None:
        found.append(describe.Row("dtype", plan.dtype))
    for bridge in plan.bridges:
        text = (words.mark_words(bridge) + words.bridge(bridge)).replace("bridge ", "", 1)
        found.append(describe.Row("bridge", text))
    return found


def _wrapped(text: str, first: str, width: int) -> list[str]:
    """The text after its first words, later lines below it."""
    indent = " " * len(first)
    room = max(width, len(first) + 20)
    return textwrap.wrap(
        text, room, initial_indent=first, subsequent_indent=indent, break_on_hyphens=False
    )


def _painted(drawn: Sequence[layer_map.Cell], lines: Sequence[str]) -> Iterator[str]:
    """The map's lines, each symbol in its model's colour; every second line is a ruler."""
    cells = iter(drawn)
    for i, line in enumerate(lines):
        if i % 2 == 0:
            yield _MAP_INDENT + click.style(line, dim=True)
        else:
            yield _MAP_INDENT + "".join(c if c == " " else _painted_cell(next(cells)) for c in line)


def _painted_cell(cell: layer_map.Cell) -> str:
    if cell.colour is None:
        return cell.symbol
    return click.style(
        cell.symbol, fg=cell.colour, bold=(cell.kind == "merged") or None, reverse=True
    )


def _legend(drawn: Sequence[layer_map.Cell], models: Sequence[str], width: int) -> Iterator[str]:
    """The symbols with their colours, as many to a line as fit."""
    colour_of = layer_map.colours(models)
    line, used = _MAP_INDENT, 0
    for symbol, name in layer_map.legend(drawn, models):
        size = len(symbol) + 1 + len(name)
        if used and len(_MAP_INDENT) + used + 3 + size > width:
            yield line
            line, used = _MAP_INDENT, 0
        colour = colour_of.get(name)
        key = click.style(symbol, fg=colour, reverse=True) if colour else symbol
        line += "   " * bool(used) + f"{key} {name}"
        used += size + 3 * bool(used)
    yield line
