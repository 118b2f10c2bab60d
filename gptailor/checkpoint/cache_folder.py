"""The user's cache: copies of remote files, and results that are kept."""

import os
import tempfile
from contextlib import suppress
from pathlib import Path

from gptailor.checkpoint.files import CheckpointError, expanded


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
