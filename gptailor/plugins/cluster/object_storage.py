"""A search's RUN at a URL: objects that are complete or missing, and its journal."""

import importlib
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import final

from gptailor.checkpoint.cache_folder import copies_folder
from gptailor.checkpoint.files import CheckpointError, quoted
from gptailor.plan.faults import TailorError
from gptailor.plan.optional_packages import how_to_install
from gptailor.searching.folder import OURS, Folder
from gptailor.searching.run.journal import JOURNAL
from gptailor.searching.run_files import LOCK, SETTINGS, refuse_former

_WHOLE = frozenset(
    ["abfs", "abfss", "adl", "az", "gcs", "gs", "memory", "oci", "ossfs", "s3", "s3a"]
)
"""Schemes with objects that appear when complete; elsewhere a file is written, then moved."""


@final
class ObjectStorage:
    """The objects below a URL. Raises TailorError for a URL that can't be read here.

    Other errors are CheckpointErrors about the URL: C303 for writing, C903 for reading.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        try:
            core = importlib.import_module("fsspec.core")
        except ImportError as error:
            raise TailorError(f"'{url}' needs fsspec: {how_to_install('cluster')}") from error
        try:
            self._files, self._root = core.url_to_fs(url)
        except (ImportError, ValueError, OSError) as error:
            raise TailorError(f"'{url}' can't be used: {_error_text(error)}") from error
        self._root = self._root.rstrip("/")
        self._whole = url.partition("://")[0].rpartition("::")[2] in _WHOLE

    @contextmanager
    def _talking(self, code: str, failed: str, help: str = "") -> Iterator[None]:
        try:
            yield
        except FileExistsError:
            raise
        except Exception as error:  # storages of many makers raise errors of many kinds
            message = f"{failed}: {_error_text(error)}"
            raise CheckpointError(code, message, self.path, help) from error

    @property
    def path(self) -> Path:
        """The URL as a path, for messages."""
        return Path(self.url)

    def refuse_unwritable(self) -> None:
        """Write an object and remove it. Raises CheckpointError C303 where that isn't allowed."""
        name = f".{secrets.token_hex(4)}"
        help_ = "gptailor needs permission to list, read, write and remove objects below the URL"
        with self._talking("C303", "cannot be written", help_):
            self._files.pipe_file(self._at(name), b"")
            self._files.rm_file(self._at(name))

    def names(self) -> list[str]:
        """Return the names of all objects, as paths below the URL."""
        with self._talking("C903", "cannot be read"):
            self._files.invalidate_cache()
            try:
                places = self._files.find(self._root)
            except FileNotFoundError:
                return []
        start = len(self._root) + 1
        below = (path for path in places if path.startswith(f"{self._root}/"))
        return sorted(path[start:] for path in below)

    def get(self, names: list[str]) -> dict[str, bytes]:
        """Return the contents of objects, read in parallel where the storage can do that."""
        with self._talking("C903", "cannot be read"):
            places = {self._at(name): name for name in names}
            if len(names) == 1:  # fsspec gives the bytes of one alone
                return {names[0]: self._files.cat_file(self._at(names[0]))}
            contents = self._files.cat(list(places)) if places else {}
            return {places[place]: raw for place, raw in contents.items()}

    def put(self, name: str, raw: bytes) -> None:
        """Write an object whole or not at all, in the place of an old one."""
        with self._talking("C303", "cannot be written"):
            if self._whole:
                self._files.pipe_file(self._at(name), raw)
                return
            folder, _, last = self._at(name).rpartition("/")
            side = f"{folder}/.{last}.{secrets.token_hex(4)}"
            self._files.makedirs(folder, exist_ok=True)
            self._files.pipe_file(side, raw)
            self._files.mv(side, self._at(name))

    def create(self, name: str, raw: bytes) -> None:
        """Write a new object. Raises CheckpointError C901 if it exists."""
        try:
            with self._talking("C303", "cannot be written"):
                exists = not self._whole and self._files.exists(self._at(name))
                if self._whole:
                    self._files.pipe_file(self._at(name), raw, mode="create")
        except FileExistsError:
            exists = True
        if exists:
            message = f"another search uses the folder: it wrote {quoted(name)}"
            raise CheckpointError("C901", message, self.path, "wait, or give another -o")
        if not self._whole:
            self.put(name, raw)

    def remove(self, name: str) -> None:
        """Remove an object."""
        with self._talking("C303", "cannot be written"):
            self._files.rm_file(self._at(name))

    def folder(self) -> "CopiedFolder":
        """Return the folder on this machine that has a copy of the objects."""
        return CopiedFolder(self)

    def journal(self) -> "ObjectJournal":
        """Return the journal, with its lines in objects."""
        return ObjectJournal(self)

    def _at(self, name: str) -> str:
        return f"{self._root}/{name}"


@final
class CopiedFolder(Folder):
    """A folder on this machine that has a copy of the objects in a storage while it is held."""

    def __init__(self, storage: ObjectStorage) -> None:
        name = sha256(storage.url.encode()).hexdigest()[:16]
        super().__init__(copies_folder() / "runs" / name, storage.url)
        self._storage = storage

    @property
    def place(self) -> None:
        """None: paths in its plans must be absolute."""
        return None

    @property
    def journal(self) -> "ObjectJournal":
        """The journal of trials and decisions."""
        return self._storage.journal()

    def __enter__(self) -> "CopiedFolder":
        self._storage.refuse_unwritable()
        refuse_former(self._storage.names(), self._storage.path)
        super().__enter__()
        self._bring()
        return self

    def _bring(self) -> None:
        """Write all objects but the journal into the folder."""
        names = self._storage.names()
        strange = [name for name in names if name.partition("/")[0] not in OURS]
        if strange and SETTINGS not in names:
            message = f"expected the folder of a search, got one with {quoted(strange[0])}"
            raise CheckpointError("C902", message, self._storage.path, "name a new folder")
        kept = [n for n in names if n not in strange and n.partition("/")[0] != JOURNAL]
        for name in set(self._copied()) - set(kept):
            (self.path / name).unlink()
        for name, raw in self._storage.get(kept).items():
            super().put(name, raw)

    def _copied(self) -> list[str]:
        """Return the paths, below the folder, of files that are objects too."""
        files = (path for path in self.path.rglob("*") if path.is_file())
        names = (str(path.relative_to(self.path)) for path in files)
        return sorted(name for name in names if name != LOCK)

    def put(self, name: str, content: str | bytes) -> Path:
        """Write a file and its object, each whole or not at all, in the place of an old one."""
        place = super().put(name, content)
        self._storage.put(name, place.read_bytes())
        return place

    def send(self) -> None:
        """Write the files as objects, and remove further files that RUN could have."""
        files, stored = self._copied(), self._storage.names()
        before = self._storage.get([name for name in files if name in stored])
        for name in files:
            if before.get(name) != (raw := (self.path / name).read_bytes()):
                self._storage.put(name, raw)
        for name in stored:
            if name not in files and name.partition("/")[0] in OURS - {JOURNAL}:
                self._storage.remove(name)


@final
class ObjectJournal:
    """A journal with a line in each object; joined in order they are the file of a folder's RUN.

    The name of each object is the number of its line. So the second of two processes that write
    into one journal gets CheckpointError C901 at once.
    """

    def __init__(self, storage: ObjectStorage) -> None:
        self.place = storage.path / JOURNAL
        self._storage = storage
        self._count = 0

    def _next(self) -> str:
        return f"{JOURNAL}/{self._count:08}.jsonl"

    def read(self) -> bytes:
        """Return all lines. Raises CheckpointError C903 where one is missing."""
        names = [name for name in self._storage.names() if name.startswith(f"{JOURNAL}/")]
        objects = self._storage.get(names)
        self._count = 0
        for name in names:
            if name != self._next():
                message = f"has no study: {quoted(self._next())} is missing"
                raise CheckpointError("C903", message, self._storage.path)
            self._count += 1
        return b"".join(objects[name].removesuffix(b"\n") + b"\n" for name in names)

    def append(self, line: bytes) -> None:
        """Write a line into an object of its own. Raises CheckpointError C901 if it exists."""
        self._storage.create(self._next(), line)
        self._count += 1


def _error_text(error: Exception) -> str:
    text = str(error).strip().partition("\n")[0]
    kind = type(error).__name__
    return text if text else kind
