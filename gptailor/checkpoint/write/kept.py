"""Files that save computing something again: `keep_json`, `kept_json`, `kept_files`.

Only an intact file counts. A damaged, torn or foreign one counts as missing.
"""

import hashlib
import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from gptailor.checkpoint.cache_folder import copies_folder
from gptailor.checkpoint.files import CheckpointError
from gptailor.checkpoint.json_files import read_object
from gptailor.checkpoint.write.output_file import write_whole, writing


def keep_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write an object with its digest, whole or not at all. Raises CheckpointError (C303)."""
    document = {"sha256": json_digest(value), "value": value}
    write_whole(path, json.dumps(document).encode(), path)


def keep_result(path: Path, value: Mapping[str, Any]) -> None:
    """Keep an object in the cache; nothing where the cache can't be written."""
    with suppress(CheckpointError, OSError):
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        keep_json(path, value)


def kept_json(path: Path) -> dict[str, Any]:
    """Return the object that `keep_json` wrote there; an empty one if it is missing or damaged."""
    with suppress(CheckpointError):
        document = read_object(path, "C201", duplicate=None)
        value = document.get("value")
        if isinstance(value, dict) and document.get("sha256") == json_digest(value):
            return value
    return {}


def kept_files(files: Mapping[str, bytes | Path]) -> Path:
    """Return a folder of the cache that has these files, and is named by their contents.

    Raises CheckpointError (C303) if it can't be written.
    """
    contents = {n: f.read_bytes() if isinstance(f, Path) else f for n, f in sorted(files.items())}
    digest = hashlib.sha256(repr(contents).encode()).hexdigest()
    folder = copies_folder() / "tokenizers" / digest[:32]
    for path, content in ((folder / name, content) for name, content in contents.items()):
        if not path.is_file() or path.read_bytes() != content:
            with writing(path):
                path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(path, content, path)
    return folder


def json_digest(value: Mapping[str, Any]) -> str:
    """Return the sha256 of an object as JSON with sorted keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
