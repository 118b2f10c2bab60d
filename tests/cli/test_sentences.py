"""Sentences on a terminal: their lines break between words, and drawn lines stay."""

import io

import pytest

from gptailor.cli import options
from gptailor.plan.faults import Fault, Source, Span

LONG = "healing changes the kept layers and the well-known folder /a/very/long/path/of-a-model"


class Terminal(io.StringIO):
    """A stream that is a terminal."""

    def isatty(self) -> bool:
        """Return true."""
        return True


def terminal_of(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """A terminal of 40 columns without colours, for both streams."""
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setenv("NO_COLOR", "1")
    terminal = Terminal()
    monkeypatch.setattr("sys.stdout", terminal)
    monkeypatch.setattr("sys.stderr", terminal)
    return terminal


def test_sentences_break_between_words(monkeypatch: pytest.MonkeyPatch) -> None:
    printed = terminal_of(monkeypatch)
    options.say_sentences(LONG)
    options.say(LONG, err=True)
    lines = printed.getvalue().splitlines()
    assert lines[: len(lines) // 2] == [
        "healing changes the kept layers and the",
        "  well-known folder",
        "  /a/very/long/path/of-a-model",
    ]
    assert lines[len(lines) // 2 :] == lines[: len(lines) // 2]


def test_a_faults_message_and_help_break_and_its_excerpt_stays(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    printed = terminal_of(monkeypatch)
    source = Source("p.tailor", "tailor 1\nL0..L29 from base, math by slerp(curve(0, 1)) # a mix\n")
    help_ = "a remedy in words that need two lines"
    options.say_faults([Fault("P1", LONG, help=help_, span=Span(9, 11), source=source)])
    lines = printed.getvalue().splitlines()
    assert lines[:3] == [
        "error[P1]: healing changes the kept",
        "  layers and the well-known folder",
        "  /a/very/long/path/of-a-model",
    ]
    assert "2 | L0..L29 from base, math by slerp(curve(0, 1)) # a mix" in lines
    assert lines[-3:] == [
        "  = help: a remedy in words that need",
        "          two lines",
        "",
    ]


def test_lines_for_files_are_not_broken(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    options.say_sentences(LONG)
    options.say(LONG, err=True)
    assert capsys.readouterr() == (LONG + "\n", LONG + "\n")
