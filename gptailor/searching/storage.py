"""A search's RUN as a folder, or at a URL in a storage that a plugin reads and writes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, runtime_checkable
from urllib.parse import unquote, urlsplit

from gptailor.plan.doors import Door
from gptailor.searching.run.journal import Journal


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
