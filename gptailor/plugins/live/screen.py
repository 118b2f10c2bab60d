"""A view of a search's events on a terminal, drawn again after each event."""

import time
from collections.abc import Iterator
from dataclasses import replace
from typing import final

import rich.live
from rich.console import Console, ConsoleOptions, Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Column, Table
from rich.text import Text

from gptailor.cli.options import say_faults
from gptailor.cli.search_view import TimeLeft, plan_name, steps, trial_remarks
from gptailor.plan.events import Progress
from gptailor.plan.resolved import Resolved
from gptailor.reporting.layer_cells import LayerGrid
from gptailor.reporting.layer_view import layer_views, plan_summary
from gptailor.reporting.quantities import clock, shown_number
from gptailor.reporting.terminal_encoding import in_encoding
from gptailor.searching import search as events
from gptailor.searching.run.trials import STARTS, Ledger, Trial
from gptailor.searching.search_text import loss_words, short_unit
from gptailor.searching.space.decode import plan_at_stage

_BESIDES = 12
"""Lines of the view besides the lines of the map and of the objectives."""


@final
class Screen:
    """A context that shows a search on standard error, drawn again after each event."""

    def __init__(self, console: Console | None = None) -> None:
        self._rest = TimeLeft()
        self._measuring: float | None = None
        self._last: Trial | None = None
        self._parts: list[RenderableType] = []
        self._map: tuple[int, list[Text]] = (-1, [])
        self._begun = time.monotonic()
        self._spinner = Spinner("dots")
        self._say("")
        console = console or Console(stderr=True)
        self._live = rich.live.Live(self, console=console, refresh_per_second=4, transient=True)

    def __enter__(self) -> "Screen":
        self._live.__enter__()
        return self

    def __exit__(self, *exception: object) -> None:
        self._live.__exit__(None, None, None)

    def __call__(self, event: events.SearchEvent) -> None:
        """Print a step, or draw the view again. Warnings stay above the view."""
        self._rest(event)
        match event:
            case events.Warned(faults):
                self._live.stop()  # clears the view
                say_faults(faults)
                self._live.start()
            case Progress("searching", done, total, what):
                self._say(steps(what, done, total) + self._steps_left(done, total))
            case events.Begun() | events.Estimated():
                self._draw()
            case Progress("asking"):  # the strategy is compiled when it is first asked
                self._say("choosing the next plans")
            case Progress("scoring", _, plans, numbers={"samples": samples}):
                many = "1 plan" if plans == 1 else f"{plans} plans"
                self._say(f"evaluating {many} on {samples} samples")
            case events.Scored(trial):
                self._last = trial
                self._draw()

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Group]:
        """Draw the view, several times a second as the clock goes on."""
        foot = Table.grid(padding=(0, 2))
        foot.add_row(clock(time.monotonic() - self._begun), self._spinner)
        yield Group(*self._parts, foot)

    def _say(self, what: str) -> None:
        """Show the present work."""
        self._spinner.update(text=Text(what, overflow="ellipsis", no_wrap=True))

    def _steps_left(self, done: int, total: int) -> str:
        """Return the time left for some steps, at the pace of the steps so far."""
        now = time.monotonic()
        if not total or not done or self._measuring is None:
            self._measuring = now if total else None
            return ""
        return f", {clock((now - self._measuring) / done * (total - done))} left"

    def _draw(self) -> None:
        """Draw all parts but the clock."""
        ledger = self._rest.search.ledger
        best = ledger.best()
        start = ledger.best([t for t in ledger.of(STARTS) if t.full and t.values is not None])
        plans = {"best start": start, "best": best, "last": self._last}
        parts: list[RenderableType] = [self._bar(ledger)]
        if best is not None:
            parts += self._layers(best)
        if ledger.trials:
            parts.append(_scores(ledger, plans))
        self._parts = [*parts, self._rows(ledger, plans)]

    def _bar(self, ledger: Ledger) -> Table:
        budget, left, each = self._rest.search.budget, self._rest.seconds, self._rest.each
        spent = ledger.cost() + budget.measured
        width = self._live.console.width // 6
        row = Table.grid(*(Column(no_wrap=True) for _ in range(5)), padding=(0, 2))
        row.add_row(
            ProgressBar(
                total=budget.evaluations, completed=min(spent, budget.evaluations), width=width
            ),
            self._rest.spent,
            f"{len(ledger.trials)} trial{'s' * (len(ledger.trials) != 1)}",
            f"{60 / each if each else 0:.3g}/min",
            "" if left is None else f"{clock(left)} left",
        )
        return row

    def _layers(self, best: Trial) -> list[Text]:
        """Return the map of the best plan, with shares if the screen has lines for them."""
        if self._map[0] == best.number:
            return self._map[1]
        _, _, space, _ = self._rest.search
        plan = plan_at_stage(space, best.request.genome, best.request.stage)
        console, views = self._live.console, layer_views(Resolved(plan, space.layers))
        grid = LayerGrid.of(views, list(plan.models))
        room = console.height - len(self._rest.search.ledger.aims) - _BESIDES
        if len(list(grid.lines(console.width))) > room:
            grid = replace(grid, rows=grid.rows[:1])
        drawn = (in_encoding(line, console.encoding) for line in grid.lines(console.width))
        lines = [Text.from_ansi(line) for line in drawn]
        keys = "   ".join(f"{symbol} {name}" for symbol, name in grid.legend())
        for words in (keys, plan_summary(views)):
            text = in_encoding(f"  {words}", console.encoding)
            lines.append(Text(text, style="dim", overflow="ellipsis", no_wrap=True))
        self._map = best.number, lines
        return lines

    def _rows(self, ledger: Ledger, plans: dict[str, Trial | None]) -> Table:
        """Return the names of plans, and other known facts, a line for each."""
        rows = Table.grid(padding=(0, 2))
        rows.add_column(style="bold", no_wrap=True, min_width=len("best start"))
        rows.add_column(overflow="ellipsis", no_wrap=True)
        details = {
            name: plan_name(trial, self._rest.search.space) + trial_remarks(trial, ledger)
            for name, trial in plans.items()
            if trial is not None
        }
        best = plans["best"]
        lost = None if best is None else ledger.loss(best)
        if lost is not None:
            words = loss_words(lost, short_unit(ledger.loss_unit))
            details["best"] += f"; {words}"
        front = len(ledger.front())
        counts = {
            "given up early": sum(trial.stopped is not None for trial in ledger.trials),
            "repeated": ledger.hits,
            "failed": sum(trial.values is None for trial in ledger.trials),
        }
        details["front"] = f"{front} plan{'s' * (front != 1)}" * (len(ledger.aims) > 1)
        details["besides"] = ", ".join(f"{n} {what}" for what, n in counts.items() if n)
        details["then"] = self._rest.then
        for name, what in details.items():
            if what:
                rows.add_row(name, what)
        return rows


def _scores(ledger: Ledger, plans: dict[str, Trial | None]) -> Table:
    """Return a line for each objective; names are shortened if there is too little room."""
    shown = {name: trial for name, trial in plans.items() if trial is not None}
    table = Table.grid(padding=(0, 2))
    table.add_column(overflow="ellipsis", no_wrap=True, min_width=len("best start"))
    for _ in ("base", *shown):
        table.add_column(justify="right", no_wrap=True)
    table.add_row("", *(Text(head, style="bold") for head in ("base", *shown)))
    base = ledger.references.get(ledger.full)
    for i, aim in enumerate(ledger.aims):
        of_base = "" if base is None else shown_number(base[i])
        table.add_row(aim.short, of_base, *(_score(trial, i) for trial in shown.values()))
    return table


def _score(trial: Trial, i: int) -> str:
    if trial.values is None or trial.stderrs is None:
        return "failed"
    return shown_number(trial.values[i], trial.stderrs[i])
