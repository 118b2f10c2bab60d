"""The folder of a search, RUN, which one search holds at a time."""

import fcntl
import os
import re
from contextlib import suppress
from pathlib import Path

from gptailor.checkpoint.files import CheckpointError, quoted
from gptailor.checkpoint.write.output_file import write_whole, writing
from gptailor.searching.pick import BEST
from gptailor.searching.run.journal import JOURNAL, Journal, JournalFile
from gptailor.searching.run_files import (
    LOCK,
    SETTINGS,
    SUMMARY,
    local_or_url,
    path_inside,
    refuse_former,
    storage_at,
)

START = "start.tailor"
FRONT = "front"
_SIDE = re.compile(r"\..+\.[0-9a-f]{8}")
"""The name of a file while it is written."""
OURS = frozenset([LOCK, SETTINGS, JOURNAL, BEST, f"{BEST}.lock",
                  START, FRONT, f"{SUMMARY}.json", f"{SUMMARY}.md"])  # fmt: skip
"""The names of the files and folders that RUN has."""


class Folder:
    """A context that holds RUN. Raises CheckpointError: C901 if another process has it.

    The folder of a RUN at a URL has its copy while it is held. Messages call it `shown`.
    """

    def __init__(self, path: Path, shown: Path | str) -> None:
        self.path = path
        self.shown = shown
        self._lock: int | None = None

    @property
    def place(self) -> Path | None:
        """The folder where paths in its plans start; None where they must be absolute."""
        return self.path

    @property
    def journal(self) -> Journal:
        """The journal of trials and decisions."""
        return JournalFile(self.path / JOURNAL)

    def __enter__(self) -> "Folder":
        with writing(self.path):
            if self.path.exists() and not self.path.is_dir():
                raise CheckpointError(
                    "C902", "expected a folder for the search, got a file", self.path
                )
            self.path.mkdir(parents=True, exist_ok=True)
            names = {path.name for path in self.path.iterdir()}
        refuse_former(names, self.path)
        for name in sorted(names & OURS):
            path_inside(self.path, name)  # each is written
        strange, begun = sorted(names - OURS), (self.path / SETTINGS).exists()
        if strange and not begun:
            message = f"expected the folder of a search, got one with {quoted(strange[0])}"
            raise CheckpointError("C902", message, self.path, "name a new folder")
        self._hold()
        for side in (*self.path.glob(".*"), *(self.path / FRONT).glob(".*")):
            if _SIDE.fullmatch(side.name):  # a killed process was writing it
                side.unlink(missing_ok=True)
        return self

    def send(self) -> None:
        """Copy the folder to where RUN is, if that is elsewhere."""

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

    def put(self, name: str, content: str | bytes) -> Path:
        """Write a file whole or not at all, in the place of an old one. Raises C303."""
        raw = content.encode() if isinstance(content, str) else content
        place = path_inside(self.path, name)
        with writing(place):
            place.parent.mkdir(exist_ok=True)
        write_whole(place, raw, place)
        return place


def folder_at(run: str | Path) -> Folder:
    """Return the folder of RUN, or of its copy. Raises TailorError for a URL without a plugin."""
    shown = local_or_url(run)
    return Folder(shown, shown) if isinstance(shown, Path) else storage_at(shown).folder()
