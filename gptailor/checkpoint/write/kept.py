"""JSON files that save computing something again: `keep_json`, `kept_json`.

Only an intact file counts. A damaged, torn or foreign one counts as missing.
"""

import hashlib
import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from gptailor.checkpoint.files import CheckpointError
from gptailor.checkpoint.json_files import read_object
from gptailor.checkpoint.write.output_file import write_whole


def keep_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write an object with its digest, whole or not at all. Raises CheckpointError (C303)."""
    document = {"sha256": _digest(value), "value": value}
    write_whole(path, json.dumps(document).encode(), path)


def kept_json(path: Path) -> dict[str, Any]:
    """Return the object that `keep_json` wrote there; an empty one if it is missing or damaged."""
    with suppress(CheckpointError):
        document = read_object(path, "C201", duplicate=None)
        value = document.get("value")
        if isinstance(value, dict) and document.get("sha256") == _digest(value):
            return value
    return {}


def _digest(value: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
