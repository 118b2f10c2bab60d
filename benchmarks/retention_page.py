"""Tables and plot of `benchmarks/retention.py`, from its finished cells."""

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks.heal_answers import answer_cell
from benchmarks.heal_texts import SOURCES

BEGIN, END = "<!-- measured -->", "<!-- end of measured -->"
PLOT = "retention.svg"
YARDSTICK = "shortgpt"
DENSE = "base"
SHOWN = 88
"""Most shown characters of an answer."""
SAME, OTHER = zip(*SOURCES.values(), strict=True)
"""The sources that methods learn from, and the other sources."""
READ = {"a sum": ("sums", 0), "a function": ("MBPP written", 0), "an instruction": ("loops", -1)}
"""Shown answers: the measure and the number of each."""
QUOTED = ("base", "specialist", "merge", "shortgpt", "window", "heal", "shortgpt-heal", "replaceme")
"""Methods with shown answers."""


@dataclass(frozen=True)
class Cell:
    """A plan's judgement. Scores are values with their standard errors, by source or task."""

    share: int
    count: int
    method: str
    words: str
    seed: int
    seen: float | None
    held: Mapping[str, Sequence[float]]
    choices: Mapping[str, Sequence[float]]
    answers: Mapping[str, Sequence[tuple[str, float]]]
    evaluations: float
    seconds: float
    note: str

    def nats(self, sources: Sequence[str]) -> float:
        """Return the mean over sources."""
        return fmean(self.held[name][0] for name in sources)

    def error(self, sources: Sequence[str]) -> float:
        """Return the mean's standard error over texts."""
        return math.hypot(*(self.held[name][1] for name in sources)) / len(sources)


@dataclass(frozen=True)
class Cells:
    """All measured cells. `uncut` is the best dense model on the search's texts."""

    cells: Sequence[Cell]
    words: Mapping[str, str] = field(default_factory=dict)

    @property
    def uncut(self) -> Cell:
        """Return the reference of the recovered share."""
        dense = [cell for cell in self.cells if not cell.share and cell.seen is not None]
        return min(dense, key=lambda cell: cell.seen or 0.0)

    @property
    def shares(self) -> list[int]:
        """Return the shares of cut layers."""
        return sorted({cell.share for cell in self.cells if cell.share})

    def of(self, share: int) -> dict[str, list[Cell]]:
        """Return the cells of a share by method and seed."""
        found: dict[str, list[Cell]] = {}
        for cell in self.cells:
            if cell.share == share:
                found.setdefault(cell.method, []).append(cell)
        return {name: sorted(them, key=lambda one: one.seed) for name, them in found.items()}

    def won_back(self, cell: Cell, sources: Sequence[str]) -> float | None:
        """Return 1 − (found − best uncut) / (ShortGPT on the best specialist − best uncut)."""
        yardstick, uncut = self.of(cell.share).get(YARDSTICK), self.uncut.nats(sources)
        if yardstick is None or yardstick[0].nats(sources) <= uncut:
            return None
        return 1 - (cell.nats(sources) - uncut) / (yardstick[0].nats(sources) - uncut)

    def retained(self, cell: Cell) -> float | None:
        """Return the mean over tasks of the score divided by the dense base's, as in the paper."""
        dense = next((one for one in self.cells if one.method == DENSE), None)
        if dense is None:
            return None
        pairs = [(cell.choices[task][0], dense.choices[task][0]) for task in cell.choices]
        shares = [mine / theirs for mine, theirs in pairs if theirs > 0]
        return fmean(shares) if shares else None

    def kept(self, cell: Cell) -> float:
        """Return the best uncut model's nats divided by the cell's: the mean of other sources."""
        return fmean(self.uncut.held[name][0] / cell.held[name][0] for name in OTHER)


# -------------------------------------------------------------------------------------- the tables


def page(cells: Cells) -> str:
    """Return all tables as Markdown; the plot is a separate file."""
    if not any(cell.share == 0 for cell in cells.cells):
        return "Nothing is measured yet.\n"
    parts = [*tables(cells, 0)]
    for share in cells.shares:
        count = cells.of(share).popitem()[1][0].count
        parts += [f"### {share} % of the layers ({count})", *tables(cells, share)]
    if cells.shares:
        parts += [f"![Share kept over share cut]({PLOT})"]
        parts += ["### Layers that left", "\n".join(notes(cells))]
        parts += ["### Greedy text", "\n".join(continuations(cells))]
    return "\n\n".join(parts) + "\n"


def tables(cells: Cells, share: int) -> Iterator[str]:
    """Yield a share's table of losses and its table of tasks, with a row for each method."""
    found = sorted(cells.of(share).items(), key=lambda one: fmean(c.nats(OTHER) for c in one[1]))
    for row_of in (_losses, _tasks):
        rows = []
        for name, several in found:
            words = cells.words.get(name, name)
            if not share and several[0].note:
                words += f": {several[0].note}"
            seeds = f" ({len(several)} seeds)" if len(several) > 1 else ""
            rows.append({"": words + seeds, **row_of(cells, several)})
        lines = [f"| {' | '.join(row.values())} |" for row in rows]
        heads = f"| {' | '.join(rows[0])} |"
        yield "\n".join([heads, "|---" + "|--:" * (len(rows[0]) - 1) + "|", *lines])


def _losses(cells: Cells, several: Sequence[Cell]) -> dict[str, str]:
    """Return means over seeds in nats a token. Errors are over texts, and ranges over seeds."""
    seen = [cell.seen for cell in several if cell.seen is not None]
    row = {"search's texts": f"{fmean(seen):.3f}" if seen else ""}
    for title, sources in (("same sources", SAME), ("other sources", OTHER)):
        nats, error = (fmean(one(sources) for one in of) for of in (
            [cell.nats for cell in several], [cell.error for cell in several],
        ))  # fmt: skip
        row[title] = f"{nats:.3f} ± {error:.3f}"
        if several[0].share:
            shares = [cells.won_back(cell, sources) for cell in several]
            row[f"won back, {title.split()[0]}"] = _percents(shares)
    for pair in SOURCES.values():
        means = [fmean(cell.held[name][0] for cell in several) for name in pair]
        row[" · ".join(pair)] = " · ".join(f"{value:.3f}" for value in means)
    return row


def _tasks(cells: Cells, several: Sequence[Cell]) -> dict[str, str]:
    """Return means over seeds in percent, with their errors over questions, and the cost."""
    row = {}
    for task in several[0].choices:
        value, error = (fmean(cell.choices[task][i] for cell in several) for i in (0, 1))
        row[task] = f"{100 * value:.0f} ± {100 * error:.0f} %"
    row["retained"] = _percents([cells.retained(cell) for cell in several])
    for measure in several[0].answers:
        row[measure] = answer_cell([cell.answers for cell in several], measure)
    row["evaluations"] = f"{fmean(cell.evaluations for cell in several):.0f}"
    row["seconds"] = f"{fmean(cell.seconds for cell in several):.0f}"
    return row


def _percents(shares: Sequence[float | None]) -> str:
    known = [100 * one for one in shares if one is not None]
    if not known:
        return ""
    low, high = f"{min(known):.0f}", f"{max(known):.0f}"
    apart = "" if low == high else f" ({low} to {high})"
    return f"{round(fmean(known))} %{apart}"


def notes(cells: Cells) -> Iterator[str]:
    """Yield the chosen layers by method and share, for the first seed."""
    shares = cells.shares
    yield "| | " + " | ".join(f"{share} %" for share in shares) + " |"
    yield "|---" * (1 + len(shares)) + "|"
    for name in _methods(cells):
        row = [cells.of(share).get(name) for share in shares]
        said = [_cell(one[0].note) if one else "" for one in row]
        if any(said):
            yield f"| {cells.words.get(name, name)} | {' | '.join(said)} |"


def continuations(cells: Cells) -> Iterator[str]:
    """Yield the beginnings of some answers at each share, for the first seed."""
    for share in (0, *cells.shares):
        title = f"**{share} % of the layers cut**" if share else "**Uncut**"
        yield from (title, "", f"| | {' | '.join(READ)} |", "|---" * (1 + len(READ)) + "|")
        shown = ((name, its) for name, its in cells.of(share).items() if name in QUOTED)
        for name, several in shown:
            found = (several[0].answers[measure][at][0] for measure, at in READ.values())
            said = " | ".join(_cell(text[:SHOWN]) for text in found)
            yield f"| {cells.words.get(name, name)} | {said} |"
        yield ""


def _cell(text: str) -> str:
    """Escape a text for a cell of a table."""
    whole = escape(" ⏎ ".join(text.strip().splitlines()), quote=False)
    return re.sub(r"([\\`*_~|[\]])", r"\\\1", whole)


def _methods(cells: Cells) -> list[str]:
    """Return the methods that cut, in the order of `words`."""
    found = {cell.method for cell in cells.cells if cell.share}
    return [name for name in cells.words if name in found]


# ---------------------------------------------------------------------------------------- the plot

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 860, 520, 70, 270, 24, 50
COLOURS = (
    "#1b6ca8", "#d1495b", "#2e8b57", "#8e5ea2", "#e08e0b", "#555555", "#17a2b8", "#a0522d",
    "#6b8e23", "#c71585", "#708090", "#4b0082", "#008080", "#b8860b", "#cd5c5c", "#2f4f4f",
)  # fmt: skip
APART = 15
"""Least pixels between two labels."""


def plot(cells: Cells) -> str:
    """Return an SVG plot of the kept share over the cut share, with a line for each method."""
    lines = {name: [(0.0, 1.0), *_line(cells, name)] for name in _methods(cells)}
    high, most = 1.0, max(cells.shares, default=1)
    low = min((y for line in lines.values() for _, y in line), default=0.9)
    low = min(math.floor(20 * low) / 20, 0.95)

    def at(point: tuple[float, float]) -> tuple[float, float]:
        x, y = point
        wide, tall = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM
        return LEFT + wide * x / most, TOP + tall * (high - y) / (high - low)

    parts = [*_axes(cells, at, low, most)]
    ends = sorted((at(line[-1])[1], name) for name, line in lines.items())
    for label, (_, name) in zip(_spread([y for y, _ in ends]), ends, strict=True):
        colour = COLOURS[list(lines).index(name) % len(COLOURS)]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in map(at, lines[name]))
        thick = 2.6 if cells.words.get(name, "").startswith("gptailor") else 1.3
        parts.append(
            f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="{thick}"/>'
        )
        for x, y in map(at, lines[name][1:]):
            parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>')
        x, y = at(lines[name][-1])
        text = escape(cells.words.get(name, name))
        parts.append(
            f'<path d="M{x + 4:.1f},{y:.1f} L{WIDTH - RIGHT + 22},{label:.1f}" stroke="{colour}"'
            f' stroke-width="0.5" fill="none"/><text x="{WIDTH - RIGHT + 26}" y="{label + 4:.1f}"'
            f' fill="{colour}">{text}</text>'
        )
    body = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}"'
        f' font-family="sans-serif" font-size="12">\n'
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>\n{body}\n</svg>\n'
    )


def _line(cells: Cells, name: str) -> Iterator[tuple[float, float]]:
    for share in cells.shares:
        if several := cells.of(share).get(name):
            yield float(share), fmean(map(cells.kept, several))


def _axes(cells: Cells, at: Any, low: float, most: int) -> Iterator[str]:
    left, bottom = at((0.0, low))
    right, top = at((most, 1.0))
    for share in (0, *cells.shares):
        x, _ = at((share, low))
        yield f'<path d="M{x:.1f},{top:.1f} V{bottom:.1f}" stroke="#ddd"/>'
        yield f'<text x="{x:.1f}" y="{bottom + 18:.1f}" text-anchor="middle">{share} %</text>'
    step = 0.05 if low >= 0.6 else 0.1
    for n in range(math.ceil(low / step - 1e-9), math.floor(1 / step + 1e-9) + 1):
        _, y = at((0.0, n * step))
        yield f'<path d="M{left:.1f},{y:.1f} H{right:.1f}" stroke="#ddd"/>'
        yield (
            f'<text x="{left - 8:.1f}" y="{y + 4:.1f}" text-anchor="end">'
            f"{100 * n * step:.0f} %</text>"
        )
    middle = (left + right) / 2
    yield f'<text x="{middle:.1f}" y="{HEIGHT - 12}" text-anchor="middle">layers cut</text>'
    height = (top + bottom) / 2
    yield (
        f'<text transform="translate(18,{height:.1f}) rotate(-90)" text-anchor="middle">'
        "kept: best uncut nats / nats, mean of other sources</text>"
    )


def _spread(heights: Sequence[float]) -> list[float]:
    """Return ascending heights moved apart for labels, within the picture."""
    found: list[float] = []
    for height in heights:
        found.append(max(height, found[-1] + APART) if found else height)
    for i in reversed(range(len(found))):
        below = found[i + 1] - APART if i + 1 < len(found) else float(HEIGHT - 8)
        found[i] = min(found[i], below)
    return found


# ------------------------------------------------------------------------------------- on the disk


def put(cells: Cells, file: Path, command: str) -> None:
    """Write the measured part of a page between its markers, and the plot beside the page.

    Raises ValueError for a page without markers.
    """
    text = file.read_text("utf-8")
    before, begun, rest = text.partition(BEGIN)
    _, ended, after = rest.partition(END)
    if not begun or not ended:
        raise ValueError(f"{file} has no {BEGIN} and {END}")
    measured = f"\n```console\n$ {command}\n```\n\n{page(cells)}\n"
    file.write_text(before + BEGIN + measured + END + after, "utf-8")
    if cells.shares:
        file.with_name(PLOT).write_text(plot(cells), "utf-8")


def cells_of(known: Iterable[Mapping[str, Any]], words: Mapping[str, str]) -> Cells:
    """Return the cells of a journal."""
    return Cells([Cell(**one) for one in known], words)
