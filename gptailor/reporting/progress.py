"""Progress on a terminal: bars of bytes and of steps."""

from collections.abc import Iterator
from contextlib import contextmanager

from rich import progress as bars
from rich.console import Console

from gptailor.plan.events import BytesDone, Event, OnEvent, Progress


@contextmanager
def bar(total: int, what: str) -> Iterator[OnEvent]:
    """Yield a receiver of `BytesDone` that draws a bar of bytes on standard error."""
    with _progress(
        bars.DownloadColumn(), bars.TransferSpeedColumn(), bars.TimeRemainingColumn()
    ) as progress:
        task = progress.add_task(what, total=total)

        def on_event(event: Event) -> None:
            if isinstance(event, BytesDone):
                progress.advance(task, event.size)

        yield on_event


@contextmanager
def steps_bar(what: str) -> Iterator[OnEvent]:
    """Yield a receiver of the `Progress` of evaluating that draws a bar of steps."""
    with _progress(bars.MofNCompleteColumn(), bars.TimeRemainingColumn()) as progress:
        task = progress.add_task(what, total=None)

        def on_event(event: Event) -> None:
            if isinstance(event, Progress) and event.what == "evaluating":
                progress.update(task, completed=event.done, total=event.total)

        yield on_event


def _progress(*columns: bars.ProgressColumn) -> bars.Progress:
    columns = (bars.TextColumn("{task.description}"), bars.BarColumn(), *columns)
    return bars.Progress(*columns, console=Console(stderr=True), transient=True)
