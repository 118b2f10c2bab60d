"""What conversions say, and what they name models: `Note`, `ConversionError`, `short_name`."""

import re
from collections.abc import Iterable
from dataclasses import KW_ONLY, dataclass, replace
from itertools import chain, count
from typing import final

from gptailor.plan.faults import Place, TailorError
from gptailor.plan.registry import WORDS


def dotted(place: Place) -> str:
    """`slices[0].sources[1].model`."""
    return "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in place).lstrip(".")


@final
@dataclass(frozen=True)
class Note:
    """Something of the other file that the plan says otherwise, or can't say: its key, its line."""

    place: str
    message: str
    line: int | None = None
    ignored: bool = False
    """Whether the other tool passes it over in silence, as it does a key that it doesn't know."""
    more: int = 0
    """How many other places the same is true of."""

    def __str__(self) -> str:
        line = f"line {self.line}: " if self.line is not None else ""
        more = f" (and {self.more} more)" if self.more else ""
        return f"{line}{self.place}{more}: {self.message}" if self.place else line + self.message


def gathered(notes: Iterable[Note]) -> list[Note]:
    """One note for all places of which the same is said, in order of the first."""
    places: dict[tuple[str, bool], list[Note]] = {}
    for note in dict.fromkeys(notes):
        places.setdefault((note.message, note.ignored), []).append(note)
    return [replace(first, more=len(others)) for first, *others in places.values()]


@final
@dataclass(eq=False)
class ConversionError(TailorError):
    """A file can't be said as a plan, or a plan not as a file: the place, what is, what to do."""

    exit_code = 1
    message: str
    _: KW_ONLY
    name: str = ""
    place: str = ""
    line: int | None = None
    help: str = ""
    others: tuple["ConversionError", ...] = ()
    """What else is wrong in the same file."""

    @classmethod
    def of_all(cls, errors: Iterable["ConversionError"]) -> "ConversionError":
        """All that is wrong with a file as one error, in order of its lines."""
        each = {str(error): error for error in errors}
        first, *others = sorted(each.values(), key=lambda error: error.line or 0)
        return replace(first, others=(*first.others, *others))

    def __str__(self) -> str:
        return "\n".join((self._alone, *map(str, self.others)))

    @property
    def _alone(self) -> str:
        where = f"{self.name}:{self.line}" if self.line is not None and self.name else self.name
        head = "".join(f"{part}: " for part in (where, self.place) if part)
        return head + self.message + (f"\n  = help: {self.help}" if self.help else "")


@final
class Unsayable(Exception):  # noqa: N818 (it is caught where the place is known)
    """Why the language has no words for something; whoever knows the place gives it one."""


_SNAPSHOT = re.compile(r".*models--([^/\\]+)[/\\]snapshots[/\\]([0-9a-f]{40})[/\\]?")


def snapshot_of(path: str) -> tuple[str, str] | None:
    """The commit, and the model's id, of a folder in the Hub's cache; None for other paths."""
    found = _SNAPSHOT.fullmatch(path)
    return None if found is None else (found[2], found[1].replace("--", "/", 1))


def short_name(path: str, taken: Iterable[str]) -> str:
    """The last part of a path in lower case, as a model's name: letters, digits and `_`.

    Of a snapshot in the Hub's cache that is its model, not the commit.
    """
    of = cached[1] if (cached := snapshot_of(path)) else path.rstrip("/\\")
    last = re.split(r"[/\\]", of)[-1]
    name = re.sub(r"\W+", "_", last.lower(), flags=re.ASCII).strip("_") or "model"
    if name[0].isdigit() or re.fullmatch(r"L\d+", name) or name in WORDS:
        name = f"model_{name}"
    taken = {"base", *taken}
    others = (f"{name}_{number}" for number in count(2))
    return next(one for one in chain([name], others) if one not in taken)
