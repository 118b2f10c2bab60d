"""Paths as people write them: `~` is their home folder."""

import os
from pathlib import Path


def expanded(path: str | Path) -> Path:
    """The path with `~` and `~user` as folders; as it is for someone without a home.

    `Path.expanduser` raises there, which no path in a plan is to do.
    """
    return Path(os.path.expanduser(path))  # noqa: PTH111
