"""The files that an output is made from."""

from collections.abc import Iterator
from pathlib import Path

from gptailor.checkpoint import folder as checkpoints
from gptailor.checkpoint.files import is_gguf
from gptailor.checkpoint.formats.lora_config import ADAPTER_CONFIG
from gptailor.checkpoint.formats.pytorch import BIN_INDEX, BIN_SINGLE
from gptailor.checkpoint.models import Opened, chain
from gptailor.evaluation.tokenizer_files import tokenizer_inputs
from gptailor.output.parents import lowest_base
from gptailor.prepare import Prepared, declaring

InputFiles = dict[tuple[str, str], Path]
"""The files that are read, by their model and their path within its folder."""


def processor(base: Opened) -> tuple[Path, ...]:
    """Return the files of the base's image processor: the output's towers are the base's."""
    return checkpoints.processor_files(base.checkpoint) if base.layout.wrapped else ()


def inputs(prepared: Prepared) -> InputFiles:
    """Return the files that a plan reads of each model, an adapter's under its own name.

    These are the weights of the output and of teachers, their index, the configuration, and
    the tokenizer's files that the output takes. Tokens are also read of models whose
    rows are sorted by another tokenizer.
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
            continue  # the files are those of its models
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
