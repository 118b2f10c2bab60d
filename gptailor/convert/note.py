"""Notes and errors of conversions, names for models: `Note`, `ConversionError`, `short_name`."""

import re
from collections.abc import Iterable
from dataclasses import KW_ONLY, dataclass, replace
from itertools import chain, count
from typing import final

from gptailor.plan.faults import TailorError
from gptailor.plan.registry import WORDS


def _located(name: str, line: int | None, place: str, message: str) -> str:
    """Return a message after its file, line and place: `file.yml:3: dtype: …`."""
    where = f"{name}:{line}" if name and line is not None else name
    return "".join(f"{part}: " for part in (where, place) if part) + message


@final
@dataclass(frozen=True)
class Note:
    """A part of the other file that the plan expresses differently, or can't express."""

    place: str
    message: str
    line: int | None = None
    ignored: bool = False
    """True if the other tool passes over it in silence, as it does with unknown keys."""
    more: int = 0
    """The number of other places with the same note."""
    name: str = ""
    """The name of the file."""

    def __str__(self) -> str:
        more = f" (and {self.more} more)" if self.more and self.place else ""
        return _located(self.name, self.line, self.place + more, self.message)


def grouped_notes(notes: Iterable[Note]) -> list[Note]:
    """Return notes in order of their lines, with one note for all places of a message."""
    groups: dict[tuple[str, bool], list[Note]] = {}
    for note in sorted(dict.fromkeys(notes), key=lambda note: note.line or 0):
        groups.setdefault((note.message, note.ignored), []).append(note)
    return [replace(first, more=len(others)) for first, *others in groups.values()]


@final
class ConversionWarning(UserWarning):
    """A part of another tool's file that a plan expresses differently."""


@final
@dataclass(eq=False)
class ConversionError(TailorError):
    """A file that can't be converted: its name, the place, the message and the remedy."""

    exit_code = 1
    message: str
    _: KW_ONLY
    name: str = ""
    place: str = ""
    line: int | None = None
    help: str = ""
    in_plan: bool = False
    """True if the file is a plan, whose line alone names the place."""
    others: tuple["ConversionError", ...] = ()
    """Other errors in the same file."""

    @classmethod
    def of_all(cls, errors: Iterable["ConversionError"]) -> "ConversionError":
        """Return all errors of a file as one error, in order of their lines."""
        distinct = {str(error): error for error in errors}
        first, *others = sorted(distinct.values(), key=lambda error: error.line or 0)
        return replace(first, others=(*first.others, *others))

    def __str__(self) -> str:
        text = _located(self.name, self.line, "" if self.in_plan else self.place, self.message)
        text += f"\n  = help: {self.help}" if self.help else ""
        return "\nerror: ".join((text, *map(str, self.others)))


def ignored_errors(notes: Iterable[Note]) -> list[ConversionError]:
    """Return the notes on what the other tool passes over, as errors."""
    return [
        ConversionError(note.message, name=note.name, place=note.place, line=note.line)
        for note in notes
        if note.ignored
    ]


@final
class InexpressibleError(Exception):
    """A thing without an equivalent; whoever knows its place raises a ConversionError for it."""


_SNAPSHOT = re.compile(r".*models--([^/\\]+)[/\\]snapshots[/\\]([0-9a-f]{40})[/\\]?")


def snapshot_of(path: str) -> tuple[str, str] | None:
    """Return the commit and the model's id of a folder in the Hub's cache; None for other paths."""
    match = _SNAPSHOT.fullmatch(path)
    return None if match is None else (match[2], match[1].replace("--", "/", 1))


def short_name(path: str, used: Iterable[str]) -> str:
    """Return an unused name for a model: the last part of its path, as letters, digits and `_`.

    A snapshot in the Hub's cache gets the name of its model, not of its commit.
    """
    snapshot = snapshot_of(path)
    model = snapshot[1] if snapshot else path.rstrip("/\\")
    last = re.split(r"[/\\]", model)[-1]
    name = re.sub(r"\W+", "_", last.lower(), flags=re.ASCII).strip("_") or "model"
    if name[0].isdigit() or re.fullmatch(r"L\d+", name) or name in WORDS:
        name = f"model_{name}"
    used = {"base", *used}
    numbered = (f"{name}_{number}" for number in count(2))
    return next(candidate for candidate in chain([name], numbered) if candidate not in used)
