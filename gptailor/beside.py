"""The files beside a folder's weights, against what the plan, or its lock, gives."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from gptailor.checkpoint.digest import FileDigest, of_bytes, of_file
from gptailor.checkpoint.error import quoted
from gptailor.checkpoint.lock import PLAN_FILE, Difference, Lock
from gptailor.checkpoint.source import CONFIG, Checkpoint, generation_config, tokenizer_files
from gptailor.folder import CARD, config, side_files, tokenizer_model_name
from gptailor.inputs import is_beside
from gptailor.locking import config_digest
from gptailor.plan import Plan
from gptailor.prepared import Prepared

LONGEST_VALUE = 60
"""Characters of a setting that are shown."""


def differing_config(
    output: Checkpoint, prepared: Prepared | None, lock: Lock | None
) -> Iterator[Difference]:
    """Settings that the plan gives otherwise; a configuration that is not the locked one."""
    path = output.folder / CONFIG
    differing = list(_settings(config(prepared), output.config, path)) if prepared else []
    yield from differing
    locked = lock is None or config_digest(output.config) == lock.config
    if not (differing or locked):
        yield Difference("config", CONFIG, f"{CONFIG} is not the one that was locked", path)


def _settings(
    expected: Mapping[str, Any], found: Mapping[str, Any], path: Path
) -> Iterator[Difference]:
    for key in sorted(expected.keys() | found.keys()):
        ours, theirs = (_shown(settings, key) for settings in (found, expected))
        if ours != theirs:
            said = f"{quoted(key)} of {CONFIG} is {_cut(ours)}, and by the plan {_cut(theirs)}"
            yield Difference("config", key, said, path)


def _shown(settings: Mapping[str, Any], key: str) -> str:
    return json.dumps(settings[key], sort_keys=True) if key in settings else "missing"


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST_VALUE else f"{text[:LONGEST_VALUE]}…"


def expected_beside(
    folder: Path, plan: Plan | None, prepared: Prepared | None, lock: Lock | None
) -> dict[str, FileDigest] | None:
    """Digests of the tokenizer's files and of how the model generates; None where nobody knows."""
    if prepared is not None:
        made = side_files(prepared, folder).items()
        return {
            name: of_bytes(content) if isinstance(content, bytes) else of_file(content)
            for name, content in made
            if name not in {CONFIG, PLAN_FILE, CARD}
        }
    if lock is None or plan is None:
        return None
    lowest = tokenizer_model_name(plan)
    while (under := plan.models[lowest].on) is not None:
        lowest = under
    files = lock.models[lowest].files if lowest in lock.models else {}
    found = {name: digest for name, digest in files.items() if is_beside(name)}
    return found or None  # without any the tokenizer may be that of a GGUF file


def differing_beside(
    expected: Mapping[str, FileDigest], output: Checkpoint
) -> Iterator[Difference]:
    """Files that the folder lacks, that nobody gave it, and those with other bytes."""
    paths = [path for path in (*tokenizer_files(output), generation_config(output)) if path]
    found = {path.relative_to(output.folder).as_posix(): path for path in paths}
    for name in sorted(expected.keys() | found.keys()):
        if name not in found:
            said = "is missing"
        elif name not in expected:
            said = "is there, and the plan gives none of that name"
        elif of_file(found[name]) != expected[name]:
            said = "has other bytes than the plan gives"
        else:
            continue
        yield Difference("file", name, f"{quoted(name)} {said}", output.folder / name)
