"""The files of a search's RUN, a folder or a URL, which may be a stranger's: `RunFiles`.

Names outside RUN are refused, a file is read completely, and JSON is typed.
"""

import os
import re
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, Final, Protocol, final, runtime_checkable
from urllib.parse import unquote, urlsplit

import gptailor
from gptailor.checkpoint.files import (
    CheckpointError,
    open_regular,
    parse_record,
    quoted,
    read_exactly,
)
from gptailor.plan.doors import Door
from gptailor.searching.run.journal import JOURNAL, RESTORE, Journal
from gptailor.searching.run.records import RunRecord

LOCK: Final = ".lock"
SETTINGS: Final = "run.json"
SUMMARY: Final = "summary.md"
MOST_FILE_BYTES: Final = 2**31
"""The largest file of RUN that is read."""


@runtime_checkable
class Storage(Protocol):
    """The objects below a URL, each complete or missing.

    Its class is called with the URL. It raises TailorError for a URL that can't be read here.
    Other errors are CheckpointErrors about the URL: C303 for writing, C903 for reading.
    """

    def names(self) -> list[str]:
        """Return the names of all objects, as paths below the URL."""

    def get(self, names: list[str]) -> dict[str, bytes]:
        """Return the contents of objects."""

    def journal(self) -> Journal:
        """Return the journal, with its lines in objects."""

    def folder(self) -> Any:
        """Return the `Folder` on this machine that has a copy of the objects."""


STORAGES: Door[Callable[[str], Storage]] = Door("storages", "storage", type, {})
"""Storages of RUN, by the kind of its address: `url`."""


def storage_at(url: str) -> Storage:
    """Return the storage at a URL. Raises TailorError without a plugin for it."""
    return STORAGES.required("url", f"'{url}'", "cluster")(url)


def local_or_url(run: str | Path) -> Path | str:
    """Return a folder, or a URL that fsspec reads: `s3://bucket/run`. `file://` is a folder."""
    text = str(run)
    if isinstance(run, Path) or "://" not in text:
        return Path(run)
    parts = urlsplit(text)
    if parts.scheme in ("file", "local"):
        return Path(unquote(parts.netloc + parts.path))
    return text.rstrip("/")


def refuse_former(names: Collection[str], place: Path) -> None:
    """Raise CheckpointError C902 for a RUN of a release that kept trials in an Optuna study."""
    if any(name.partition("/")[0] == "study.journal" for name in names):
        raise CheckpointError(
            "C902",
            "contains a search of an earlier release, with its trials in 'study.journal'",
            place,
            "continue the search with that release, or name a new RUN; its plans can be compiled",
        )


def path_inside(folder: Path, name: str) -> Path:
    """Return the path of a file in RUN. Raises CheckpointError C903 for a path out of RUN."""
    path = folder / name
    if not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder)):
        message = f"contains {quoted(name)}, a link out of the folder"
        raise CheckpointError("C903", message, folder, "copy the file itself into the folder")
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
        """Return the search's settings, or None without `run.json`. Raises C903."""
        raw = self.read(SETTINGS)

        def refuse(fault: str) -> CheckpointError:
            found = re.search(rb'"version"\s*:\s*"([^"]*)"', raw or b"")
            version = gptailor.__version__ if found is None else found[1].decode(errors="replace")
            other = f"was written by gptailor {quoted(version)}, not by this version"
            by = "is damaged" if version == gptailor.__version__ else other
            return CheckpointError("C903", f"{by}: {fault}", self.path / SETTINGS, RESTORE)

        return None if raw is None else parse_record(RunRecord, raw, refuse)
