"""Which files a prepared plan reads of which of its models."""

from collections.abc import Iterator
from pathlib import Path

from gptailor.build.output import tokenizer_model_name
from gptailor.checkpoint.folder import (
    ADAPTER,
    CONFIG,
    GENERATION_CONFIG,
    INDEX,
    SINGLE,
    TOKENIZER_FILES,
    generation_config,
    tokenizer_files,
)
from gptailor.checkpoint.formats.gguf import is_gguf
from gptailor.checkpoint.formats.lora_config import ADAPTER_CONFIG
from gptailor.checkpoint.formats.pytorch import BIN_INDEX, BIN_SINGLE
from gptailor.checkpoint.models import Opened
from gptailor.plan.plan import Plan
from gptailor.prepare import Prepared, chain
from gptailor.program.program import files

InputFiles = dict[str, dict[str, Path]]
"""The files that are read of each model, by their path within its folder."""


def inputs(prepared: Prepared) -> InputFiles:
    """The files that a plan reads of each model, an adapter's own apart from those it is on.

    These are the weights that the output is made of, their index, the configuration, and what the
    output takes of a tokenizer. Whose rows another tokenizer sorts, has its tokens read too.
    """
    read = set(files(prepared.compiled.program))
    found: InputFiles = {}
    for name, opened in prepared.models.items():
        lowest, *adapters = chain(prepared.plan, name)
        whole = opened.checkpoint.files[: len(opened.checkpoint.files) - len(adapters)]
        own = [*(file for file in whole if file in read), *_beside(opened, whole, prepared.plan)]
        folder = opened.checkpoint.folder
        folder = folder.parent if is_gguf(folder) else folder
        theirs = found.setdefault(lowest, {})
        theirs |= {file.relative_to(folder).as_posix(): file for file in own}
        for adapter, file in zip(adapters, opened.checkpoint.files[len(whole) :], strict=True):
            found[adapter] = {ADAPTER: file, ADAPTER_CONFIG: file.with_name(ADAPTER_CONFIG)}
    return found


def _beside(opened: Opened, whole: tuple[Path, ...], plan: Plan) -> Iterator[Path]:
    """What is read of a model besides its weights."""
    checkpoint = opened.checkpoint
    if not is_gguf(checkpoint.folder) and not is_gguf(whole[0]):
        yield checkpoint.folder / CONFIG
    for index, single, suffix in ((INDEX, SINGLE, ".safetensors"), (BIN_INDEX, BIN_SINGLE, ".bin")):
        by_index = whole[0].suffix == suffix and whole[0].name != single
        if by_index and (path := checkpoint.folder / index).exists():
            yield path
    tells = opened.name == tokenizer_model_name(plan)
    if tells or plan.tokenizer is not None:
        yield from tokenizer_files(checkpoint)
    if tells and (generates := generation_config(checkpoint)) is not None:
        yield generates


def is_beside(name: str) -> bool:
    """Whether a model's file is one of its tokenizer, or of how it generates."""
    return name in TOKENIZER_FILES or name == GENERATION_CONFIG or name.endswith(".jinja")


def work(prepared: Prepared) -> int:
    """The bytes that locking reads and makes."""
    read = sum(file.stat().st_size for of in inputs(prepared).values() for file in of.values())
    return read + prepared.compiled.program.size
