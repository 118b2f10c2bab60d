"""The importers of other tools' files, with their notes and errors: `Importer`, `Note`."""

from collections.abc import Callable, Iterable
from dataclasses import KW_ONLY, dataclass, replace
from typing import NamedTuple, final

from gptailor.plan.doors import Door
from gptailor.plan.faults import TailorError
from gptailor.plan.plan import Plan


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
    """True if the file is a plan; then the line alone names the place."""
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


@final
class Importer(NamedTuple):
    """A reader of another tool's files: `read(text, name)` returns the plan and its notes.

    With `options` it also receives the options of `gptailor import` by name: `layers`, `models`,
    `strict`, and the `folder` of the plan. It raises ConversionError for a part that a plan can't
    express.
    """

    read: Callable[..., tuple[Plan, Iterable[Note]]]
    options: bool = False


IMPORTERS: Door[Importer] = Door("importers", "importer", Importer, {})
"""Importers of installed packages, by the name of the tool."""
