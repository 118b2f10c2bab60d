"""Ctrl-C that is not lost: `Interrupt`."""

import signal
import threading
from types import FrameType
from typing import Any, final


@final
class Interrupt:
    """A context in which Ctrl-C raises KeyboardInterrupt, and `check` once more.

    Where libraries run Python of their own, in callbacks of the garbage collector for one, what is
    raised is printed and forgotten; then the next `check` ends the search all the same.
    """

    def __init__(self) -> None:
        self._seen = False
        self._before: Any = None

    def __enter__(self) -> "Interrupt":
        if threading.current_thread() is threading.main_thread():
            self._before = signal.getsignal(signal.SIGINT)
            if self._before is signal.default_int_handler:
                signal.signal(signal.SIGINT, self._raise)
        return self

    def __exit__(self, *exception: object) -> None:
        if self._before is signal.default_int_handler:
            signal.signal(signal.SIGINT, self._before)

    def _raise(self, number: int, frame: FrameType | None) -> None:
        self._seen = True
        raise KeyboardInterrupt

    def check(self) -> None:
        """Raise KeyboardInterrupt if there was one since the last time that one was caught."""
        if self._seen:
            self._seen = False
            raise KeyboardInterrupt

    def caught(self) -> None:
        """It was not lost."""
        self._seen = False
