"""The folder of a search, RUN: held by one process at a time, every file in it whole: `Folder`."""

import fcntl
import json
import os
import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, final

from gptailor.checkpoint.error import CheckpointError, quoted
from gptailor.checkpoint.regular import read_object
from gptailor.checkpoint.transfer import write_whole, writing

_LOCK = ".lock"
SETTINGS = "run.json"
JOURNAL = "study.journal"
DIGESTS = "digests.json"
BEST = "best.tailor"
FRONT = "front"
SUMMARY = "summary"
SIDE = re.compile(r"\..+\.[0-9a-f]{8}")
"""What a file is called while it is written."""
OURS = frozenset([_LOCK, SETTINGS, JOURNAL, f"{JOURNAL}.lock", DIGESTS, BEST, f"{BEST}.lock", FRONT,
                  f"{SUMMARY}.json", f"{SUMMARY}.md"])  # fmt: skip


@final
class Folder:
    """A context that holds RUN. Raises CheckpointError: C901 if another process has it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock: int | None = None

    def __enter__(self) -> "Folder":
        with writing(self.path):
            if self.path.exists() and not self.path.is_dir():
                raise CheckpointError("C902", "is a file; a search has a folder", self.path)
            self.path.mkdir(parents=True, exist_ok=True)
            strange = sorted({path.name for path in self.path.iterdir()} - OURS)
        known = (self.path / SETTINGS).exists()
        if strange and not known:
            message = f"holds {quoted(strange[0])}, and no search"
            raise CheckpointError("C902", message, self.path, "name a new folder")
        self._hold()
        self._sweep()
        return self

    def _sweep(self) -> None:
        """Remove what a killed process was writing."""
        for folder in (self.path, self.path / FRONT):
            for side in folder.glob(".*"):
                if SIDE.fullmatch(side.name):
                    side.unlink(missing_ok=True)

    def __exit__(self, *exception: object) -> None:
        if self._lock is None:
            return
        if not {path.name for path in self.path.iterdir()} - {_LOCK, DIGESTS}:  # it never began
            with suppress(OSError):
                (self.path / DIGESTS).unlink(missing_ok=True)
                (self.path / _LOCK).unlink()
                self.path.rmdir()
        os.close(self._lock)
        self._lock = None

    def _hold(self) -> None:
        path = self.path / _LOCK
        with writing(path):
            lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            message = "another search goes on in this folder"
            raise CheckpointError("C901", message, self.path, "wait, or give another -o") from None
        except OSError:  # a file system without locks
            pass
        self._lock = lock

    @property
    def journal(self) -> Path:
        """Where the study is, unless a storage was named."""
        return self.path / JOURNAL

    def put(self, name: str, text: str) -> Path:
        """Write a file whole or not at all, in the place of an old one. Raises C303."""
        place = self.path / name
        with writing(place):
            place.parent.mkdir(exist_ok=True)
        write_whole(place, text.encode(), place)
        return place

    def put_json(self, name: str, value: Mapping[str, Any]) -> None:
        """The same with JSON."""
        self.put(name, json.dumps(value, ensure_ascii=False, indent=2, allow_nan=False) + "\n")

    def get_json(self, name: str) -> dict[str, Any] | None:
        """The JSON object in a file, if it is there. Raises C903 for one that is none."""
        path = self.path / name
        return read_object(path, "C903", duplicate="C903") if path.exists() else None


def refuse_other(folder: Folder, record: Mapping[str, Any]) -> None:
    """Raise CheckpointError C902 where a folder's search has its study elsewhere, or more trials.

    Whatever trials depend on is compared with the study itself.
    """
    before = folder.get_json(SETTINGS)
    if before is None:
        return
    for name in ("storage", "study"):
        old, new = before.get(name), record[name]
        if old != new:
            _refuse(folder, f"its {name} is {_said(old)}, not {_said(new)}")
    trials = before.get("trials")
    if isinstance(trials, int) and trials > record["trials"]:
        _refuse(folder, f"it was begun with {trials} trials, and now is to have fewer")


def _refuse(folder: Folder, message: str) -> None:
    help_ = "give what it was begun with, or another RUN"
    raise CheckpointError("C902", f"holds another search: {message}", folder.path, help_)


def _said(value: object) -> str:
    return "the folder's own" if value is None else quoted(str(value))
