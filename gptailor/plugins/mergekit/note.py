"""The order of notes, the warning and the refusal of a conversion, and names for models."""

import re
from collections.abc import Iterable
from dataclasses import replace
from itertools import chain, count
from typing import final

from gptailor.lang.importers import ConversionError, Note
from gptailor.plan.registry import WORDS


def grouped_notes(notes: Iterable[Note]) -> list[Note]:
    """Return notes in order of their lines, with one note for all places of a message."""
    groups: dict[tuple[str, bool], list[Note]] = {}
    for note in sorted(dict.fromkeys(notes), key=lambda note: note.line or 0):
        groups.setdefault((note.message, note.ignored), []).append(note)
    return [replace(first, more=len(others)) for first, *others in groups.values()]


@final
class ConversionWarning(UserWarning):
    """A part of another tool's file that a plan expresses differently."""


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
