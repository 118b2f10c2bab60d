"""The contents of a plan's GGUF file and its size, from headers and the tokenizer alone.

Facts about a file depend on its name and its place: its plan has paths as seen from there. They
take a multiple of `_ROOM` bytes, the last of them padding. So a file has one size under any name.
"""

import json
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple, final

from gptailor.checkpoint.tokenizer_settings import content_of, files_without_code
from gptailor.evaluation.tokenizer_files import tokenizer
from gptailor.lang.format import format_plan
from gptailor.program.compile import Compiled
from gptailor.program.gguf.architecture import GgufFacts, WrittenArchitecture
from gptailor.program.gguf.tensors import GgufTensorPlan, planned_tensors
from gptailor.program.gguf.vocabulary import vocabulary_facts
from gptailor.program.sources import Checked

GGUF_ALIGNMENT = 32
"""The header and each tensor take a multiple of this many bytes."""
PADDING_KEY = "gptailor.padding"
_ROOM = 2**14
"""Facts about a file take a multiple of this many bytes."""


@final
class GgufContents(NamedTuple):
    """A plan's GGUF file without its values: `vocabulary` has the facts of the tokenizer.

    `vocabulary_size` is their bytes. `notes` are for people.
    """

    architecture: WrittenArchitecture
    vocabulary: GgufFacts
    vocabulary_size: int
    tensors: list[GgufTensorPlan]
    notes: list[str]


def gguf_contents(
    checked: Checked,
    compiled: Compiled,
    file_type: str | None,
    target: Path,
    *,
    weighted: bool = False,
    any_layers: bool = False,
) -> GgufContents:
    """Return the contents of a file, `weighted` by an importance matrix or not.

    Raises CheckpointError (C306) about `target` for a model or a tokenizer that llama.cpp lacks.
    With `any_layers` llama.cpp need not take the order of the layers.
    """
    architecture = WrittenArchitecture(compiled.config, target, checked)
    if architecture.unfit is not None and not any_layers:
        raise architecture.unfit
    files = tokenizer(checked)
    files |= files_without_code(files)
    read = tuple((name, content_of(file)) for name, file in files.items())
    settings = {  # without facts about layers, so that the plans of a search share them
        key: value
        for key, value in compiled.config.items()
        if key.endswith("_token_id") or not (isinstance(value, list | dict) or "layer" in key)
    }
    vocabulary, notes, size = _vocabulary(read, json.dumps(settings), target)
    tensors, of_types = planned_tensors(
        compiled.program, architecture, file_type, weighted=weighted
    )
    all_notes = [*architecture.notes, *notes, *of_types]
    return GgufContents(architecture, vocabulary, size, tensors, all_notes)


def gguf_size(
    checked: Checked,
    compiled: Compiled,
    file_type: str,
    *,
    weighted: bool = False,
    any_layers: bool = False,
) -> int:
    """Return the bytes of a plan's GGUF file of a type, such as `Q4_K_M`, without a lock.

    An importance matrix (`weighted`) changes the size only if it changes the type of a matrix.
    Raises CheckpointError as `gguf_contents`.
    """
    target = Path(checked.base.checkpoint.folder)
    contents = gguf_contents(
        checked, compiled, file_type, target, weighted=weighted, any_layers=any_layers
    )
    specs = [tensor.spec for tensor in contents.tensors]
    infos = sum(24 + len(spec.name) + 8 * len(spec.shape) for spec in specs)
    about = padded({}, format_plan(checked.resolved.declared))  # it has this size with any facts
    facts = facts_size({**about, **contents.architecture.facts}) + contents.vocabulary_size
    sizes = (24 + facts + infos, *(spec.size for spec in specs))
    return sum(size + -size % GGUF_ALIGNMENT for size in sizes)


@lru_cache(maxsize=8)
def _vocabulary(
    files: tuple[tuple[str, bytes], ...], settings: str, target: Path
) -> tuple[GgufFacts, list[str], int]:
    """Return the metadata of a tokenizer, notes, and the bytes of the metadata."""
    facts, notes = vocabulary_facts(dict(files), json.loads(settings), target)
    return facts, notes, facts_size(facts)


def padded(about: Mapping[str, Any], plan: str) -> dict[str, Any]:
    """Return the facts about a file with padding; `plan` is its plan's text without comments.

    They take a multiple of `_ROOM` bytes, at least half of one beyond the text: for comments,
    longer paths and all other facts. Facts that need still more bytes take the next multiple.
    """
    used = facts_size({**about, PADDING_KEY: " "})
    room = _ROOM * (1 + (len(plan.encode()) + _ROOM // 2) // _ROOM)
    return {**about, PADDING_KEY: " " * (1 + max(room - used, -used % _ROOM))}


def facts_size(facts: Mapping[str, Any]) -> int:
    """Return the bytes of facts; empty texts and lists are not written."""
    written = {key: value for key, value in facts.items() if value not in ("", [])}
    return sum(12 + len(key) + _value_size(value) for key, value in written.items())


def _value_size(value: Any) -> int:
    """Return the bytes of a value without its type: numbers have 32 bits."""
    if isinstance(value, list):
        return 12 + sum(map(_value_size, value))
    if isinstance(value, str):
        return 8 + len(value.encode())
    return 1 if isinstance(value, bool) else 4
