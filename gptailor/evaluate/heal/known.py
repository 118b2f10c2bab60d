"""What was learned before, kept on this machine, so that the same healing again takes no time."""

import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import final

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

KEPT_BYTES = 2**31
"""Bytes on disk that are kept of what was learned; what was used longest ago goes first."""
_LOSSES = ("bare", "start", "healed")


@final
@dataclass(frozen=True, eq=False)
class KnownHealing:
    """The parameters as they were in the end, and the losses of `HealedLayers`."""

    parameters: Mapping[str, Tensor]
    bare: float
    start: float
    healed: float


@final
class HealingStore:
    """A folder with a file for each healing, by a name that says all that it depends on.

    What can't be read or written there is as if it were not known.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def _file(self, key: str) -> Path:
        return self.folder / f"{key}.safetensors"

    def get(self, key: str) -> KnownHealing | None:
        """What was learned under that name."""
        file = self._file(key)
        try:
            with safe_open(file, framework="pt") as kept:
                losses = [float(kept.metadata()[name]) for name in _LOSSES]
                found = {name: kept.get_tensor(name) for name in kept.keys()}  # noqa: SIM118 (no mapping)
            os.utime(file)
        except (OSError, SafetensorError, KeyError, TypeError, ValueError):
            return None
        return KnownHealing(found, *losses)

    def put(self, key: str, known: KnownHealing) -> None:
        """Keep it, if it fits, in the place of what was used longest ago."""
        size = sum(one.numel() * one.element_size() for one in known.parameters.values())
        if size > KEPT_BYTES:
            return
        tensors = {name: one.detach().cpu().contiguous() for name, one in known.parameters.items()}
        losses = {name: repr(getattr(known, name)) for name in _LOSSES}
        new = self.folder / f"{key}.{os.getpid()}.new"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._make_room(KEPT_BYTES - size)
            save_file(tensors, new, metadata=losses)
            new.replace(self._file(key))
        except (OSError, SafetensorError):
            with suppress(OSError):
                new.unlink()

    def _make_room(self, most: int) -> None:
        """Remove files, the latest used last, until they have no more bytes than that."""
        there = sorted(self.folder.iterdir(), key=lambda file: file.stat().st_mtime, reverse=True)
        for file in there:
            most -= file.stat().st_size
            if most < 0:
                file.unlink(missing_ok=True)
