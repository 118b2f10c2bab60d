"""The live view of a search: its state, drawn on a terminal."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import final

import rich.live
from rich.console import Console, ConsoleOptions, Group
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Column, Table
from rich.text import Text

from gptailor.plan.plan import Plan
from gptailor.plan.resolved import Resolved
from gptailor.reporting.layer_cells import LayerGrid, painted
from gptailor.reporting.layer_view import layer_views, plan_summary
from gptailor.reporting.quantities import clock
from gptailor.reporting.terminal_encoding import in_encoding


@final
@dataclass(frozen=True)
class Shown:
    """The best plan so far: its name, its shares of the base's scores, and the plan."""

    name: str
    shares: str
    plan: Plan
    layers: int


@final
@dataclass(frozen=True)
class ScoreLine:
    """An objective's scores in words: base, best starting plan, best plan, last plan."""

    objective: str
    base: str = ""
    start: str = ""
    best: str = ""
    last: str = ""


@final
@dataclass(frozen=True)
class Standing:
    """The state of a search. `left` is in seconds; `last` and `start` are names of trials.

    `stopped` counts the trials that were given up before all their samples. `then` describes the
    work after the trials.
    """

    trials: int
    spent: float
    budget: int
    hits: int
    failed: int
    per_minute: float
    left: float | None
    last: str
    best: Shown | None
    start: str
    front: int
    objectives: tuple[ScoreLine, ...]
    stopped: int = 0
    then: str = ""


@final
class LiveView:
    """A context that shows the live view on standard error."""

    def __init__(self, console: Console | None = None) -> None:
        self._standing: Standing | None = None
        self._begun = time.monotonic()
        self._spinner = Spinner("dots")
        self.say("")
        console = console or Console(stderr=True)
        self._live = rich.live.Live(self, console=console, refresh_per_second=4, transient=True)

    def __enter__(self) -> "LiveView":
        self._live.__enter__()
        return self

    def __exit__(self, *exception: object) -> None:
        self._live.__exit__(None, None, None)

    def say(self, what: str) -> None:
        """Show what is being done now."""
        self._spinner.update(text=Text(what, overflow="ellipsis", no_wrap=True))

    def show(self, standing: Standing) -> None:
        """Show how far the search is."""
        self._standing = standing

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Group]:
        """Draw the view, several times a second as clocks go on."""
        now = self._standing
        yield Group(*(self._parts(now, options.max_width) if now else ()), self._spinner)

    def _parts(self, now: Standing, width: int) -> Iterator[Text | Table]:
        yield self._bar(now, width)
        if now.best is not None:
            room = self._live.console.height - len(now.objectives) - _BESIDES
            yield from _plan(now.best, width, room, self._live.console.encoding)
        if now.trials:
            yield _scores(now.objectives)
        rows = Table.grid(padding=(0, 2))
        rows.add_column(style="bold", no_wrap=True, min_width=len("best start"))
        rows.add_column(overflow="ellipsis", no_wrap=True)
        if now.best is not None:
            rows.add_row("best", "; ".join(filter(None, (now.best.name, now.best.shares))))
        counts = (now.stopped, "given up early"), (now.hits, "known before"), (now.failed, "failed")
        details = {
            "best start": now.start,
            "front": f"{now.front} plan{'s' * (now.front != 1)}" * (len(now.objectives) > 1),
            "besides": ", ".join(f"{count} {what}" for count, what in counts if count),
            "last": now.last,
            "then": now.then,
        }
        for name, what in details.items():
            if what:
                rows.add_row(name, what)
        yield rows

    def _bar(self, now: Standing, width: int) -> Table:
        row = Table.grid(*(Column(no_wrap=True) for _ in range(6)), padding=(0, 2))
        bar = ProgressBar(total=now.budget, completed=min(now.spent, now.budget), width=width // 6)
        row.add_row(
            bar,
            f"{now.spent:.4g}/{now.budget}",
            f"{now.trials} trial{'s' * (now.trials != 1)}",
            f"{now.per_minute:.3g}/min",
            f"{clock(now.left)} left" if now.left is not None else "",
            clock(time.monotonic() - self._begun),
        )
        return row


def _scores(objectives: Sequence[ScoreLine]) -> Table:
    """Return a line for each objective; names are shortened if there is too little room."""
    table = Table.grid(padding=(0, 2))
    table.add_column(overflow="ellipsis", no_wrap=True, min_width=len("best start"))
    columns = [("base", "base"), ("best start", "start"), ("best", "best"), ("last", "last")]
    shown = [(head, name) for head, name in columns if any(getattr(o, name) for o in objectives)]
    for _ in shown:
        table.add_column(justify="right", no_wrap=True)
    table.add_row("", *(Text(head, style="bold") for head, _ in shown))
    for line in objectives:
        table.add_row(line.objective, *(getattr(line, name) for _, name in shown))
    return table


_BESIDES = 12
"""Lines of the view besides the lines of the map and of the objectives."""


def _plan(best: Shown, width: int, room: int, encoding: str) -> Iterator[Text]:
    """Yield the map of a plan, with shares if `room` has lines for them."""
    views, models = layer_views(Resolved(best.plan, best.layers)), list(best.plan.models)
    grid = LayerGrid.of(views, models)
    if len(list(grid.lines(width))) > room:
        grid = replace(grid, rows=grid.rows[:1])
    for line in grid.lines(width):
        encoded = [glyph._replace(text=in_encoding(glyph.text, encoding)) for glyph in line]
        yield Text.from_ansi(painted(encoded))
    keys = "   ".join(f"{symbol} {name}" for symbol, name in grid.legend())
    for words in (keys, plan_summary(views)):
        yield Text(
            in_encoding(f"  {words}", encoding), style="dim", overflow="ellipsis", no_wrap=True
        )
