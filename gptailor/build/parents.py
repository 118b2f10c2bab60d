"""What a model card says of the models that an output is made of: ids on the Hub, a licence."""

import re
from collections.abc import Iterator
from pathlib import Path

from gptailor.checkpoint.files import open_regular
from gptailor.checkpoint.models import Opened
from gptailor.prepare import Prepared
from gptailor.report.model_card import Parents

CARD = "README.md"
_FRONT_MATTER = 2**16
"""Bytes of a model card that its front matter is looked for in."""
_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
_OTHER = "other"
"""What the Hub calls a licence that it has no name for: here that of several models."""


def parents(prepared: Prepared) -> Parents:
    """The ids of the models on the Hub, the base's first, and the licence that all of them have."""
    opened = [model for model in prepared.models.values() if not model.checkpoint.nested]
    ids = dict.fromkeys(one for model in opened for one in _ids(model))
    folders = dict.fromkeys(model.checkpoint.folder for model in opened)
    licences = {found for folder in folders if (found := licence_of(folder)) is not None}
    licence = licences.pop() if len(licences) == 1 else _OTHER if licences else None
    return Parents(tuple(ids), licence)


def licence_of(folder: Path) -> str | None:
    """The licence that a model card names in its front matter, if there is one in the folder."""
    path = folder / CARD
    if not path.is_file():
        return None
    with open_regular(path) as file:
        begin = file.read(_FRONT_MATTER).decode("utf-8", "replace")
    _, _, matter = begin.partition("---\n")
    found = re.search(r"^license: *([\w.+-]+) *$", matter.partition("\n---")[0], re.MULTILINE)
    return found[1] if found else None


def _ids(model: Opened) -> Iterator[str]:
    """The ids of a model and of the adapters on it; of a folder that which its files name."""
    yield from (remote.repo for remote in model.remotes)
    folder = model.checkpoint.folder
    if not model.remotes and folder.parent.name == "snapshots":  # models--OWNER--NAME/snapshots/…
        yield folder.parent.parent.name.removeprefix("models--").replace("--", "/", 1)
    elif not model.remotes:
        said = model.config.get("_name_or_path")
        if isinstance(said, str) and _HUB_ID.fullmatch(said) and not Path(said).exists():
            yield said
