"""What conversions say, and what they name models: `Note`, `ConversionError`, `short_name`."""

import re
from collections.abc import Iterable
from dataclasses import KW_ONLY, dataclass
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

    def __str__(self) -> str:
        line = f"line {self.line}: " if self.line is not None else ""
        return f"{line}{self.place}: {self.message}" if self.place else f"{line}{self.message}"


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

    def __str__(self) -> str:
        where = f"{self.name}:{self.line}" if self.line is not None and self.name else self.name
        head = "".join(f"{part}: " for part in (where, self.place) if part)
        return head + self.message + (f"\n  = help: {self.help}" if self.help else "")


@final
class Unsayable(Exception):  # noqa: N818 (it is caught where the place is known)
    """Why the language has no words for something; whoever knows the place gives it one."""


def short_name(path: str, taken: Iterable[str]) -> str:
    """The last part of a path in lower case, as a model's name: letters, digits and `_`."""
    last = path.rstrip("/").rpartition("/")[2]
    name = re.sub(r"\W+", "_", last.lower(), flags=re.ASCII).strip("_") or "model"
    if name[0].isdigit() or re.fullmatch(r"L\d+", name) or name in WORDS:
        name = f"model_{name}"
    taken = {"base", *taken}
    others = (f"{name}_{number}" for number in count(2))
    return next(one for one in chain([name], others) if one not in taken)
