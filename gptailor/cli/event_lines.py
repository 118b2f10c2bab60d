"""Lines on standard error about the events of a run, and a bar of its progress."""

import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from typing import final

from gptailor.cli import options
from gptailor.plan.events import BytesDone, Event, FitResult, OnEvent, Progress, seconds_left
from gptailor.reporting.quantities import bytes_in_words, clock, duration, millions

_PAUSE = 10.0
"""The minimum number of seconds between two lines about the progress of a repair."""
_REUSES = "reuses the teacher's earlier predictions"
_aside = partial(options.say, err=True)


@cache
def _openings() -> Mapping[str, str]:
    """Return the lines before the first layer is measured, by the work."""
    from gptailor.reporting.fit_words import FIT_WORDS  # slow to import

    others = {
        "importance matrix": "importance matrix",
        "fitting": "fitting the plan inside, {0.at}",
    }
    return others | {
        what: line for words in FIT_WORDS.values() for what, line in words.openings.items()
    }


@final
class RepairLines:
    """A receiver of events that prints the steps of an evaluation and, at intervals, of fits.

    With `every_gap` each gap has a line, and a long fit has more. Without `ends` the result of
    healing has no line, because the command prints it. A result that is used again has no second
    line. `opening` begins the lines about a teacher.
    """

    def __init__(
        self,
        say: Callable[[str], None] = _aside,
        *,
        every_gap: bool = False,
        ends: bool = True,
        opening: str = "healing: ",
    ) -> None:
        self._say = say
        self._every_gap = every_gap
        self._ends = ends
        self._opening = opening
        self._last = self._begun = 0.0
        self._ended = list[FitResult]()

    def __call__(self, event: object) -> None:
        """Print the event's line, if it has a line and the interval has passed."""
        match event:
            case FitResult("heal") if self._ends and event not in self._ended:
                from gptailor.reporting.fit_words import fit_in_words  # slow to import

                self._ended.append(event)
                self._say(fit_in_words(event))
            case Progress("evaluating", 0):
                self._begun = time.monotonic()
            case Progress("evaluating", done, total, at):
                rest = clock(seconds_left(self._begun, done, total))
                left = f", {rest} left" if done < total else ""
                self._say(f"{done}/{total} {at}{left}")
            case Progress("learning", total=layers, numbers=sizes):
                many = f"{layers} layer{'s' * (layers != 1)}"
                self._say(
                    f"healing {many}: {millions(int(sizes['numbers']))} numbers learn from "
                    f"{sizes['tokens']:,.0f} tokens, {bytes_in_words(int(sizes['bytes']))} in "
                    "addition to the model"
                )
            case Progress():
                self._progress(event)

    def _progress(self, event: Progress) -> None:
        left = "" if event.seconds_left is None else f", {duration(event.seconds_left)} left"
        match event:
            case Progress("healing", reused=True):
                self._say("healing: reuses an earlier result")
            case Progress("healing", done, total, numbers=numbers) if self._due(end=done == total):
                loss = f", loss {numbers['loss']:.3f}" if "loss" in numbers else ""
                held_out = f", held out {numbers['held_out']:.3f}"
                self._say(f"healing: step {done} of {total}{loss}{held_out}{left}")
            case Progress("answering", done, total, file) if self._due(end=not done):
                name = Path(file).name
                self._say(f"healing: the teacher answers '{name}', {done:,} of {total:,} tokens")
            case Progress("reading", done, total) if self._due():
                share = f"the teacher reads, {done / total:.0%} of the text"
                self._say(self._opening + (_REUSES if event.reused else share))
            case Progress(what, 0) if what in _openings() and self._due(end=self._every_gap):
                self._say(_openings()[what].format(event))
            case Progress(what, done, total, at) if done and what in _openings():
                if self._every_gap and self._due():
                    self._say(f"{what} {at}".rstrip() + f": layer {done} of {total}{left}")

    def _due(self, *, end: bool = False) -> bool:
        if not end and time.monotonic() - self._last < _PAUSE:
            return False
        self._last = time.monotonic()
        return True


@contextmanager
def bar_or_lines(
    what: str, total: int | None = None, *, every_gap: bool = False, ends: bool = True
) -> Iterator[OnEvent]:
    """Yield a receiver of events that prints lines, and on a terminal draws a bar.

    The bar shows `total` bytes (`BytesDone`), or if that is None of the steps of evaluating or
    extracting (`Progress`), which then have no lines. The other arguments belong to `RepairLines`.
    """
    if not sys.stderr.isatty():
        yield RepairLines(every_gap=every_gap, ends=ends)
        return
    from rich import progress as bars
    from rich.console import Console

    sizes = (bars.DownloadColumn(), bars.TransferSpeedColumn())
    amount = (bars.MofNCompleteColumn(),) if total is None else sizes
    columns = (bars.TextColumn("{task.description}"), bars.BarColumn(), *amount)
    left, console = bars.TimeRemainingColumn(), Console(stderr=True)
    drawn = bars.Progress(*columns, left, console=console, transient=True)
    task = drawn.add_task(what, total=total)
    lines = RepairLines(every_gap=every_gap, ends=ends)

    def on_event(event: Event) -> None:
        match event:
            case BytesDone(size):
                drawn.start()  # not before, since fits take minutes
                drawn.advance(task, size)
            case Progress("evaluating" | "extracting", done, steps):
                drawn.start()
                drawn.update(task, completed=done, total=steps)
            case _:
                lines(event)

    try:
        yield on_event
    finally:
        drawn.stop()
