"""A search on a terminal: how far it is, what is best, what the starting plans reached."""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import rich.live
from rich.console import Console, ConsoleOptions, Group
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Column, Table
from rich.text import Text

from gptailor.plan.layers import slots
from gptailor.plan.plan import Plan
from gptailor.report import plan_map as layer_map
from gptailor.report.describe import plan_summary


@final
@dataclass(frozen=True)
class Shown:
    """The best plan so far: its scores in words, the shares of the base's, and itself."""

    scores: str
    shares: str
    plan: Plan
    layers: int


@final
@dataclass(frozen=True)
class Standing:
    """How far a search is. `left` are seconds; `last` and `start` are trials in words."""

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
    objectives: tuple[str, ...]


@final
class LiveView:
    """A context in which the view is on the screen, on standard error."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True)
        self._view = _View()
        self._live = rich.live.Live(
            self._view, console=self._console, refresh_per_second=4, transient=True
        )

    def __enter__(self) -> "LiveView":
        self._live.__enter__()
        return self

    def __exit__(self, *exception: object) -> None:
        self._live.__exit__(None, None, None)

    def say(self, what: str) -> None:
        """What is being done now."""
        self._view.doing(what)

    def show(self, standing: Standing) -> None:
        """Where the search is."""
        self._view.standing = standing


@final
class _View:
    """What is on the screen; drawn several times a second, as clocks go on."""

    def __init__(self) -> None:
        self.standing: Standing | None = None
        self._begun = time.monotonic()
        self._spinner = Spinner("dots")
        self.doing("")

    def doing(self, what: str) -> None:
        self._spinner.update(text=Text(what, overflow="ellipsis", no_wrap=True))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Group]:
        parts = [] if self.standing is None else list(self._parts(self.standing, options.max_width))
        yield Group(*parts, self._spinner)

    def _parts(self, now: Standing, width: int) -> Iterator[Text | Table]:
        yield self._bar(now, width)
        if now.best is not None:
            yield from _plan(now.best, width)
        rows = Table.grid(padding=(0, 2))
        rows.add_column(style="bold", no_wrap=True, min_width=len("best start"))
        rows.add_column(overflow="ellipsis", no_wrap=True)
        if now.best is not None:
            rows.add_row("best", _joined(now.best.scores, now.best.shares))
        if now.start:
            rows.add_row("best start", now.start)
        if len(now.objectives) > 1:
            rows.add_row("front", f"{now.front} plan{'s' * (now.front != 1)}")
        if now.hits or now.failed:
            rows.add_row("besides", f"{now.hits} known before, {now.failed} failed")
        if now.last:
            rows.add_row("last", now.last)
        yield rows

    def _bar(self, now: Standing, width: int) -> Table:
        row = Table.grid(*(Column(no_wrap=True) for _ in range(6)), padding=(0, 2))
        bar = ProgressBar(total=now.budget, completed=min(now.spent, now.budget), width=width // 6)
        row.add_row(
            bar,
            f"{now.spent:.4g}/{now.budget}",
            f"{now.trials} trials",
            f"{now.per_minute:.3g}/min",
            f"{clock(now.left)} left" if now.left is not None else "",
            clock(time.monotonic() - self._begun),
        )
        return row


def _plan(best: Shown, width: int) -> Iterator[Text]:
    """The map of the best plan's layers, in colours."""
    found = slots(best.plan, best.layers)
    drawn = layer_map.cells(found, list(best.plan.models))
    cells = iter(drawn)
    for i, line in enumerate(layer_map.map_lines(drawn, width - 2)):
        text = Text("  ")
        if i % 2 == 0:
            text.append(line, style="dim")
        else:
            for symbol in line:
                text.append(symbol, style=" " if symbol == " " else _style(next(cells)))
        yield text
    keys = layer_map.legend(drawn, list(best.plan.models))
    legend = "   ".join(f"{symbol} {name}" for symbol, name in keys)
    for line in (legend, plan_summary(found)):
        yield Text(f"  {line}", style="dim", overflow="ellipsis", no_wrap=True)


def _style(cell: layer_map.Cell) -> str:
    if cell.colour is None:
        return ""
    return f"reverse {cell.colour}" + (" bold" if cell.kind == "merged" else "")


def _joined(*parts: str) -> str:
    return "; ".join(part for part in parts if part)


def clock(seconds: float) -> str:
    """`1:02:03`, `2:03`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


_Row = Mapping[str, Any]


def shown_number(value: float | None, error: float | None = None) -> str:
    """`3.785 ± 0.041`; `?` for what is unknown."""
    if value is None:
        return "?"
    return f"{value:.4g}" if error is None else f"{value:.4g} ± {error:.2g}"


def percent(share: float | None) -> str:
    """`78.3 %`."""
    return "?" if share is None else f"{100 * share:.1f} %"


def markdown(said: Mapping[str, Any]) -> str:
    """The summary as a page."""
    lines = [f"# {said['plan']}", "", _ended(said), ""]
    for i, aim in enumerate(said["objectives"]):
        lines += [*_table(said, i, aim), ""]
    lines += [*_random(said), "", *_commands(said)]
    return "\n".join(lines).rstrip() + "\n"


def summary_lines(said: Mapping[str, Any], width: int) -> Iterator[str]:
    """The same for a terminal of so many columns."""
    yield _ended(said)
    for i, aim in enumerate(said["objectives"]):
        yield ""
        yield f"{aim['name']}: {_better(aim)}{_held(said, i)}"
        head = ("", "score", "of the base's", "held out")
        rows = [head, *(_cells(name, row, i, said) for name, row in _rows(said))]
        sizes = [max(len(row[n]) for row in rows) for n in range(4)]
        sizes[0] = max(12, min(sizes[0], width - sum(sizes[1:]) - 8))
        for name, *cells in rows:
            short = name if len(name) <= sizes[0] else f"{name[: sizes[0] - 1]}…"
            columns = [f"{cell:>{size}}" for cell, size in zip(cells, sizes[1:], strict=True)]
            yield f"  {short:<{sizes[0]}}  {'  '.join(columns)}".rstrip()
    for part in (_random(said), _commands(said)):
        for n, line in enumerate(part):
            yield from [line] if n else ["", line]


def _ended(said: Mapping[str, Any]) -> str:
    ends = {
        "budget": "",
        "exhausted": "; the strategy found nothing new any more",
        "interrupted": "; interrupted, and the same command goes on",
    }
    failed = f", {said['failed']} failed" if said["failed"] else ""
    hits = f", {said['hits']} known before" if said["hits"] else ""
    return (
        f"{said['trials']} trials at the cost of {said['cost']:g} whole ones"
        f"{failed}{hits}{ends[said['ended']]}"
    )


def _better(aim: _Row) -> str:
    return "less is better" if aim["direction"] == "minimize" else "more is better"


def _held(said: Mapping[str, Any], i: int) -> str:
    count = said["held"][i] if said["held"] else 0
    return f"; held out: {count} samples" if count else "; nothing was held out"


def _rows(said: Mapping[str, Any]) -> list[tuple[str, _Row]]:
    """Names and rows: the base uncut, starting plans, random ones, what was found."""
    found: list[tuple[str, _Row]] = [("the base, uncut", said["base"])]
    found += [(row["origin"], row) for row in said["starts"]]
    drawn = said["random"]
    if drawn["best"] is not None:
        found.append((f"the best of {drawn['trials']} random plans", drawn["best"]))
    if said["best"] is not None:
        found.append((f"found: {said['best_file']}", said["best"]))
    return found


def _cells(name: str, row: _Row, i: int, said: Mapping[str, Any]) -> tuple[str, str, str, str]:
    """Name, score, share of the base's score, score on what was held out."""
    values, errors, held = row["values"], row.get("stderrs"), row["held"]
    shares = row.get("retained")
    by_base = said["objectives"][i]["scale"] == "base"
    return (
        name + (" (bridged)" if row.get("bridged") else ""),
        shown_number(values and values[i], errors and errors[i]),
        percent(shares[i]) if shares and by_base else "",
        "" if not held else shown_number(*_pair(held, i)) if "values" in held else "failed",
    )


def _pair(held: _Row, i: int) -> tuple[float | None, float | None]:
    return held["values"][i], held["stderrs"][i]


def _table(said: Mapping[str, Any], i: int, aim: _Row) -> list[str]:
    head = (f"`{aim['name']}` ({_better(aim)})", "score", "of the base's", "held out")
    rows = [_cells(name, row, i, said) for name, row in _rows(said)]
    return [_line(head), "|---|--:|--:|--:|", *map(_line, rows)]


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _random(said: Mapping[str, Any]) -> Iterator[str]:
    drawn, best = said["random"], said["best"]
    if drawn["whole"]:
        yield f"Random search at the same cost evaluated {drawn['trials']} plans."
    elif drawn["expected"] is not None and best is not None:
        worst = min((share for share in best["retained"] if share is not None), default=None)
        yield (
            f"Random search at the same cost would be expected to keep {percent(drawn['expected'])}"
            f" (found: {percent(worst)}): an estimate from {drawn['trials']} random plans, which"
            " --compare-random makes sure."
        )


def _commands(said: Mapping[str, Any]) -> Iterator[str]:
    if said["best"] is not None:
        for command in said["commands"]:
            yield f"    {command}"
