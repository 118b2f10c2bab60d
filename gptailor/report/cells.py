"""A plan's layers as a picture: a cell a layer, a colour and a letter a model."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, final

from gptailor.plan import plan as p
from gptailor.plan.layers import Slot, may_be_healed
from gptailor.plan.resolved import Resolved
from gptailor.plan.shares import slot_shares
from gptailor.plan.walk import names_in, recipe_sites

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

RUN_MARKS = "²³⁴⁵⁶⁷⁸⁹⁺"
"""After the symbols of layers that run so often; the last one: ten times or more."""


@final
@dataclass(frozen=True)
class Cell:
    """How one layer looks: a symbol, and the colour of its model (None: no one model's).

    `runs` says how often it runs, which is marked where it is more than once.
    """

    symbol: str
    colour: str | None
    kind: str
    runs: int = 1

    @property
    def mark(self) -> str:
        """`²` of a layer that runs twice."""
        return RUN_MARKS[min(self.runs, 10) - 2] if self.runs > 1 else ""


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


def cells(resolved: Resolved, models: Sequence[str] | None = None) -> list[Cell]:
    """Return a cell for each slot of a plan, with letters for its models or for `models`."""
    names = list(resolved.plan.models if models is None else models)
    by_letter, by_colour = letters(names), colours(names)
    runs = Counter(map(_ran, resolved.remaining))
    drawn = ((_cell(slot, by_letter, by_colour), _ran(slot)) for slot in resolved.slots)
    return [replace(cell, runs=1 if ran is None else runs[ran]) for cell, ran in drawn]


def _ran(slot: Slot) -> int | str | None:
    """What is one for all runs of a layer, in a stack its recipe; None of an open one there."""
    if slot.position is not None:
        return slot.position
    return None if kind(slot) in {"open", "maybe there"} else repr(slot.made[None].recipe)


def _cell(slot: Slot, by_letter: Mapping[str, str], by_colour: Mapping[str, str]) -> Cell:
    """A merge has the colour of the model that has most of it, else its first source's."""
    what = kind(slot)
    if what not in SYMBOLS:
        name = what.removeprefix("of ")
        return Cell(by_letter.get(name, "#"), by_colour.get(name), what)
    recipes = [made.recipe for made in slot.made.values()] if what == "merged" else []
    first = (recipe.merge[0].model for recipe in recipes if isinstance(recipe, p.Merge))
    name = next((model for model in first if isinstance(model, str)), "")
    if recipes and (whose := slot_shares(slot)):
        name = max(whose, key=lambda one: whose[one])
    return Cell(SYMBOLS[what], by_colour.get(name), what)


# --------------------------------------------------------------------------------- lines of a map

SHARES = "▁▂▃▄▅▆▇█"
"""How much of a layer is a model's; the last one: all of it."""

HEALED = "+"
"""Below layers that learn when a plan is healed."""

DIFFERS = "^"
"""Below layers that differ between two plans."""


@final
class Glyph(NamedTuple):
    """Some text of a map's line, and how it looks where there are colours."""

    text: str
    colour: str | None = None
    reverse: bool = False
    bold: bool = False
    dim: bool = False


@final
class MapRow(NamedTuple):
    """A line of a map: what stands before it, and two columns for each layer."""

    head: Glyph
    columns: Sequence[Sequence[Glyph]]


def cell_row(drawn: Sequence[Cell | None], head: str = "") -> MapRow:
    """The line of the cells themselves; blanks where there is none."""
    columns = []
    for one in drawn:
        if one is None:
            columns.append([Glyph(" "), Glyph(" ")])
            continue
        merged = one.kind == "merged"
        symbol = Glyph(one.symbol, one.colour, one.colour is not None, merged)
        columns.append([symbol, Glyph(one.mark or " ")])
    return MapRow(Glyph(head), columns)


def share_rows(resolved: Resolved) -> list[MapRow]:
    """Return a line of shares for each model where layers have several, and one for healing."""
    plan, slots = resolved.plan, resolved.slots
    whose = [slot_shares(slot) or {} for slot in slots]
    by_letter, by_colour = letters(list(plan.models)), colours(list(plan.models))
    several = any(len(one) > 1 for one in whose)
    found = []
    for name in plan.models if several else ():
        if any(name in one for one in whose):
            glyphs = [[Glyph(f"{_share(one.get(name, 0.0))} ", by_colour[name])] for one in whose]
            found.append(MapRow(Glyph(by_letter[name], by_colour[name]), glyphs))
    if plan.heal is not None and may_be_healed(plan):
        learns = [slot.dropped != "yes" and (slot.healed or not plan.heal.layers) for slot in slots]
        found.append(MapRow(Glyph(HEALED), [[Glyph(HEALED if one else " "), Glyph(" ")]
                                            for one in learns]))  # fmt: skip
    return found


def _share(share: float) -> str:
    if share <= 0.0:
        return " "
    return SHARES[-1] if share > 0.999 else SHARES[min(max(round(8 * share), 1), 7) - 1]


def map_lines(
    rows: Sequence[MapRow], width: int = 84, ruler: Sequence[int | None] | None = None
) -> Iterator[list[Glyph]]:
    """The rows' columns, ten to a group, below a ruler of layer numbers, in so many columns.

    Each line has about as many layers. Above what has no number in `ruler` the ruler has none.
    """
    drawn = len(rows[0].columns)
    numbers = range(drawn) if ruler is None else ruler
    marked = any(row.columns and row.columns[-1][-1].text.strip() for row in rows)
    fitting = max(1, (width - len(_HEAD) + 2 - marked) // 21) * 10
    count = max(1, -(-drawn // fitting))
    per_line = -(-drawn // (10 * count)) * 10
    for start in range(0, drawn, per_line or 10):
        groups = range(start, min(start + per_line, drawn), 10)
        said = ("" if numbers[i] is None else f"L{numbers[i]}" for i in groups)
        yield [Glyph(_HEAD), Glyph("  ".join(f"{one:<19}" for one in said).rstrip(), dim=True)]
        for row in rows:
            line = [row.head._replace(text=f"{row.head.text:<2}")]
            for i in groups:
                ten = [piece for column in row.columns[i : i + 10] for piece in column]
                line += [*ten, Glyph(" ")] if i != groups[-1] else ten
            if row.head.text or any(piece.text.strip() for piece in line):
                yield _stripped(line)


_HEAD = "  "


def _stripped(line: list[Glyph]) -> list[Glyph]:
    """Without blanks at its end."""
    while len(line) > 1 and not line[-1].text.strip():
        line.pop()
    return [*line[:-1], line[-1]._replace(text=line[-1].text.rstrip())]


def plain_lines(lines: Iterator[list[Glyph]]) -> list[str]:
    """Lines of a map without colours."""
    return ["".join(piece.text for piece in line).rstrip() for line in lines]


def legend(
    drawn: Sequence[Cell], models: Sequence[str], rows: Sequence[MapRow] = ()
) -> list[tuple[str, str]]:
    """The symbols that occur in cells and in the rows below them, and what each means."""
    by_letter = letters(models)
    seen = {cell.kind for cell in drawn}
    heads = {row.head.text for row in rows}
    meant = [
        (by_letter[name], name)
        for name in models
        if f"of {name}" in seen or by_letter[name] in heads
    ]
    meant += [(symbol, name) for name, symbol in SYMBOLS.items() if name in seen]
    runs = {cell.mark: cell.runs for cell in drawn if cell.mark}
    said = ((mark, "10 runs or more" if runs[mark] > 9 else f"{runs[mark]} runs") for mark in runs)
    meant += sorted(said, key=lambda one: RUN_MARKS.index(one[0]))
    if any(head.isalnum() for head in heads):
        meant.append((f"{SHARES[0]}…{SHARES[-1]}", "a model's share"))
    marks = (HEALED, "healed"), (DIFFERS, "differs")
    return meant + [(mark, said) for mark, said in marks if mark in heads]


def kind(slot: Slot) -> str:
    """What a slot is, in a word or two; what is open comes before what may be dropped."""
    if slot.dropped == "yes":
        return "bridged over" if slot.bridged else "dropped"
    chains = [one for made in slot.made.values() for one in made.chain]
    if any(_open(m.recipe) or (m.maybe and slot.position is not None) for m in chains):
        return "open"
    if slot.dropped == "maybe":
        return "maybe there"
    recipes = [made.recipe for made in slot.made.values()]
    if any(isinstance(made, p.Merge) for made in recipes):
        return "merged"
    names = {made.take.model for made in recipes if isinstance(made, p.Take)}
    return f"of {names.pop()}" if len(names) == 1 else "mixed"


def _open(recipe: p.Recipe) -> bool:
    """Whether a recipe of a plan that is written out has a choice, or a number that is one."""
    return any(site.open or names_in(site.value) for site in recipe_sites(recipe))
