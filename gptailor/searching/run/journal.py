"""The lines of a study's journal, each a JSON object of Optuna's, read before Optuna reads them."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn, final

from optuna.storages.journal import BaseJournalBackend

from gptailor.checkpoint.files import CheckpointError, quoted

JournalLine = dict[str, Any]


@final
class JournalLines(BaseJournalBackend):
    """An Optuna journal that is only read; an unfinished last line is left out."""

    def __init__(self, lines: Sequence[JournalLine]) -> None:
        self._lines = list(lines)

    def read_logs(self, log_number_from: int) -> list[JournalLine]:
        """Return the lines from a number on."""
        return self._lines[log_number_from:]

    def append_logs(self, logs: list[JournalLine]) -> None:
        """Raise TypeError: nothing is written."""
        raise TypeError("a report writes nothing into a study")


RESTORE = "restore it from a copy, or name another RUN"
"""The remedy for a study that can't be read or continued."""
_CREATE_STUDY, _CREATE_TRIAL = 0, 4
"""Optuna's numbers of two kinds of lines."""


def with_beginning(lines: list[JournalLine], place: Path) -> list[JournalLine]:
    """Return the lines. Raises CheckpointError C903 without the first, which begins the study.

    Optuna ignores lines of an unknown study.
    """
    if lines and lines[0].get("op_code") != _CREATE_STUDY:
        raise damaged(1, "expected the line that begins the study", place)
    return lines


def first_trial(lines: Sequence[JournalLine]) -> int | None:
    """Return the number, from 1, of the first line with a trial."""
    numbered = enumerate(lines, start=1)
    return next((n for n, line in numbered if line.get("op_code") == _CREATE_TRIAL), None)


def journal_lines(raw: bytes, place: Path, before: int = 0) -> list[JournalLine]:
    """Return the complete lines of a journal, after so many lines `before`.

    Raises CheckpointError C903 that names the first line that isn't a JSON object.
    """
    texts = raw[: raw.rfind(b"\n") + 1].split(b"\n")[:-1]
    lines: list[JournalLine] = []
    for number, line in enumerate(texts, start=before + 1):
        try:
            entry = json.loads(line, parse_constant=_no_constant)
        except (ValueError, RecursionError) as error:
            raise damaged(number, f"expected JSON: {_why(error)}", place) from None
        if not isinstance(entry, dict):
            raise damaged(number, "expected a JSON object", place)
        lines.append(entry)
    return lines


def _why(error: Exception) -> str:
    """Return why a text isn't JSON, without the place in the line."""
    return quoted(error.msg if isinstance(error, json.JSONDecodeError) else str(error))


def _no_constant(text: str) -> NoReturn:
    raise ValueError(f"{text}, which is no number")


def damaged(number: int, message: str, place: Path) -> CheckpointError:
    """Return the refusal of a journal for its line of that number, from 1."""
    if number > 1:
        help_ = f"lines 1 to {number - 1} are whole: cut the journal after line {number - 1}"
        help_ += f" ('head -n {number - 1}'), and the same search command goes on from there"
    else:
        help_ = RESTORE
    return CheckpointError("C903", f"line {number} of the journal is damaged: {message}", place,
                           help_)  # fmt: skip


def first_damaged(
    lines: Sequence[JournalLine], refused: Callable[[Sequence[JournalLine]], bool]
) -> int:
    """Return the number, from 1, of the line that makes a journal unreadable.

    `refused` tells whether so many first lines can't be read; all of them can't.
    """
    low, high = 0, len(lines)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if refused(lines[:middle]) else (middle, high)
    return high
