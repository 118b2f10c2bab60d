"""The files of healing on this machine: learned parameters, answers, and unfinished runs' folders.

A file of tensors has a digest of its contents, which is checked before any use. A damaged file is
removed, and its healing begins anew.
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
"""Bytes of a folder of kept tensors; the least recently used go first."""
_FORGOTTEN_SECONDS = 30 * 86_400
"""Age at which the files of a killed run are removed."""
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
        digest = hashlib.sha256(repr((key, sorted(self.notes.items()))).encode())
        for name, tensor in sorted(self.tensors.items()):
            digest.update(repr((name, str(tensor.dtype), tuple(tensor.shape))).encode())
            raw = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
            digest.update(raw.numpy().data)
        return digest.hexdigest()

    def write(self, file: Path, key: str) -> None:
        """Write a file atomically, in the place of an old one.

        A failure, such as a full disk, is ignored: the tensors can be learned again.
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
    """Return the checked tensors that `KeptTensors.write` wrote under a key, on the CPU.

    Return None if the file is missing or belongs to another user. Remove a damaged file.
    """
    if not is_ours(file):
        return None
    with suppress(OSError, SafetensorError, LookupError, TypeError, ValueError, RuntimeError):
        with safe_open(file, framework="pt") as opened:
            notes = dict(opened.metadata())
            digest = notes.pop(_DIGEST)
            tensors = {name: opened.get_tensor(name).clone() for name in opened.keys()}  # noqa: SIM118 (no mapping)
        kept = KeptTensors(tensors, notes)
        if kept.digest(key) == digest:
            return kept
    with suppress(OSError):
        file.unlink()
    return None


@final
class TensorStore:
    """A folder with a file of tensors for each key, which covers all that they depend on.

    A file that can't be read or written, or is damaged, counts as missing.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def _file(self, key: str) -> Path:
        return self.folder / f"{key}.safetensors"

    def get(self, key: str) -> KeptTensors | None:
        """Return the checked tensors of that key, or None."""
        file = self._file(key)
        if (kept := read_tensors(file, key)) is None:
            return None
        with suppress(OSError):  # a cache that can't be written may be read
            os.utime(file)
        return kept

    def put(self, key: str, kept: KeptTensors) -> None:
        """Keep tensors, if they fit, and remove the least recently used files."""
        size = sum(value.numel() * value.element_size() for value in kept.tensors.values())
        if size > KEPT_BYTES:
            return
        with suppress(OSError):
            self.folder.mkdir(parents=True, exist_ok=True)
            self._make_room(KEPT_BYTES - size)
            kept.write(self._file(key), key)

    def _make_room(self, most: int) -> None:
        """Remove the least recently used files until the rest have at most `most` bytes."""
        latest = sorted(self.folder.iterdir(), key=lambda file: file.stat().st_mtime, reverse=True)
        for file in latest:
            most -= file.stat().st_size
            if most < 0:
                file.unlink(missing_ok=True)


# ---------------------------------------------------------------------------- learned tensors


@final
@dataclass(frozen=True, eq=False)
class KnownHealing:
    """The parameters at the end of a healing, and the losses of `HealedLayers`."""

    parameters: Mapping[str, Tensor]
    bare: float
    start: float
    healed: float


@final
class HealingStore:
    """A folder with a file for each healing; the key covers all that the result depends on."""

    def __init__(self, folder: Path) -> None:
        self._files = TensorStore(folder)

    def get(self, key: str) -> KnownHealing | None:
        """Return the checked healing of that key, or None."""
        if (kept := self._files.get(key)) is None:
            return None
        return KnownHealing(kept.tensors, *(float(kept.notes[name]) for name in _LOSSES))

    def put(self, key: str, healing: KnownHealing) -> None:
        """Keep a healing, if it fits, and remove the least recently used ones."""
        losses = {name: repr(getattr(healing, name)) for name in _LOSSES}
        self._files.put(key, KeptTensors(healing.parameters, losses))


# ------------------------------------------------------------------------- continued runs


def kept_home() -> Path:
    """Return the folder of kept healings; without a home a path where no file can be."""
    return cache_folder() or Path(os.devnull)


@contextmanager
def working_folder(key: str) -> Iterator[Path]:
    """Yield the folder of a healing, which a killed run leaves and a finished run removes.

    The folder is temporary if no folder can be kept, or if another process heals the same plan.
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
        except OSError:  # no place to keep it, or another process heals the same plan
            ours = False
        if not ours:
            try:
                temporary = tempfile.mkdtemp(prefix="gptailor-heal-")
            except OSError:  # no folder at all: all is in memory
                temporary = os.devnull
            stack.callback(shutil.rmtree, temporary, ignore_errors=True)
            yield Path(temporary)
            return
        try:
            yield folder
        except HealError:  # another run would end in the same way
            shutil.rmtree(folder, ignore_errors=True)
            raise
        shutil.rmtree(folder, ignore_errors=True)


def _forget(home: Path) -> None:
    """Remove the old folders of killed runs."""
    for folder in home.glob("*/"):
        with suppress(OSError):  # gone, or another user's
            latest = max(file.stat().st_mtime for file in (folder, *folder.rglob("*")))
            if time.time() - latest > _FORGOTTEN_SECONDS:
                shutil.rmtree(folder, ignore_errors=True)
