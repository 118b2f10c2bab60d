"""The files that an output is made from, and its source models: ids on the Hub, a licence."""

import re
from collections.abc import Iterator
from pathlib import Path

from gptailor.checkpoint import folder as checkpoints
from gptailor.checkpoint.files import is_gguf, open_regular
from gptailor.checkpoint.formats.lora_config import ADAPTER_CONFIG
from gptailor.checkpoint.formats.pytorch import BIN_INDEX, BIN_SINGLE
from gptailor.checkpoint.models import Opened, chain, is_remote
from gptailor.evaluation.tokenizer_files import tokenizer_inputs
from gptailor.prepare import Prepared, all_declared, declaring

InputFiles = dict[tuple[str, str], Path]
"""The files that are read, by their model and their path within its folder."""


def processor(base: Opened) -> tuple[Path, ...]:
    """Return the files of the base's image processor: the output's towers are the base's."""
    return checkpoints.processor_files(base.checkpoint) if base.layout.wrapped else ()


def inputs(prepared: Prepared) -> InputFiles:
    """Return the files that a plan reads of each model, an adapter's under its own name.

    These are the weights of the output and of teachers, their index, the configuration, and
    the tokenizer's files that the output takes. Tokens are also read of models with rows that are
    sorted by another tokenizer.
    """
    read = set(prepared.read_files)
    healings = [
        (f"{name}.", inner.resolved.healing) for name, inner in prepared.inner_plans.items()
    ]
    teachers = [
        before + name
        for before, healing in [("", prepared.resolved.healing), *healings]
        for name in filter(None, healing.teachers if healing is not None else ())
    ]
    for name in teachers:
        teacher = prepared.models[name].checkpoint
        read |= set(teacher.files) if teacher.nested else set()
    found: InputFiles = {}
    for name, opened in prepared.models.items():
        plan, before, short = declaring(prepared.plan, prepared.models, name)
        lowest, *adapters = (before + model for model in chain(plan, short))
        if opened.inner is not None:
            found[name, opened.inner.file.name] = opened.inner.file
        if opened.checkpoint.nested and not adapters:
            continue  # the files belong to its models
        weight_files = opened.checkpoint.files[: len(opened.checkpoint.files) - len(adapters)]
        weights_read = (
            weight_files if name in teachers else (file for file in weight_files if file in read)
        )
        if not opened.checkpoint.nested:
            own = [*weights_read, *_beside(prepared, name, weight_files)]
            folder = opened.checkpoint.folder
            folder = folder.parent if is_gguf(folder) else folder
            found |= {(lowest, file.relative_to(folder).as_posix()): file for file in own}
        adapter_files = opened.checkpoint.files[len(weight_files) :]
        for adapter, file in zip(adapters, adapter_files, strict=True):
            found[adapter, file.name] = file
            found[adapter, ADAPTER_CONFIG] = file.with_name(ADAPTER_CONFIG)
    return found


def _beside(prepared: Prepared, name: str, weights: tuple[Path, ...]) -> Iterator[Path]:
    """Yield the files that are read of a model besides its weights."""
    checkpoint = prepared.models[name].checkpoint
    if not is_gguf(checkpoint.folder) and not is_gguf(weights[0]):
        yield checkpoint.folder / checkpoints.CONFIG
    for index, single, suffix in (
        (checkpoints.INDEX, checkpoints.SINGLE, ".safetensors"),
        (BIN_INDEX, BIN_SINGLE, ".bin"),
    ):
        by_index = weights[0].suffix == suffix and weights[0].name != single
        if by_index and (path := checkpoint.folder / index).exists():
            yield path
    yield from tokenizer_inputs(prepared.checked, name)
    if name == lowest_base(prepared):
        yield from processor(prepared.models[name])


def work(prepared: Prepared) -> int:
    """Return the number of bytes that locking reads and makes."""
    read = sum(file.stat().st_size for file in inputs(prepared).values())
    return read + prepared.compiled.program.size


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
    # the Hub's name of any other licence: here for models with different licences
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
