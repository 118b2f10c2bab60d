"""A plan's layers as a map: a column a layer, a colour and a letter a model."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, final

import click

from gptailor.plan.layer_parts import BRANCHES, Branch
from gptailor.reporting.layer_view import LayerKind, LayerView, slot_shares

COLOURS = ("blue", "green", "yellow", "magenta", "cyan", "red", "bright_blue", "bright_green")
"""The models' colours, the base's first; more models than colours start again."""

HUES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#a17a00", "#2c93c9", "#7d6fcf", "#7f7f7f")
"""The colours of models and other kinds, the base's first.

They are based on Okabe and Ito's colours, which colour-blind readers can tell apart. Each has a
contrast of 3 with the light page and with the dark page."""

SYMBOLS = {
    LayerKind.MERGED: "◆",
    LayerKind.MIXED: "◧",
    LayerKind.OPEN: "?",
    LayerKind.MAYBE: "○",
    LayerKind.DROPPED: "·",
    LayerKind.BRIDGED: "─",
}
"""The symbols of layers that don't come from one model."""

RUN_MARKS = "²³⁴⁵⁶⁷⁸⁹⁺"
"""The marks after the symbols of layers that run 2, 3, … 9 times, and 10 times or more."""


def letters(models: Sequence[str]) -> dict[str, str]:
    """Return a letter for each model: the first of its name that is free, or any free one."""
    letter_of: dict[str, str] = {}
    for name in models:
        possible = (*name, *name.upper(), *"0123456789abcdefghijklmnopqrstuvwxyz")
        free = (c for c in possible if c not in letter_of.values() and c.isalnum())
        letter_of[name] = next(free, "#")
    return letter_of


def colours(models: Sequence[str], palette: Sequence[str] = COLOURS) -> dict[str, str]:
    """Return a colour for each model; colours start again after the last."""
    return {name: palette[i % len(palette)] for i, name in enumerate(models)}


# --------------------------------------------------------------------------------- lines of a map

SHARES = "▁▂▃▄▅▆▇█"
"""The symbols of a model's share of a layer; the last symbol means all of it."""

LEARNS = ("+", "learns by 'heal'")
"""The mark below layers that learn by `heal`, and its meaning."""

DIFFERS = ("^", "differs")
"""The mark below layers that differ between two plans, and its meaning."""

_SHARE_KEY = (f"{SHARES[0]}…{SHARES[-1]}", "a model's share")


@final
class MapRow(NamedTuple):
    """A line of a map: its head, two columns for each layer, and a symbol with its meaning.

    Head and columns have a terminal's colours.
    """

    head: str
    columns: Sequence[str]
    key: tuple[str, str] | None = None


@final
@dataclass(frozen=True)
class LayerGrid:
    """The layers of one or two plans as a map: a column a layer, with letters for `models`.

    `views` are all layers that are drawn. The ruler has no number above a layer without a number in
    `ruler`.
    """

    models: Sequence[str]
    views: Sequence[LayerView]
    rows: Sequence[MapRow]
    ruler: Sequence[int | None]

    @classmethod
    def of(cls, views: Sequence[LayerView], models: Sequence[str]) -> "LayerGrid":
        """Return the map of a plan's layers, with the rows of shares and healing below them."""
        rows = [layer_row(views, models), *_share_rows(views, models)]
        return cls(models, views, rows, range(len(views)))

    def lines(self, width: int = 84) -> Iterator[str]:
        """Yield the lines of the map: rows in groups of ten layers, below a ruler of numbers.

        A line has at most `width` columns, and all lines have about as many layers. They have a
        terminal's colours; `click.unstyle` removes these.
        """
        drawn = len(self.ruler)
        last = [(row.key, click.unstyle(row.columns[-1])) for row in self.rows if row.columns]
        marked = any(c[1] != " " or (key == _SHARE_KEY and c[0] != " ") for key, c in last)
        beside = 1 + max([1, *(len(click.unstyle(row.head)) for row in self.rows)])
        fitting = max(1, (width - beside + 2 - marked) // 21) * 10
        count = max(1, -(-drawn // fitting))
        per_line = -(-drawn // (10 * count)) * 10
        for start in range(0, drawn, per_line or 10):
            groups = range(start, min(start + per_line, drawn), 10)
            numbers = (self.ruler[i] for i in groups)
            labels = ("" if number is None else f"L{number}" for number in numbers)
            ruler = "  ".join(f"{label:<19}" for label in labels).rstrip()
            yield " " * beside + click.style(ruler, dim=True)
            for row in self.rows:
                tens = " ".join("".join(row.columns[i : i + 10]) for i in groups)
                blanks = " " * (beside - len(click.unstyle(row.head)))
                if line := f"{row.head}{blanks}{tens}".rstrip():
                    yield line

    def legend(self) -> list[tuple[str, str]]:
        """Return the symbols in the map, each with its meaning."""
        kinds = {view.kind for view in self.views}
        owners = {view.model for view in self.views if view.kind is LayerKind.OF_ONE_MODEL}
        shares = {click.unstyle(row.head)[0] for row in self.rows if row.key == _SHARE_KEY}
        entries = [
            (letter, name)
            for name, letter in letters(self.models).items()
            if name in owners or letter in shares
        ]
        entries += [(symbol, kind.value) for kind, symbol in SYMBOLS.items() if kind in kinds]
        runs = {min(view.runs, 10) for view in self.views if view.runs > 1}
        entries += [
            (_run_mark(n), f"{n} runs" if n < 10 else "10 runs or more") for n in sorted(runs)
        ]
        return [*entries, *dict.fromkeys(row.key for row in self.rows if row.key)]


def layer_row(views: Sequence[LayerView | None], models: Sequence[str], head: str = "") -> MapRow:
    """Return the line of the layers' symbols and marks; None gives blanks."""
    by_letter, by_colour = letters(models), colours(models)
    columns = []
    for view in views:
        if view is None:
            columns.append("  ")
            continue
        colour = by_colour.get(view.model or "")
        symbol = SYMBOLS.get(view.kind) or by_letter.get(view.model or "", "#")
        if colour is not None:
            merged = view.kind is LayerKind.MERGED
            symbol = click.style(symbol, colour, bold=merged or None, reverse=True)
        columns.append(symbol + _run_mark(view.runs))
    return MapRow(head, columns)


def _run_mark(runs: int) -> str:
    """Return `²` for a layer that runs twice, and a blank for a layer that runs once."""
    return RUN_MARKS[min(runs, 10) - 2] if runs > 1 else " "


def mark_row(key: tuple[str, str], marked: Sequence[bool]) -> MapRow:
    """Return a line with a mark below some layers and no head, which would look like a mark."""
    mark = click.style(key[0], bold=True)
    return MapRow("", [f"{mark if on else ' '} " for on in marked], key)


def _share_rows(views: Sequence[LayerView], models: Sequence[str]) -> list[MapRow]:
    """Return a line of shares for each model if a layer has several, and a line for healing.

    Merges with other shares in each branch have a line for each model and branch.
    """
    by_letter, by_colour = letters(models), colours(models)
    rows = []
    for branch, shares in _drawn_shares(views).items():
        for name in models:
            if any(name in of_layer for of_layer in shares):
                colour = by_colour[name]
                columns = [_share(of_layer.get(name, 0.0), colour) for of_layer in shares]
                head = click.style(f"{by_letter[name]} {branch}".rstrip(), colour)
                rows.append(MapRow(head, columns, _SHARE_KEY))
    if any(view.learns for view in views):
        rows.append(mark_row(LEARNS, [view.learns for view in views]))
    return rows


def _drawn_shares(views: Sequence[LayerView]) -> dict[str, list[Mapping[str, float]]]:
    """Return the models' shares of each layer by branch, or of whole layers by the name ""."""

    def shares(*branches: Branch) -> list[Mapping[str, float]]:
        kept = (view.slot if view.slot.dropped == "no" else None for view in views)
        return [(slot and slot_shares(slot, branches)) or {} for slot in kept]

    whole, by_branch = shares(*BRANCHES), [shares(branch) for branch in BRANCHES]
    merged = (view.kind is LayerKind.MERGED for view in views)
    if any(m and a != b for m, a, b in zip(merged, *by_branch, strict=True)):
        return dict(zip(BRANCHES, by_branch, strict=True))
    return {"": whole} if any(len(of_layer) > 1 for of_layer in whole) else {}


def _share(share: float, colour: str) -> str:
    if share <= 0.0:
        return "  "
    symbol = SHARES[-1] if share > 0.999 else SHARES[min(max(round(8 * share), 1), 7) - 1]
    return f"{click.style(symbol, colour)} "


_HEAD = "  "


def painted(grid: LayerGrid, width: int) -> Iterator[str]:
    """Yield a map's lines, and below them its symbols with their colours."""
    yield from grid.lines(width)
    yield ""
    colour_of = colours(grid.models)
    line, used = _HEAD, 0
    for symbol, name in grid.legend():
        size = len(symbol) + 1 + len(name)
        if used and len(_HEAD) + used + 3 + size > width:
            yield line
            line, used = _HEAD, 0
        colour = colour_of.get(name)
        key = click.style(symbol, fg=colour, reverse=True) if colour else symbol
        line += "   " * bool(used) + f"{key} {name}"
        used += size + 3 * bool(used)
    yield line
