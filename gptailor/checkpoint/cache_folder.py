"""The user's cache: copies of remote files, and results that are kept.

A kept file saves computing something again: `keep_json`, `kept_json`, `kept_files`. Only an intact
file counts. A damaged, torn or foreign one counts as missing.
"""

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from gptailor.checkpoint.files import CheckpointError, expanded, read_object
from gptailor.checkpoint.write.output_file import write_whole, writing


def copies_folder() -> Path:
    """Return the folder for copies of remote files; without a home a temporary folder.

    Raises CheckpointError (C303) for a folder of another user, who could put anything there.
    """
    if (home := cache_folder()) is not None:
        return home
    own = Path(tempfile.gettempdir(), f"gptailor-{os.getuid()}")
    with suppress(FileExistsError):
        own.mkdir(mode=0o700)
    if own.is_symlink() or not is_ours(own):
        raise foreign_folder(own)
    return own


def is_ours(path: Path) -> bool:
    """Return whether a file belongs to this user, or to root: another's may hold anything."""
    with suppress(OSError):
        return path.stat().st_uid in (os.geteuid(), 0)
    return False


def foreign_folder(path: Path) -> CheckpointError:
    """Return the error (C303) for a cache that another user could fill."""
    message = "belongs to another user, so it can't be the cache"
    return CheckpointError("C303", message, path, "set XDG_CACHE_HOME to a folder that you own")


def cache_folder() -> Path | None:
    """Return gptailor's cache folder; None for a user without a home."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or expanded("~/.cache"))
    return home / "gptailor" if home.is_absolute() else None


def kept_home() -> Path:
    """Return the folder of kept results; without a home a path where no file can be."""
    return cache_folder() or Path(os.devnull)


def keep_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write an object with its digest, whole or not at all. Raises CheckpointError (C303)."""
    document = {"sha256": json_digest(value), "value": value}
    write_whole(path, json.dumps(document).encode(), path)


def keep_result(path: Path, value: Mapping[str, Any]) -> None:
    """Keep an object in the cache; nothing where the cache can't be written."""
    with suppress(CheckpointError, OSError):
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        keep_json(path, value)


def kept_json(path: Path) -> dict[str, Any]:
    """Return the object that `keep_json` wrote there; an empty one if it is missing or damaged."""
    with suppress(CheckpointError):
        document = read_object(path, "C201", duplicate=None)
        value = document.get("value")
        if isinstance(value, dict) and document.get("sha256") == json_digest(value):
            return value
    return {}


def kept_files(files: Mapping[str, bytes | Path]) -> Path:
    """Return a folder of the cache that has these files, and is named by their contents.

    Raises CheckpointError (C303) if it can't be written.
    """
    contents = {n: f.read_bytes() if isinstance(f, Path) else f for n, f in sorted(files.items())}
    digest = hashlib.sha256(repr(contents).encode()).hexdigest()
    folder = copies_folder() / "tokenizers" / digest[:32]
    for path, content in ((folder / name, content) for name, content in contents.items()):
        if not path.is_file() or path.read_bytes() != content:
            with writing(path):
                path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(path, content, path)
    return folder


def json_digest(value: Mapping[str, Any]) -> str:
    """Return the sha256 of an object as JSON with sorted keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
