"""`parameters`, `bytes`, `kv_cache` and `latency`: objectives of a plan that need no text."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import final

from gptailor.checkpoint.families.layer_config import Refusal
from gptailor.checkpoint.models import Opened
from gptailor.evaluation.forward.requests import Request
from gptailor.evaluation.objectives import base
from gptailor.evaluation.scores import Score
from gptailor.plan.plan import Objective
from gptailor.program.compile import Compiled
from gptailor.program.gguf.tensors import weights_size
from gptailor.program.size import token_cache


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


def size_score(objective: Objective, compiled: Compiled, model: Opened) -> Score:
    """Return a size of a plan's output, which has no error; `model` is the plan's base.

    Raises ObjectiveError for an unknown KV cache, and CheckpointError (C306) for the size of a GGUF
    file that llama.cpp couldn't run.
    """
    gguf = objective.arguments.get("gguf")
    if objective.name == "parameters":
        size: int | Refusal = compiled.program.parameters
    elif gguf is not None:
        size = weights_size(compiled, str(gguf).upper(), Path(model.checkpoint.folder))
    elif objective.name == "bytes":
        size = compiled.program.size
    else:
        size = token_cache(compiled, model.layout)
    if isinstance(size, Refusal):
        raise base.ObjectiveError(size.reason)
    return Score(float(size), 0.0, 0)
