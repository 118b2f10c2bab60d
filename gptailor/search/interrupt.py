"""Ctrl-C ends a search between two events, whoever swallows it: `interruptible`."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TypeVar

_Event = TypeVar("_Event")


@contextmanager
def interruptible(on_event: Callable[[_Event], None]) -> Iterator[Callable[[_Event], None]]:
    """`on_event`, wrapped so that a Ctrl-C that was swallowed still ends the search.

    Where libraries run Python of their own, in callbacks of the garbage collector for one, what is
    raised is printed and forgotten; then the next event ends the search all the same.
    """
    pressed = threading.Event()

    def interrupted(number: int, frame: FrameType | None) -> None:
        pressed.set()
        raise KeyboardInterrupt

    def tell(event: _Event) -> None:
        on_event(event)
        if pressed.is_set():
            raise KeyboardInterrupt

    ours = (
        threading.current_thread() is threading.main_thread()
        and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    )
    if ours:
        signal.signal(signal.SIGINT, interrupted)
    try:
        yield tell
    finally:
        if ours:
            signal.signal(signal.SIGINT, signal.default_int_handler)
