"""A picture of a plan's layers: one cell a layer, a colour and a letter a model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from gptailor import plan as p
from gptailor.outline import Slot
from gptailor.report.describe import kind

COLOURS = ("blue", "green", "yellow", "magenta", "cyan", "red", "bright_blue", "bright_green")
"""The models' colours, the base's first; more models than colours start again."""

MERGED, DROPPED, MIXED, OPEN = "◆", "·", "◧", "?"


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
    symbols = {"dropped": DROPPED, "merged": MERGED, "mixed": MIXED, "open": OPEN}
    if what in symbols:
        return Cell(symbols[what], _dominant(slot, by_colour) if what == "merged" else None, what)
    name = what.removeprefix("of ")
    return Cell(by_letter.get(name, "#"), by_colour.get(name), what)


def _dominant(slot: Slot, by_colour: Mapping[str, str]) -> str | None:
    """A merge has its first source's colour."""
    for made in slot.made.values():
        if isinstance(made.recipe, p.Merge) and isinstance(made.recipe.merge[0].model, str):
            return by_colour.get(made.recipe.merge[0].model)
    return None


def lines(drawn: Sequence[Cell], width: int = 40) -> list[str]:
    """The cells as plain text, ten to a group, under a ruler of layer numbers."""
    per_line = max(10, width // 10 * 10)
    out = []
    for start in range(0, len(drawn), per_line):
        part = drawn[start : start + per_line]
        groups = [part[i : i + 10] for i in range(0, len(part), 10)]
        ruler = "  ".join(f"L{start + 10 * i}".ljust(19) for i in range(len(groups)))
        row = "  ".join(" ".join(cell.symbol for cell in group) for group in groups)
        out += [ruler.rstrip(), row]
    return out


def legend(drawn: Sequence[Cell], models: Sequence[str]) -> str:
    """What the symbols mean, of those that occur."""
    by_letter = letters(models)
    seen = {cell.kind for cell in drawn}
    words = [f"{by_letter[name]} {name}" for name in models if f"of {name}" in seen]
    rest = (("merged", MERGED), ("mixed", MIXED), ("open", OPEN), ("dropped", DROPPED))
    return "   ".join(words + [f"{symbol} {name}" for name, symbol in rest if name in seen])
