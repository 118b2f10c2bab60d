"""`parameters`, `bytes`, `kv_cache` and `latency`: objectives of a plan that need no text."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import final

from gptailor.checkpoint.families.layer_config import Refusal
from gptailor.checkpoint.formats.gguf.header import read_gguf
from gptailor.checkpoint.formats.gguf.kinds import FILE_TYPES
from gptailor.evaluation.forward.requests import Request
from gptailor.evaluation.gguf_contents import gguf_size
from gptailor.evaluation.objectives import base
from gptailor.evaluation.scores import Score
from gptailor.plan.plan import Objective
from gptailor.program.compile import Compiled, compiled_size, token_cache
from gptailor.program.sources import Checked


@final
@dataclass(frozen=True)
class OfPlan(base.PreparedObjective):
    """An objective that needs no samples, measured on headers, or by the clock as `latency`."""

    stated: Objective

    def requests(self, samples: int) -> Sequence[Request]:
        """Return no requests, since no text is read."""
        return ()


def prepare_of_plan(objective: Objective, context: base.ObjectiveContext) -> OfPlan:
    """Prepare `parameters()`, `bytes()`, `kv_cache()` or `latency()`."""
    return OfPlan(*base.traits_of(objective), (), objective)


def size_score(
    objective: Objective, checked: Checked, compiled: Compiled, *, any_layers: bool = False
) -> Score:
    """Return a size of a plan's output, which has no error.

    Raises ObjectiveError for an unknown KV cache, and CheckpointError (C306) for the size of a GGUF
    file that llama.cpp couldn't run. With `any_layers` the order of the layers doesn't matter.
    """
    kind, file = objective.arguments.get("gguf"), checked.gguf_file
    gguf = None if kind is None else str(kind).upper()
    if objective.name == "parameters":
        size: int | Refusal = compiled.program.parameters
    elif objective.name == "kv_cache":
        size = token_cache(checked, compiled)
    elif gguf is None or (file is not None and _has_type(file, gguf)):
        size = compiled_size(checked, compiled).bytes
    else:
        size = gguf_size(checked, compiled, gguf, any_layers=any_layers)
    if isinstance(size, Refusal):
        raise base.ObjectiveError(size.reason)
    return Score(float(size), 0.0, 0)


def _has_type(file: Path, file_type: str) -> bool:
    """Return whether a GGUF file has a type by its metadata."""
    return read_gguf(file).facts.get("general.file_type") == FILE_TYPES[file_type].number
