"""A plan's layers as a picture: a cell a layer, a colour and a letter a model."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, final

from gptailor.reporting.layer_view import LayerKind, LayerView

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


@final
@dataclass(frozen=True)
class Cell:
    """The look of one layer: a symbol, and the colour of its main model, if it has one.

    A layer with more than one of `runs` has a mark.
    """

    symbol: str
    colour: str | None
    kind: LayerKind
    model: str | None = None
    runs: int = 1

    @property
    def mark(self) -> str:
        """`²` of a layer that runs twice."""
        return RUN_MARKS[min(self.runs, 10) - 2] if self.runs > 1 else ""


def letters(models: Sequence[str]) -> dict[str, str]:
    """Return a letter for each model: the first of its name that is free, or any free one."""
    letter_of: dict[str, str] = {}
    for name in models:
        free = [c for c in (*name, *name.upper(), *"0123456789abcdefghijklmnopqrstuvwxyz")
                if c not in letter_of.values() and c.isalnum()]  # fmt: skip
        letter_of[name] = free[0] if free else "#"
    return letter_of


def colours(models: Sequence[str]) -> dict[str, str]:
    """Return a colour for each model."""
    return {name: COLOURS[i % len(COLOURS)] for i, name in enumerate(models)}


def cells(views: Sequence[LayerView], models: Sequence[str]) -> list[Cell]:
    """Return a cell for each layer, with letters and colours for `models`."""
    by_letter, by_colour = letters(models), colours(models)
    drawn = []
    for view in views:
        model = view.model or ""
        symbol = SYMBOLS.get(view.kind) or by_letter.get(model, "#")
        drawn.append(Cell(symbol, by_colour.get(model), view.kind, view.model, view.runs))
    return drawn


# --------------------------------------------------------------------------------- lines of a map

SHARES = "▁▂▃▄▅▆▇█"
"""The symbols of a model's share of a layer; the last symbol means all of it."""

LEARNS = "+"
"""The mark below layers that learn by `heal`."""

DIFFERS = "^"
"""The mark below layers that differ between two plans."""


@final
class Glyph(NamedTuple):
    """Some text of a map's line, with its look on a terminal with colours."""

    text: str
    colour: str | None = None
    reverse: bool = False
    bold: bool = False
    dim: bool = False


@final
class MapRow(NamedTuple):
    """A line of a map: its head, and two columns for each layer."""

    head: Glyph
    columns: Sequence[Sequence[Glyph]]


def cell_row(drawn: Sequence[Cell | None], head: str = "") -> MapRow:
    """Return the line of the cells; None gives blanks."""
    columns = []
    for cell in drawn:
        if cell is None:
            columns.append([Glyph(" "), Glyph(" ")])
            continue
        merged = cell.kind is LayerKind.MERGED
        symbol = Glyph(cell.symbol, cell.colour, cell.colour is not None, merged)
        columns.append([symbol, Glyph(cell.mark or " ")])
    return MapRow(Glyph(head), columns)


def share_rows(views: Sequence[LayerView], models: Sequence[str]) -> list[MapRow]:
    """Return a line of shares for each model if a layer has several, and a line for healing."""
    shares = [(view.shares if view.slot.dropped == "no" else None) or {} for view in views]
    by_letter, by_colour = letters(models), colours(models)
    several = any(len(of_layer) > 1 for of_layer in shares)
    rows = []
    for name in models if several else ():
        if any(name in of_layer for of_layer in shares):
            colour = by_colour[name]
            glyphs = [[Glyph(f"{_share(s.get(name, 0.0))} ", colour)] for s in shares]
            rows.append(MapRow(Glyph(by_letter[name], colour), glyphs))
    if any(view.learns for view in views):
        marks = [[Glyph(LEARNS if view.learns else " "), Glyph(" ")] for view in views]
        rows.append(MapRow(Glyph(LEARNS), marks))
    return rows


def _share(share: float) -> str:
    if share <= 0.0:
        return " "
    return SHARES[-1] if share > 0.999 else SHARES[min(max(round(8 * share), 1), 7) - 1]


def map_lines(
    rows: Sequence[MapRow], width: int = 84, ruler: Sequence[int | None] | None = None
) -> Iterator[list[Glyph]]:
    """Yield the lines of a map: rows in groups of ten layers, below a ruler of numbers.

    A line has at most `width` columns, and all lines have about as many layers. The ruler has no
    number above a layer that has none in `ruler`.
    """
    drawn = len(rows[0].columns)
    numbers = range(drawn) if ruler is None else ruler
    marked = any(row.columns and row.columns[-1][-1].text.strip() for row in rows)
    fitting = max(1, (width - len(_HEAD) + 2 - marked) // 21) * 10
    count = max(1, -(-drawn // fitting))
    per_line = -(-drawn // (10 * count)) * 10
    for start in range(0, drawn, per_line or 10):
        groups = range(start, min(start + per_line, drawn), 10)
        labels = ("" if numbers[i] is None else f"L{numbers[i]}" for i in groups)
        yield [
            Glyph(_HEAD),
            Glyph("  ".join(f"{label:<19}" for label in labels).rstrip(), dim=True),
        ]
        for row in rows:
            line = [row.head._replace(text=f"{row.head.text:<2}")]
            for i in groups:
                ten = [piece for column in row.columns[i : i + 10] for piece in column]
                line += [*ten, Glyph(" ")] if i != groups[-1] else ten
            if row.head.text or any(piece.text.strip() for piece in line):
                yield _stripped(line)


_HEAD = "  "


def _stripped(line: list[Glyph]) -> list[Glyph]:
    """Return the line without blanks at its end."""
    while len(line) > 1 and not line[-1].text.strip():
        line.pop()
    return [*line[:-1], line[-1]._replace(text=line[-1].text.rstrip())]


def plain_lines(lines: Iterator[list[Glyph]]) -> list[str]:
    """Return the lines of a map without colours."""
    return ["".join(piece.text for piece in line).rstrip() for line in lines]


def legend(
    drawn: Sequence[Cell], models: Sequence[str], rows: Sequence[MapRow] = ()
) -> list[tuple[str, str]]:
    """Return the symbols in the cells and in the rows below them, each with its meaning."""
    by_letter = letters(models)
    kinds = {cell.kind for cell in drawn}
    owners = {cell.model for cell in drawn if cell.kind is LayerKind.OF_ONE_MODEL}
    heads = {row.head.text for row in rows}
    entries = [
        (by_letter[name], name) for name in models if name in owners or by_letter[name] in heads
    ]
    entries += [(symbol, kind.value) for kind, symbol in SYMBOLS.items() if kind in kinds]
    runs = {cell.mark: cell.runs for cell in drawn if cell.mark}
    run_entries = (
        (mark, "10 runs or more" if runs[mark] > 9 else f"{runs[mark]} runs") for mark in runs
    )
    entries += sorted(run_entries, key=lambda entry: RUN_MARKS.index(entry[0]))
    if any(head.isalnum() for head in heads):
        entries.append((f"{SHARES[0]}…{SHARES[-1]}", "a model's share"))
    marks = (LEARNS, "learns by 'heal'"), (DIFFERS, "differs")
    return entries + [(mark, words) for mark, words in marks if mark in heads]
