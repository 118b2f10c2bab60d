"""The files of healing on this machine: learned parameters, and the folder of an unfinished run.

A file of tensors has a digest of all that is in it. It is read whole and compared before anything
of it is used; a file that differs is removed, and its healing begins anew.
"""

import fcntl
import hashlib
import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import final

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from gptailor.checkpoint.files import cache_folder, is_ours
from gptailor.evaluate.heal.learning import HealError

KEPT_BYTES = 2**31
"""Bytes on disk that are kept of what was learned; what was used longest ago goes first."""
_FORGOTTEN_SECONDS = 30 * 86_400
"""After so long nobody comes back to what a killed run has left."""
_LOSSES = ("bare", "start", "healed")
_DIGEST = "sha256"


# -------------------------------------------------------------------------------- files of tensors


@final
@dataclass(frozen=True, eq=False)
class KeptTensors:
    """Tensors of any device, and notes beside them."""

    tensors: Mapping[str, Tensor]
    notes: Mapping[str, str]

    def digest(self, key: str) -> str:
        """Return a sha256 of the key, the notes, and each tensor's name, dtype, shape and bytes."""
        found = hashlib.sha256(repr((key, sorted(self.notes.items()))).encode())
        for name, tensor in sorted(self.tensors.items()):
            found.update(repr((name, str(tensor.dtype), tuple(tensor.shape))).encode())
            raw = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
            found.update(raw.numpy().data)
        return found.hexdigest()

    def write(self, file: Path, key: str) -> None:
        """Write a file, on the disk and whole, in the place of an old one.

        A full disk, say, is no error: what isn't kept is made again.
        """
        tensors = {n: tensor.detach().cpu().contiguous() for n, tensor in self.tensors.items()}
        side = file.with_name(f".{file.name}.{secrets.token_hex(4)}")
        try:
            save_file(tensors, side, metadata={**self.notes, _DIGEST: self.digest(key)})
            with side.open("rb") as written:
                os.fsync(written.fileno())
            side.replace(file)
        except (OSError, SafetensorError):
            with suppress(OSError):
                side.unlink()


def read_tensors(file: Path, key: str) -> KeptTensors | None:
    """Return what `KeptTensors.write` wrote under that key, on the CPU and checked.

    None if it is missing or another user's; a damaged file is removed.
    """
    if not is_ours(file):
        return None
    with suppress(OSError, SafetensorError, LookupError, TypeError, ValueError, RuntimeError):
        with safe_open(file, framework="pt") as opened:
            notes = dict(opened.metadata())
            digest = notes.pop(_DIGEST)
            tensors = {name: opened.get_tensor(name).clone() for name in opened.keys()}  # noqa: SIM118 (no mapping)
        found = KeptTensors(tensors, notes)
        if found.digest(key) == digest:
            return found
    with suppress(OSError):
        file.unlink()
    return None


# ---------------------------------------------------------------------------- what was learned


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

    What can't be read or written there is as if it were not known, and so is what is damaged.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def _file(self, key: str) -> Path:
        return self.folder / f"{key}.safetensors"

    def get(self, key: str) -> KnownHealing | None:
        """Return what was learned under that name, checked."""
        file = self._file(key)
        if (found := read_tensors(file, key)) is None:
            return None
        with suppress(OSError):  # a cache that can't be written may be read
            os.utime(file)
        return KnownHealing(found.tensors, *(float(found.notes[name]) for name in _LOSSES))

    def put(self, key: str, known: KnownHealing) -> None:
        """Keep it, if it fits, in the place of what was used longest ago."""
        size = sum(one.numel() * one.element_size() for one in known.parameters.values())
        if size > KEPT_BYTES:
            return
        losses = {name: repr(getattr(known, name)) for name in _LOSSES}
        with suppress(OSError):
            self.folder.mkdir(parents=True, exist_ok=True)
            self._make_room(KEPT_BYTES - size)
            KeptTensors(known.parameters, losses).write(self._file(key), key)

    def _make_room(self, most: int) -> None:
        """Remove files, the latest used last, until they have no more bytes than that."""
        there = sorted(self.folder.iterdir(), key=lambda file: file.stat().st_mtime, reverse=True)
        for file in there:
            most -= file.stat().st_size
            if most < 0:
                file.unlink(missing_ok=True)


# ------------------------------------------------------------------------- a run that goes on


def kept_home() -> Path:
    """Return where healing keeps things; without a home a place where nothing can be."""
    return cache_folder() or Path(os.devnull)


@contextmanager
def working_folder(key: str) -> Iterator[Path]:
    """Yield the folder of a healing, which a killed run leaves and a finished one takes away.

    It is a temporary one where none can be kept, and where another process heals the same.
    """
    folder = kept_home() / "heal" / key
    with ExitStack() as stack:
        try:
            _forget(folder.parent)
            folder.mkdir(parents=True, exist_ok=True)
            lock = stack.enter_context((folder / "lock").open("w"))
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            ours = os.path.samestat(os.fstat(lock.fileno()), (folder / "lock").stat())
            ours = ours and is_ours(folder)
        except OSError:  # nowhere to keep it, or another process heals the same
            ours = False
        if not ours:
            try:
                own = tempfile.mkdtemp(prefix="gptailor-heal-")
            except OSError:  # nowhere at all: all is in memory
                own = os.devnull
            stack.callback(shutil.rmtree, own, ignore_errors=True)
            yield Path(own)
            return
        try:
            yield folder
        except HealError:  # it would end in the same way
            shutil.rmtree(folder, ignore_errors=True)
            raise
        shutil.rmtree(folder, ignore_errors=True)


def _forget(home: Path) -> None:
    """Remove what killed runs have left long ago."""
    for folder in home.glob("*/"):
        with suppress(OSError):  # gone, or another user's
            latest = max(file.stat().st_mtime for file in (folder, *folder.rglob("*")))
            if time.time() - latest > _FORGOTTEN_SECONDS:
                shutil.rmtree(folder, ignore_errors=True)
