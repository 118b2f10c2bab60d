"""The journal of a search: lines of JSON, one a trial or a decision, appended and never changed."""

import os
from pathlib import Path
from typing import Final, Protocol, final, runtime_checkable

from gptailor.checkpoint.files import CheckpointError
from gptailor.checkpoint.write.output_file import writing

JOURNAL: Final = "journal.jsonl"
"""The name of the journal in RUN."""
RESTORE = "restore it from a copy, or name another folder"
"""The remedy for a journal that can't be read or continued."""


@runtime_checkable
class Journal(Protocol):
    """A journal at a `place`, which messages name."""

    place: Path

    def read(self) -> bytes:
        """Return the complete lines. Raises CheckpointError."""

    def append(self, line: bytes) -> None:
        """Write a line with its newline. Raises CheckpointError C303."""


@final
class JournalFile:
    """A journal in a file; the caller must hold the lock of its folder."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def read(self) -> bytes:
        """Return the complete lines, and remove the torn end that a killed write leaves."""
        if not self.place.exists():
            return b""
        with writing(self.place), self.place.open("r+b") as file:
            lines = complete_lines(file.read())
            file.truncate(len(lines))
        return lines

    def append(self, line: bytes) -> None:
        """Write a line to the disk. Raises CheckpointError C303."""
        kept = "all earlier trials are kept; run the same command to continue"
        with writing(self.place, kept), self.place.open("ab") as file:
            file.write(line)
            file.flush()
            os.fsync(file.fileno())


def complete_lines(raw: bytes) -> bytes:
    """Return a journal without an unfinished last line."""
    return raw[: raw.rfind(b"\n") + 1]


def damaged(number: int, message: str, place: Path) -> CheckpointError:
    """Return the refusal of a journal for its line of that number, from 1."""
    if number > 1:
        help_ = f"lines 1 to {number - 1} are complete: cut the journal after line {number - 1}"
        help_ += f" ('head -n {number - 1}'), and run the same search command to continue"
    else:
        help_ = RESTORE
    return CheckpointError("C903", f"line {number} of the journal is damaged: {message}", place,
                           help_)  # fmt: skip
