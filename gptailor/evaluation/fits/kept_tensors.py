"""Tensors that are kept on disk: files with a digest, and stores of results by key.

A file of tensors has a digest of its contents, which is checked before any use. A damaged file is
removed, and its contents are computed anew.
"""

import hashlib
import os
import secrets
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from operator import attrgetter
from pathlib import Path
from typing import final

import torch
import transformers
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

import gptailor
from gptailor.checkpoint.cache_folder import is_ours
from gptailor.evaluation.recently_used import RecentlyUsed

KEPT_BYTES = 2**31
"""Bytes of learned or fitted tensors that are kept in memory and on disk, of each kind."""
_DIGEST = "sha256"


# -------------------------------------------------------------------------------- files of tensors


@final
@dataclass(frozen=True, eq=False)
class KeptTensors:
    """Tensors of any device, with numbers."""

    tensors: Mapping[str, Tensor]
    numbers: Mapping[str, float]

    @property
    def size(self) -> int:
        """The bytes of the tensors."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self.tensors.values())

    def digest(self, key: str) -> str:
        """Return a sha256 of the key, the numbers, and each name, dtype, shape and bytes."""
        numbers = sorted((name, float(number)) for name, number in self.numbers.items())
        digest = hashlib.sha256(repr((key, numbers)).encode())
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
            notes = {name: repr(number) for name, number in self.numbers.items()}
            notes[_DIGEST] = KeptTensors(tensors, self.numbers).digest(key)
            save_file(tensors, side, metadata=notes)
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
        kept = KeptTensors(tensors, {name: float(number) for name, number in notes.items()})
        if kept.digest(key) == digest:
            return kept
    with suppress(OSError):
        file.unlink()
    return None


# ------------------------------------------------------------------------------ results by key


def environment() -> tuple[object, ...]:
    """Return the causes of a fit's bytes other than its inputs: threads, versions, sources."""
    return (
        torch.get_num_threads(), torch.__version__, transformers.__version__,
        gptailor.__version__, _sources(),
    )  # fmt: skip


@cache
def _sources() -> bytes:
    """Return the sha256 of the package's sources and data, which may differ within one version."""
    package = Path(gptailor.__file__).parent
    digest = hashlib.sha256()
    for file in sorted([*package.rglob("*.py"), *package.rglob("*.json")]):
        digest.update(file.read_bytes())
    return digest.digest()


@final
class TensorStore:
    """A folder with a file of tensors for each key, which covers all that the tensors depend on.

    A file that can't be read or written, or is damaged, counts as missing. The files have at most
    `most` bytes together; the least recently used go first. Called, it keeps as many in memory too.
    With `anew` no tensors of an earlier process are reused.
    """

    def __init__(self, folder: Path, most: int = KEPT_BYTES, *, anew: bool = False) -> None:
        self.folder = folder
        self.most = most
        self.anew = anew
        self._known: RecentlyUsed[str, KeptTensors] = RecentlyUsed()

    def _file(self, key: str) -> Path:
        return self.folder / f"{key}.safetensors"

    def get(self, key: str) -> KeptTensors | None:
        """Return the checked tensors of that key, or None."""
        file = self._file(key)
        kept = None if self.anew else read_tensors(file, key)
        if kept is not None:
            with suppress(OSError):  # a cache that can't be written may be read
                os.utime(file)
        return kept

    def put(self, key: str, kept: KeptTensors, needed: Collection[Path] = ()) -> None:
        """Keep tensors, if they fit; remove the least recently used ones that aren't `needed`."""
        if kept.size > self.most:
            return
        with suppress(OSError):
            self.folder.mkdir(parents=True, exist_ok=True)
            room, files = self.most - kept.size, self.folder.iterdir()
            for file in sorted(files, key=lambda file: file.stat().st_mtime, reverse=True):
                room -= file.stat().st_size
                if room < 0 and file not in needed:
                    file.unlink(missing_ok=True)
            kept.write(self._file(key), key)

    def __call__(
        self,
        key: str,
        make: Callable[[], KeptTensors],
        read: Callable[[KeptTensors], KeptTensors] = lambda kept: kept,
    ) -> KeptTensors:
        """Return the tensors of a key, made if they are missing; memory keeps `read`'s results."""

        def found() -> KeptTensors:
            kept = self.get(key)
            if kept is None:
                kept = make()
                self.put(key, kept)
            return read(kept)

        known = self._known.of(key, found, attrgetter("size"))
        self._known.forget(self.most)
        return known
