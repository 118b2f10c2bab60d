"""What a search is of, by digests: models' files, texts, settings. Another one is refused."""

import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, final

from gptailor.checkpoint.adapter_settings import ADAPTER_CONFIG
from gptailor.checkpoint.crew import available
from gptailor.checkpoint.digest import of_file
from gptailor.checkpoint.opened import Opened
from gptailor.checkpoint.source import CONFIG, tokenizer_files
from gptailor.checkpoint.stamp import stamps
from gptailor.searching.folder import DIGESTS, Folder

IDENTITY_WORDS = {
    "space": "the plan leaves other things open, or its base has other layers",
    "models": "other files of {}",
    "data": "another text in {}",
    "objectives": "its objectives were {}",
    "samples": "its samples, from cheapest to full, were {}",
    "seed": "its seed was {}",
    "strategy": "its strategy was {}",
    "bridge": "it bridged {}",
    "dtype": "its models computed in {}",
}
"""What is said when an entry of an identity is another."""


@final
class Digests:
    """The sha256 of files; those that were not touched since the last time aren't read again."""

    def __init__(self, folder: Folder) -> None:
        self._folder = folder
        self._known: dict[str, Any] = folder.get_json(DIGESTS) or {}

    def of(self, files: Iterable[Path]) -> dict[Path, str]:
        """Of each file, read by several threads. Raises C201 for one that can't be read."""
        files = list(dict.fromkeys(files))
        now = stamps(files)
        fresh = [file for file in files if self._recalled(file, now.get(file)) is None]
        with ThreadPoolExecutor(available()) as pool:
            made = dict(zip(fresh, pool.map(of_file, fresh), strict=True))
        for file, digest in made.items():
            entry = {"stamp": list(now[file]), "sha256": digest.sha256}
            self._known[os.path.abspath(file)] = entry  # noqa: PTH100 (links stay)
        if made:
            self._folder.put_json(DIGESTS, self._known)
        return {file: str(self._recalled(file, now.get(file))) for file in files}

    def _recalled(self, file: Path, stamp: Sequence[int] | None) -> str | None:
        entry = self._known.get(os.path.abspath(file))  # noqa: PTH100 (links stay)
        if stamp is None or not isinstance(entry, dict) or entry.get("stamp") != list(stamp):
            return None
        return str(entry["sha256"])


def digests_of_models(models: Mapping[str, Opened], digests: Digests) -> dict[str, str]:
    """One digest a model: of its weights, its configuration and its tokenizer."""
    files = {name: list(_files(opened)) for name, opened in models.items()}
    found = digests.of(file for its in files.values() for file in its)
    return {name: _joined(found[file] for file in its) for name, its in files.items()}


def digests_of_texts(files: Iterable[Path], digests: Digests) -> dict[str, str]:
    """The digest of each text, by its name; those of equal names in their order."""
    found = digests.of(files)
    names: dict[str, str] = {}
    for file, digest in found.items():
        name = file.name
        while name in names:
            name += "'"
        names[name] = digest
    return names


def _files(opened: Opened) -> Iterable[Path]:
    for file in opened.checkpoint.files:
        yield file
        for beside in (CONFIG, ADAPTER_CONFIG):
            if file.with_name(beside).exists():
                yield file.with_name(beside)
    yield from tokenizer_files(opened.checkpoint)


def _joined(digests: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(dict.fromkeys(digests)).encode()).hexdigest()
