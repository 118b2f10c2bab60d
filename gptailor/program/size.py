"""The size of a plan's output, from headers alone: parameters, bytes, and the KV cache."""

from collections.abc import Mapping
from dataclasses import replace
from itertools import chain
from typing import Any

from gptailor.checkpoint.families.layer_config import Refusal
from gptailor.checkpoint.families.layout import Layout, cached_entries, layer_entries
from gptailor.checkpoint.tensor import DTYPE_BITS
from gptailor.plan.output_size import OutputSize
from gptailor.plan.registry import DTYPES
from gptailor.program.compile import Compiled, compile_plan
from gptailor.program.program import Program
from gptailor.program.sources import Checked


def plan_size(checked: Checked) -> OutputSize:
    """Return the size of the output of a closed plan without faults."""
    return compiled_size(compile_plan(checked), checked.base.layout)


def compiled_size(compiled: Compiled, layout: Layout) -> OutputSize:
    """Return the size of the output of a compiled plan; `layout` is the base's."""
    program, cached = compiled.program, token_cache(compiled, layout)
    kv_cache = None if isinstance(cached, Refusal) else cached
    return OutputSize(program.parameters, program.size, kv_cache, len(program.layers))


def token_cache(compiled: Compiled, layout: Layout) -> int | Refusal:
    """Return the KV cache's bytes of a token in the output's dtype, or why they are unknown."""
    program, config, total = compiled.program, compiled.config, 0
    entries = layer_entries(replace(layout, count=len(program.layers)), config)
    for entry, outputs in zip(entries, program.layers, strict=True):
        shapes = {output.place.name: output.spec.shape for output in outputs}
        cached = cached_entries(layout, config, entry, shapes)
        if isinstance(cached, Refusal):
            return cached
        total += cached
    return total * DTYPE_BITS[_dtype(program, config)] // 8


def _dtype(program: Program, config: Mapping[str, Any]) -> str:
    """Return the file name of the dtype of the output's layers, else of its configuration."""
    for output in chain.from_iterable(program.layers):
        if output.spec.dtype in DTYPES.values():
            return output.spec.dtype
    declared = config.get("dtype", config.get("torch_dtype"))
    return DTYPES.get(str(declared), "BF16")
