"""A picture of a plan's layers: one cell a layer, a colour and a letter a model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from gptailor import plan as p
from gptailor.outline import Slot
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
