"""The files of a search's RUN, which may be a stranger's: `RunFiles` reads only them.

Names outside RUN are refused, a file is read completely, and JSON is typed.
"""

import os
import re
from collections.abc import Collection
from pathlib import Path
from typing import Final, final

import gptailor
from gptailor.checkpoint.files import CheckpointError, open_regular, quoted, read_exactly
from gptailor.checkpoint.records import parse_record
from gptailor.searching.run.journal import JOURNAL, RESTORE
from gptailor.searching.run.records import RunRecord
from gptailor.searching.storage import local_or_url, storage_at

LOCK: Final = ".lock"
SETTINGS: Final = "run.json"
SUMMARY: Final = "summary.md"
MOST_FILE_BYTES: Final = 2**31
"""The largest file of RUN that is read."""


def refuse_former(names: Collection[str], place: Path) -> None:
    """Raise CheckpointError C902 for a RUN of a release that kept trials in an Optuna study."""
    if any(name.partition("/")[0] == "study.journal" for name in names):
        message = "holds a search of an earlier release, with its trials in 'study.journal'"
        raise CheckpointError("C902", message, place, "go on with that release, or name a new RUN")


def path_inside(folder: Path, name: str) -> Path:
    """Return the path of a file in RUN. Raises CheckpointError C903 for a path out of RUN."""
    path = folder / name
    if not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder)):
        message = f"holds {quoted(name)}, which leads out of it"
        raise CheckpointError("C903", message, folder, "put the file itself into RUN")
    return path


def file_inside(folder: Path, name: str) -> bytes | None:
    """Return the contents of a file in RUN, or None without the file.

    Raises CheckpointError C903 for a link out of RUN, for an irregular file, and for a file of more
    than `MOST_FILE_BYTES` bytes.
    """
    path = path_inside(folder, name)
    if not os.path.lexists(path):
        return None
    with open_regular(path, "C903") as file:
        size = os.fstat(file.fileno()).st_size
        if size > MOST_FILE_BYTES:
            message = f"expected at most {MOST_FILE_BYTES:,} bytes, got {size:,}"
            raise CheckpointError("C903", message, path, "name another RUN")
        return read_exactly(file, size, path, "C903")


@final
class RunFiles:
    """The files of a search's RUN, a folder or a URL. Nothing is written."""

    def __init__(self, run: str | Path) -> None:
        self.shown = local_or_url(run)
        self.path = Path(self.shown)
        self.storage = storage_at(self.shown) if isinstance(self.shown, str) else None
        local = self.path.iterdir() if self.storage is None and self.path.is_dir() else ()
        self._names = self.storage.names() if self.storage else [path.name for path in local]
        refuse_former(self._names, self.path)

    def error(self, message: str, help: str = "") -> CheckpointError:
        """Return a refusal of RUN as a whole."""
        return CheckpointError("C903", message, self.path, help)

    def read(self, name: str) -> bytes | None:
        """Return the contents of a file, or None without the file. Raises CheckpointError C903."""
        if self.storage is None:
            return file_inside(self.path, name)
        return self.storage.get([name])[name] if name in self._names else None

    def journal(self) -> bytes:
        """Return the journal's lines; nothing without a journal. Raises CheckpointError C903."""
        return (self.storage.journal().read() if self.storage else self.read(JOURNAL)) or b""

    def record(self) -> RunRecord | None:
        """Return what was asked of the search, or None without `run.json`. Raises C903."""
        raw = self.read(SETTINGS)

        def refuse(fault: str) -> CheckpointError:
            found = re.search(rb'"version"\s*:\s*"([^"]*)"', raw or b"")
            version = gptailor.__version__ if found is None else found[1].decode(errors="replace")
            other = f"was written by gptailor {quoted(version)}, not by this version"
            by = "is damaged" if version == gptailor.__version__ else other
            return CheckpointError("C903", f"{by}: {fault}", self.path / SETTINGS, RESTORE)

        return None if raw is None else parse_record(RunRecord, raw, refuse)
