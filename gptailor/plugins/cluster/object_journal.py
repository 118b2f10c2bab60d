"""The journal of a search with its RUN at a URL."""

import json
from typing import Any, final

from optuna.storages.journal import BaseJournalBackend

from gptailor.checkpoint.files import CheckpointError, quoted
from gptailor.searching.run.journal import journal_lines
from gptailor.searching.storage import Storage


@final
class ObjectJournal(BaseJournalBackend):
    """An Optuna journal with its lines in objects; joined in order they are Optuna's own file.

    The name of each object is the number of its first line. So the second of two processes that
    write into one journal gets CheckpointError C901 at once.
    """

    def __init__(self, storage: Storage, folder: str) -> None:
        self.url = storage.url
        self._storage = storage
        self._folder = folder
        self._lines: list[dict[str, Any]] = []
        names = [name for name in storage.names() if name.startswith(f"{folder}/")]
        objects = storage.get(names)
        for name in names:
            if name != self._next():
                message = f"holds no study: {quoted(self._next())} is missing"
                raise CheckpointError("C903", message, storage.path)
            self._lines += journal_lines(
                objects[name].removesuffix(b"\n") + b"\n", storage.path / name, len(self._lines)
            )

    def _next(self) -> str:
        return f"{self._folder}/{len(self._lines):08}.jsonl"

    def read_logs(self, log_number_from: int) -> list[dict[str, Any]]:
        """Return the lines from a number on."""
        return self._lines[log_number_from:]

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Write lines into an object of their own, all or none."""
        raw = "".join(json.dumps(log, separators=(",", ":")) + "\n" for log in logs)
        self._storage.create(self._next(), raw.encode())
        self._lines += json.loads(f"[{','.join(raw.splitlines())}]")
