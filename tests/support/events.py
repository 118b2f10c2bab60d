"""Receivers of a run's events, for tests."""

from collections.abc import Callable
from typing import Any

from gptailor.plan.events import BytesDone, Event, OnEvent, Progress


def only(kind: type[Any], receive: Callable[[Any], object]) -> OnEvent:
    """Return a receiver that hands on the events of one kind."""

    def on_event(event: Event) -> None:
        if isinstance(event, kind):
            receive(event)

    return on_event


def progress(what: str, receive: Callable[[Progress], object]) -> OnEvent:
    """Return a receiver that hands on the progress of one kind of work."""
    return only(Progress, lambda event: receive(event) if event.what == what else None)


def sizes(receive: Callable[[int], object]) -> OnEvent:
    """Return a receiver that hands on the sizes of `BytesDone`."""
    return only(BytesDone, lambda event: receive(event.size))
