"""The bar of a command on a terminal, and the lines above it."""

import io
import re
from contextlib import redirect_stderr

import pytest

from gptailor.cli.event_lines import bar_or_lines
from gptailor.plan.events import BytesDone, Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


FITTING = Progress("fitting", 0, 1, "plan 'deep'")


@pytest.fixture(autouse=True)
def of_eighty_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "80")
    for name in ("NO_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)


def test_no_bar_is_drawn_before_bytes_are_written() -> None:
    with (
        redirect_stderr(Terminal()) as terminal,
        bar_or_lines("writing", 100, every_gap=True) as on_event,
    ):
        on_event(FITTING)
    assert terminal.getvalue() == "fitting the plan inside, plan 'deep'\n"


def test_a_line_stands_above_the_bar() -> None:
    with (
        redirect_stderr(Terminal()) as terminal,
        bar_or_lines("writing", 100, every_gap=True) as on_event,
    ):
        on_event(BytesDone(10))
        on_event(FITTING)
        on_event(BytesDone(90))
    drawn = terminal.getvalue()
    assert "writing" in drawn
    assert re.search(r"\x1b\[2Kfitting the plan inside, plan 'deep'\n", drawn), repr(drawn)
