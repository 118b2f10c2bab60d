"""The journal of a search with its RUN at a URL."""

from typing import final

from gptailor.checkpoint.files import CheckpointError, quoted
from gptailor.searching.run.journal import JOURNAL
from gptailor.searching.storage import Storage


@final
class ObjectJournal:
    """A journal with a line in each object; joined in order they are the file of a folder's RUN.

    The name of each object is the number of its line. So the second of two processes that write
    into one journal gets CheckpointError C901 at once.
    """

    def __init__(self, storage: Storage) -> None:
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
                message = f"holds no study: {quoted(self._next())} is missing"
                raise CheckpointError("C903", message, self._storage.path)
            self._count += 1
        return b"".join(objects[name].removesuffix(b"\n") + b"\n" for name in names)

    def append(self, line: bytes) -> None:
        """Write a line into an object of its own. Raises CheckpointError C901 if it exists."""
        self._storage.create(self._next(), line)
        self._count += 1
