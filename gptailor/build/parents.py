"""The source models for an output's model card: ids on the Hub, a licence."""

import re
from collections.abc import Iterator
from pathlib import Path

from gptailor.checkpoint.files import open_regular
from gptailor.checkpoint.models import Opened
from gptailor.prepare import Prepared
from gptailor.reporting.model_card import Parents

CARD = "README.md"
_FRONT_MATTER = 2**16
"""Most bytes of a model card that are searched for its front matter."""
_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
_OTHER = "other"
"""The Hub's name of any other licence: here that of models with different licences."""


def parents(prepared: Prepared) -> Parents:
    """Return the models' ids on the Hub, the base's first, and the licence that all share."""
    opened = [model for model in prepared.models.values() if not model.checkpoint.nested]
    ids = dict.fromkeys(model_id for model in opened for model_id in _ids(model))
    folders = dict.fromkeys(model.checkpoint.folder for model in opened)
    licences = {name for folder in folders if (name := licence_of(folder)) is not None}
    licence = licences.pop() if len(licences) == 1 else _OTHER if licences else None
    return Parents(tuple(ids), licence)


def licence_of(folder: Path) -> str | None:
    """Return the licence in the front matter of a folder's model card, if there is one."""
    path = folder / CARD
    if not path.is_file():
        return None
    with open_regular(path) as file:
        begin = file.read(_FRONT_MATTER).decode("utf-8", "replace")
    _, _, matter = begin.partition("---\n")
    match = re.search(r"^license: *([\w.+-]+) *$", matter.partition("\n---")[0], re.MULTILINE)
    return match[1] if match else None


def _ids(model: Opened) -> Iterator[str]:
    """Yield the ids of a model and of the adapters on it; a folder's id is in its files."""
    yield from (remote.repo for remote in model.remotes)
    folder = model.checkpoint.folder
    if not model.remotes and folder.parent.name == "snapshots":  # models--OWNER--NAME/snapshots/…
        yield folder.parent.parent.name.removeprefix("models--").replace("--", "/", 1)
    elif not model.remotes:
        origin = model.config.get("_name_or_path")
        if isinstance(origin, str) and _HUB_ID.fullmatch(origin) and not Path(origin).exists():
            yield origin
