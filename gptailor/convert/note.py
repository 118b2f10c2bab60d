"""What a conversion has to say: `Note` where the plan differs, `ConversionError` if none can be."""

from dataclasses import dataclass

from gptailor.plan.faults import Place, TailorError


def dotted(place: Place) -> str:
    """`slices[0].sources[1].model`."""
    return "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in place).lstrip(".")


@dataclass(frozen=True)
class Note:
    """Something of the other file that the plan says otherwise, or can't say: its key, its line."""

    place: str
    message: str
    line: int | None = None

    def __str__(self) -> str:
        line = f"line {self.line}: " if self.line is not None else ""
        return f"{line}{self.place}: {self.message}" if self.place else f"{line}{self.message}"


class ConversionError(TailorError):
    """A file can't be said as a plan, or a plan not as a file: the place, what is, what to do."""

    exit_code = 1

    def __init__(
        self,
        message: str,
        *,
        name: str = "",
        place: str = "",
        line: int | None = None,
        help: str = "",
    ) -> None:
        super().__init__(message, name, place, line, help)
        self.message = message
        self.name = name
        self.place = place
        self.line = line
        self.help = help

    def __str__(self) -> str:
        where = f"{self.name}:{self.line}" if self.line is not None and self.name else self.name
        head = "".join(f"{part}: " for part in (where, self.place) if part)
        return head + self.message + (f"\n  = help: {self.help}" if self.help else "")


class Unsayable(Exception):  # noqa: N818 (it is caught where the place is known)
    """Why the language has no words for something; whoever knows the place gives it one."""
