"""The size of a plan's output, from headers alone: parameters, bytes, and the KV cache."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any, final

from gptailor.checkpoint.families.layer_config import Refusal
from gptailor.checkpoint.families.layout import Layout, cached_entries, layer_entries
from gptailor.checkpoint.tensor import DTYPE_BITS
from gptailor.plan.registry import DTYPES
from gptailor.program.compile import Compiled, compile_plan
from gptailor.program.program import Program
from gptailor.program.sources import Checked

_COMPUTED = frozenset(DTYPES.values())
"""Dtypes, by their names in files, that models compute in."""


@final
@dataclass(frozen=True, slots=True)
class PlanSize:
    """The size of an output.

    `parameters` are the entries of all stored tensors, each once, and `bytes` their bytes.
    `kv_cache` is the number of bytes of one token in the KV cache, over all layers, or the reason
    why it is unknown.
    """

    parameters: int
    bytes: int
    kv_cache: int | Refusal


def plan_size(checked: Checked) -> PlanSize:
    """Return the size of the output of a closed plan without faults."""
    return compiled_size(compile_plan(checked), checked.base.layout)


def compiled_size(compiled: Compiled, layout: Layout) -> PlanSize:
    """Return the size of a compiled plan's output; `layout` is the base's."""
    program = compiled.program
    return PlanSize(program.parameters, program.size, _kv_cache(program, compiled.config, layout))


def _kv_cache(program: Program, config: Mapping[str, Any], layout: Layout) -> int | Refusal:
    """Return the bytes of a token, in the dtype that the output computes in."""
    total = 0
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
        if output.spec.dtype in _COMPUTED:
            return output.spec.dtype
    declared = config.get("dtype", config.get("torch_dtype"))
    return DTYPES.get(str(declared), "BF16")
