"""A plan's layers as a picture: a cell a layer, a colour and a letter a model."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import final

from gptailor.plan import plan as p
from gptailor.plan.layers import Slot, repeated
from gptailor.plan.plan import Plan
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


def cells(plan: Plan, slots: Sequence[Slot]) -> list[Cell]:
    """A cell for each of a plan's slots."""
    by_letter, by_colour = letters(list(plan.models)), colours(list(plan.models))
    there = repeated(plan, [slot for slot in slots if slot.dropped != "yes"])
    runs = Counter(map(_ran, there))
    drawn = ((_cell(slot, by_letter, by_colour), _ran(slot)) for slot in slots)
    return [replace(cell, runs=1 if ran is None else runs[ran]) for cell, ran in drawn]


def _ran(slot: Slot) -> int | str | None:
    """What is one for all runs of a layer, in a stack its recipe; None of an open one there."""
    if slot.position is not None:
        return slot.position
    return None if kind(slot) in {"open", "maybe there"} else repr(slot.made[None].recipe)


def _cell(slot: Slot, by_letter: Mapping[str, str], by_colour: Mapping[str, str]) -> Cell:
    """A merge has its first source's colour."""
    what = kind(slot)
    if what not in SYMBOLS:
        name = what.removeprefix("of ")
        return Cell(by_letter.get(name, "#"), by_colour.get(name), what)
    recipes = [made.recipe for made in slot.made.values()] if what == "merged" else []
    first = (recipe.merge[0].model for recipe in recipes if isinstance(recipe, p.Merge))
    name = next((model for model in first if isinstance(model, str)), "")
    return Cell(SYMBOLS[what], by_colour.get(name), what)


def map_lines(drawn: Sequence[Cell], width: int = 84) -> list[str]:
    """The cells as plain text, ten to a group, under a ruler of layer numbers, in so many columns.

    Each line of cells has about as many.
    """
    marked = any(cell.mark for cell in drawn)
    fitting = max(1, (width + 2 - marked) // 21) * 10
    count = max(1, -(-len(drawn) // fitting))
    per_line = -(-len(drawn) // (10 * count)) * 10
    out = []
    for start in range(0, len(drawn), per_line or 10):
        part = drawn[start : start + per_line]
        groups = [part[i : i + 10] for i in range(0, len(part), 10)]
        ruler = "  ".join(f"L{start + 10 * i}".ljust(19) for i in range(len(groups)))
        row = " ".join("".join(f"{c.symbol}{c.mark or ' '}" for c in group) for group in groups)
        out += [ruler.rstrip(), row.rstrip()]
    return out


def legend(drawn: Sequence[Cell], models: Sequence[str]) -> list[tuple[str, str]]:
    """The symbols that occur, and what each means."""
    by_letter = letters(models)
    seen = {cell.kind for cell in drawn}
    meant = [(by_letter[name], name) for name in models if f"of {name}" in seen]
    meant += [(symbol, name) for name, symbol in SYMBOLS.items() if name in seen]
    runs = {cell.mark: cell.runs for cell in drawn if cell.mark}
    said = ((mark, "10 runs or more" if runs[mark] > 9 else f"{runs[mark]} runs") for mark in runs)
    return meant + sorted(said, key=lambda one: RUN_MARKS.index(one[0]))


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
