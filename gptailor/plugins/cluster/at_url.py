"""Folders in object storage as folders of this machine, each fetched once: `fetched_folder`."""

import fcntl
import importlib
import os
import secrets
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gptailor.checkpoint.cache_folder import foreign_folder, is_ours, keep_json, kept_json
from gptailor.checkpoint.files import CheckpointError, quoted, reason, stamp
from gptailor.checkpoint.models import kept_folder
from gptailor.checkpoint.write.output_file import writing

_FETCHED = ".fetched.json"
"""The record of a fetched folder: the state of each file there, and its size and time here."""
_STATES = ("size", "ETag", "etag", "md5Hash", "content_md5", "LastModified", "mtime", "created")
"""Facts of a file, by any file system, that change with its contents."""

_AGAIN = 0.2
"""Seconds after which a process that waits for another's fetch looks again."""


def fetched_folder(url: str) -> Path:
    """Fetch the folder at a URL, and return its copy here; unchanged files stay.

    One process of a machine fetches; others wait for it. Raises CheckpointError: C503 for a folder
    that can't be fetched, C303 without enough room for it.
    """
    folder = kept_folder(url)
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    if not is_ours(folder):
        raise foreign_folder(folder)
    with _alone(folder.with_name(folder.name + ".lock")):
        _fetch(url, folder)
    return folder


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    with writing(path):
        lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        while not _taken(lock):
            time.sleep(_AGAIN)
        yield
    finally:
        os.close(lock)


def _taken(lock: int) -> bool:
    """Try to take a lock, and return whether it worked; a file system without locks counts as such.

    A call that waits would keep an interrupt that comes just before it until the lock is free.
    """
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True


def _fetch(url: str, folder: Path) -> None:
    with _talking(url):
        files, root = importlib.import_module("fsspec.core").url_to_fs(url)
        states = {
            _name(path, root): _state(about)
            for path, about in files.find(root.rstrip("/"), detail=True).items()
        }
    if not states:
        raise CheckpointError("C503", "is empty", Path(url))
    if strange := [name for name in states if ".." in Path(name).parts or name.startswith("/")]:
        raise CheckpointError("C503", f"has the invalid path {quoted(strange[0])}", Path(url))
    noted = folder / _FETCHED
    before = kept_json(noted)
    now = {}
    for name, state in states.items():
        place = folder / name
        if before.get(name) != (entry := [state, _here(place)]):
            with _talking(url):
                _fetch_file(files, f"{root.rstrip('/')}/{name}", place)
            entry = [state, _here(place)]
        now[name] = entry
    for name in before.keys() - states.keys():
        (folder / name).unlink(missing_ok=True)
    if before != now:
        keep_json(noted, now)


def _fetch_file(files: Any, path: str, place: Path) -> None:
    """Bring one file to its place, whole and on the disk, or nothing."""
    side = place.with_name(f".{place.name}.{secrets.token_hex(4)}")
    with writing(place):
        place.parent.mkdir(parents=True, exist_ok=True)
    try:
        files.get_file(path, str(side))
        with writing(place), side.open("rb") as fetched:
            os.fsync(fetched.fileno())
            side.replace(place)
    finally:
        side.unlink(missing_ok=True)


def _here(place: Path) -> list[int] | None:
    """Return facts of a file of this machine that change when it is torn or changed.

    A device's number isn't one of them: it may be another after a restart.
    """
    try:
        status = place.stat()
    except OSError:
        return None
    return [*stamp(status)[2:]]


def _name(path: str, root: str) -> str:
    return path[len(root.rstrip("/")) + 1 :]


def _state(about: Mapping[str, Any]) -> list[str]:
    return [str(about[name]) for name in _STATES if about.get(name) is not None]


@contextmanager
def _talking(url: str) -> Iterator[None]:
    try:
        yield
    except CheckpointError:
        raise
    except Exception as error:  # storages of many makers raise any error
        text = reason(error) if isinstance(error, OSError) else str(error)
        message = f"not available: {text.strip().partition(chr(10))[0] or type(error).__name__}"
        raise CheckpointError("C503", message, Path(url)) from error
