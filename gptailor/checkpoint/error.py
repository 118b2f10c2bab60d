"""What is wrong with a checkpoint on disk: `CheckpointError`."""

from pathlib import Path

from gptailor.diagnostics import TailorError

LONGEST_QUOTED = 120
"""Characters of a name that are shown; names come from files that may be hostile."""


class CheckpointError(TailorError):
    """A checkpoint can't be read or written: a stable code, what is, which file, what to do."""

    def __init__(
        self, code: str, message: str, path: Path, help: str = "", offset: int | None = None
    ) -> None:
        super().__init__(code, message, path, help, offset)
        self.code = code
        self.message = message
        self.path = path
        self.help = help
        self.offset = offset

    def __str__(self) -> str:
        place = _escaped(str(self.path)) + ("" if self.offset is None else f", byte {self.offset}")
        lines = [f"error[{self.code}]: {self.message}", f" --> {place}"]
        return "\n".join(lines + ([f"  = help: {self.help}"] if self.help else []))


def quoted(name: str, *, whole: bool = False) -> str:
    """A name in quotes, fit for a terminal: control characters escaped, a long one cut."""
    shown = name if whole or len(name) <= LONGEST_QUOTED else f"{name[:LONGEST_QUOTED]}…"
    return f"'{_escaped(shown)}'"


def reason(error: OSError | ValueError) -> str:
    """Why the system refused: `Permission denied`."""
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


def _escaped(text: str) -> str:
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
