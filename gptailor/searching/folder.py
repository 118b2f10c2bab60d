"""The folder of a search, RUN, which one search holds at a time."""

import fcntl
import json
import os
import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, final

from gptailor.checkpoint.files import CheckpointError, quoted
from gptailor.checkpoint.write.output_file import write_whole, writing
from gptailor.searching.pick import BEST
from gptailor.searching.run.journal import JOURNAL, Journal, JournalFile
from gptailor.searching.run_files import (
    LOCK,
    SETTINGS,
    SUMMARY,
    path_inside,
    refuse_former,
)
from gptailor.searching.storage import Storage, local_or_url, storage_at

START = "start.tailor"
FRONT = "front"
_SIDE = re.compile(r"\..+\.[0-9a-f]{8}")
"""The name of a file while it is written."""
_OURS = frozenset([LOCK, SETTINGS, JOURNAL, BEST, f"{BEST}.lock",
                   START, FRONT, f"{SUMMARY}.json", f"{SUMMARY}.md"])  # fmt: skip


@final
class Folder:
    """A context that holds RUN. Raises CheckpointError: C901 if another process has it.

    A RUN at a URL has its copy in the folder `path` while it is held. Messages call it `shown`.
    """

    def __init__(self, run: str | Path) -> None:
        self.shown = local_or_url(run)
        self._lock: int | None = None
        self._storage: Storage | None = None
        if isinstance(self.shown, str):
            self._storage = storage_at(self.shown)
            self.path = self._storage.copy
        else:
            self.path = self.shown

    @property
    def place(self) -> Path | None:
        """The folder where paths in its plans start; None where they must be absolute."""
        return None if self._storage else self.path

    @property
    def journal(self) -> Journal:
        """The journal of trials and decisions."""
        return self._storage.journal() if self._storage else JournalFile(self.path / JOURNAL)

    def __enter__(self) -> "Folder":
        if self._storage is not None:
            self._storage.refuse_unwritable()
        with writing(self.path):
            if self.path.exists() and not self.path.is_dir():
                raise CheckpointError(
                    "C902", "expected a folder for the search, got a file", self.path
                )
            self.path.mkdir(parents=True, exist_ok=True)
            names = {path.name for path in self.path.iterdir()}
        refuse_former(self._storage.names() if self._storage else names, Path(self.shown))
        for name in sorted(names & _OURS):
            path_inside(self.path, name)  # each is written
        strange, begun = sorted(names - _OURS), (self.path / SETTINGS).exists()
        if strange and not begun:
            message = f"expected the folder of a search, found {quoted(strange[0])}"
            raise CheckpointError("C902", message, self.path, "name a new folder")
        self._hold()
        for side in (*self.path.glob(".*"), *(self.path / FRONT).glob(".*")):
            if _SIDE.fullmatch(side.name):  # a killed process was writing it
                side.unlink(missing_ok=True)
        if self._storage is not None:
            self._storage.bring(_OURS, self._write)
        return self

    def send(self) -> None:
        """Copy the folder into the storage, where RUN is at a URL."""
        if self._storage is not None:
            self._storage.send(_OURS)

    def __exit__(self, *exception: object) -> None:
        if self._lock is None:
            return
        if {path.name for path in self.path.iterdir()} == {LOCK}:  # it never began
            with suppress(OSError):
                (self.path / LOCK).unlink()
                self.path.rmdir()
        os.close(self._lock)
        self._lock = None

    def _hold(self) -> None:
        path = self.path / LOCK
        with writing(path):
            lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            held = os.fstat(lock).st_nlink > 0  # else its last holder removed it meanwhile
        except BlockingIOError:
            held = False
        except OSError:  # a file system without locks
            held = True
        if not held:
            os.close(lock)
            message = "another search uses this folder"
            help_ = "wait, or give another -o"
            raise CheckpointError("C901", message, Path(self.shown), help_)
        self._lock = lock

    def put(self, name: str, text: str) -> Path:
        """Write a file whole or not at all, in the place of an old one. Raises C303."""
        raw = text.encode()
        place = self._write(name, raw)
        if self._storage is not None:
            self._storage.put(name, raw)
        return place

    def _write(self, name: str, raw: bytes) -> Path:
        place = path_inside(self.path, name)
        with writing(place):
            place.parent.mkdir(exist_ok=True)
        write_whole(place, raw, place)
        return place

    def put_json(self, name: str, value: Mapping[str, Any]) -> None:
        """Write JSON into a file, as `put` does."""
        self.put(name, json.dumps(value, ensure_ascii=False, indent=2, allow_nan=False) + "\n")
