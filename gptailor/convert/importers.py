"""Importers of installed packages, by the name of the tool whose files they read."""

from collections.abc import Callable, Iterable
from typing import NamedTuple, final

from gptailor.convert.note import Note
from gptailor.plan.doors import Door
from gptailor.plan.plan import Plan


@final
class Importer(NamedTuple):
    """A reader of another tool's files: `read(text, name)` returns the plan and its notes.

    It raises ConversionError for a part that a plan can't express.
    """

    read: Callable[[str, str], tuple[Plan, Iterable[Note]]]


IMPORTERS: Door[Importer] = Door("importers", "importer", Importer, {})
