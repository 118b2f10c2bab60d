"""The size of a plan's output, from headers alone: parameters, bytes, and the KV cache."""

from collections.abc import Mapping
from dataclasses import replace
from itertools import chain
from typing import Any

from gptailor.checkpoint.families.layer_config import Refusal
from gptailor.checkpoint.families.layout import cached_entries, layer_entries
from gptailor.checkpoint.tensor import DTYPE_BITS
from gptailor.plan.output_size import OutputSize
from gptailor.plan.registry import DTYPES
from gptailor.program.compile import Compiled, compile_plan
from gptailor.program.program import Program
from gptailor.program.sources import Checked


def plan_size(checked: Checked) -> OutputSize:
    """Return the size of the output of a closed plan without faults."""
    return compiled_size(checked, compile_plan(checked))


def compiled_size(checked: Checked, compiled: Compiled) -> OutputSize:
    """Return the size of the output of a compiled plan, or of the GGUF file that it is."""
    program, cached = compiled.program, token_cache(checked, compiled)
    kv_cache = None if isinstance(cached, Refusal) else cached
    size = program.size if checked.gguf_file is None else checked.gguf_file.stat().st_size
    return OutputSize(program.parameters, size, kv_cache, len(program.layers))


def token_cache(checked: Checked, compiled: Compiled) -> int | Refusal:
    """Return the KV cache's bytes of a token, or why they are unknown.

    They are those of the output's dtype. llama.cpp, which runs a GGUF file, has 16 bits an entry.
    """
    program, config, total = compiled.program, compiled.config, 0
    layout = checked.base.layout
    entries = layer_entries(replace(layout, count=len(program.layers)), config)
    for entry, outputs in zip(entries, program.layers, strict=True):
        shapes = {output.place.name: output.spec.shape for output in outputs}
        cached = cached_entries(layout, config, entry, shapes)
        if isinstance(cached, Refusal):
            return cached
        total += cached
    dtype = _dtype(program, config) if checked.gguf_file is None else "F16"
    return total * DTYPE_BITS[dtype] // 8


def _dtype(program: Program, config: Mapping[str, Any]) -> str:
    """Return the file name of the dtype of the output's layers, else of its configuration."""
    for output in chain.from_iterable(program.layers):
        if output.spec.dtype in DTYPES.values():
            return output.spec.dtype
    declared = config.get("dtype", config.get("torch_dtype"))
    return DTYPES.get(str(declared), "BF16")
