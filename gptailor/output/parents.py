"""The source models for an output's model card: ids on the Hub, a licence, a title."""

import re
from collections.abc import Iterator
from pathlib import Path

from gptailor.checkpoint.files import open_regular
from gptailor.checkpoint.models import Opened, is_remote
from gptailor.prepare import Prepared, all_declared

CARD = "README.md"
_FRONT_MATTER = 2**16
"""Most bytes of a model card that are searched for its front matter."""
_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")


def parents(prepared: Prepared) -> tuple[tuple[str, ...], str | None]:
    """Return the models' ids on the Hub, the base's first, and the licence that all share."""
    opened = [model for model in prepared.models.values() if not model.checkpoint.nested]
    ids = dict.fromkeys(model_id for model in opened for model_id in _ids(prepared, model))
    folders = dict.fromkeys(model.checkpoint.folder for model in opened)
    licences = {name for folder in folders if (name := licence_of(folder)) is not None}
    # the Hub's name of any other licence: here that of models with different licences
    licence = licences.pop() if len(licences) == 1 else "other" if licences else None
    return tuple(ids), licence


def known_ids(prepared: Prepared) -> dict[str, str]:
    """Return the ids on the Hub of the models that are folders of this machine, where known.

    An adapter's is the id that the plan declares; a model with an adapter has the files of the
    model below.
    """
    declared = all_declared(prepared.declared, prepared.models)
    used = all_declared(prepared.plan.models, prepared.models)
    ids = {}
    for name, model in prepared.models.items():
        if model.checkpoint.nested or model.remotes:
            continue
        if used[name].on is None:
            known = next(_ids(prepared, model), None)
        else:
            known = declared[name].source if is_remote(declared[name]) else None
        if known is not None:
            ids[name] = known
    return ids


def title(prepared: Prepared, folder: Path) -> str:
    """Return the title of a model card: the base's name on the Hub, and the plan's or folder's."""
    origin = prepared.plan.origin
    stem = "" if origin is None else Path(origin.source.name).stem
    own = folder.resolve().name if stem in {"", "plan"} or stem.startswith("<") else stem
    base = next(_ids(prepared, prepared.models[lowest_base(prepared)]), "").rpartition("/")[2]
    return own if base.lower() in own.lower() else f"{base}-{own}"


def lowest_base(prepared: Prepared) -> str:
    """Return the name of the innermost base, following plans that are used as a base."""
    name = "base"
    while prepared.models[name].inner is not None:
        name += ".base"
    return name


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


def _ids(prepared: Prepared, model: Opened) -> Iterator[str]:
    """Yield the ids of a model and of the adapters on it.

    A folder has the id that the plan declares in its place, or the id in its files.
    """
    declared = all_declared(prepared.declared, prepared.models).get(model.name)
    folder = model.checkpoint.folder
    origin = model.config.get("_name_or_path")
    if model.remotes:
        yield from (remote.repo for remote in model.remotes)
    elif declared is not None and declared.on is None and is_remote(declared):
        yield declared.source
    elif folder.parent.name == "snapshots":  # models--OWNER--NAME/snapshots/…
        yield folder.parent.parent.name.removeprefix("models--").replace("--", "/", 1)
    elif isinstance(origin, str) and _HUB_ID.fullmatch(origin) and not Path(origin).exists():
        yield origin
