"""lm-evaluation-harness with the model `gptailor`: a plan that is stitched in memory.

`python -m gptailor.plugins.lm_eval.model --model gptailor --model_args plan=plan.tailor --tasks
arc_easy` is `lm_eval` with this model, and with all its options. In Python, the import registers
the model for `lm_eval.simple_evaluate(model="gptailor", model_args="plan=plan.tailor")`.
"""

import inspect
from pathlib import Path
from typing import Any, final

import torch
from lm_eval.__main__ import cli_evaluate
from lm_eval.api.registry import register_model
from lm_eval.models.huggingface import HFLM

from gptailor.evaluation.meter import Meter, Placement
from gptailor.evaluation.objectives.tokens import tokenizer_model, tokenizer_of
from gptailor.evaluation.targets import find_targets
from gptailor.plan.arguments import Positive, checked
from gptailor.plan.plan import Plan
from gptailor.program.devices import dtype_of
from gptailor.reporting.quantities import byte_count

_OF_FILES = frozenset([
    "autogptq", "backend", "delta", "gguf_file", "gptqmodel", "kwargs", "max_cpu_memory",
    "max_memory_per_gpu", "offload_folder", "parallelize", "peft", "pretrained", "revision", "self",
    "subfolder", "tokenizer", "tp_plan", "use_fast_tokenizer",
])  # fmt: skip
"""Arguments of lm-eval's model `hf` that only change how it opens files."""


@register_model("gptailor")
@final
class PlanLM(HFLM):  # type: ignore[misc]
    """A plan, a model's folder or a GGUF file as a model of lm-evaluation-harness.

    Nothing is compiled: the plan is stitched in memory, bridged and healed as it declares.
    """

    @checked
    def __init__(
        self,
        plan: str | Path | Plan,
        device: str | None = None,
        dtype: str | torch.dtype | None = None,
        memory: Positive | str | None = None,
        **more: Any,
    ) -> None:
        """Stitch a plan or its file on a device, in a dtype; by default, or by `auto`, its own.

        The harness passes `cuda:0` by default; without a CUDA device it is the CPU, as
        with lm-eval's model `hf`. `memory` bounds the bytes on the device. `more` are arguments of
        that model, such as `batch_size` and `max_length`. Raises PlanError for faults of the plan,
        TailorError for a missing tokenizer or another device, TypeError for another argument.
        """
        known = inspect.signature(HFLM.__init__).parameters.keys() - _OF_FILES
        if unknown := sorted(more.keys() - known):
            raise TypeError(f"expected an argument of the model gptailor, got '{unknown[0]}'")
        place = device or "cpu"
        if place.startswith("cuda") and not torch.cuda.is_available():
            place = "cpu"
        dtype = None if dtype == "auto" else dtype
        room = byte_count(memory)
        (target,) = find_targets([plan], {}, device=place, memory=room)
        meter = Meter(Placement(place, dtype_of(dtype), room, own=True))
        model = meter.stitch(target.prepared.models, target.prepared.plan).model
        tokenizer = tokenizer_of(tokenizer_model(target.prepared))
        super().__init__(pretrained=model, tokenizer=tokenizer, device=place, **more)


if __name__ == "__main__":
    cli_evaluate()
