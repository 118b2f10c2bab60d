"""Rotary embeddings in GGUF files: their keys, their scalings, and the factors of both."""

import math
import struct
from typing import Any

from gptailor.checkpoint.files import open_regular, quoted, read_exactly, shown
from gptailor.checkpoint.formats.gguf.file_facts import FileFacts, short_single

FREQUENCIES = "rope_freqs.weight"
"""The tensor of the divisors of the rotary frequencies, for models stretched as Llama 3.1."""

ROTARY_KEYS = frozenset({
    "rope.freq_base", "rope.dimension_count", "rope.scaling.type", "rope.scaling.factor",
    "rope.scale_linear", "rope.scaling.original_context_length", "rope.scaling.finetuned",
    "rope.scaling.attn_factor", "rope.scaling.yarn_attn_factor", "rope.scaling.yarn_beta_fast",
    "rope.scaling.yarn_beta_slow", "rope.scaling.yarn_ext_factor",
})  # fmt: skip
"""The keys that are read of every architecture that rotates."""

_YARN = {
    "yarn_attn_factor": "attention_factor",
    "yarn_beta_fast": "beta_fast",
    "yarn_beta_slow": "beta_slow",
}
"""YaRN's settings by GGUF's keys, in the names of a configuration."""


def read_rotary(facts: FileFacts) -> dict[str, Any]:
    """Return a file's rotary embeddings: plain, scaled by its keys, or by its divisors."""
    theta = facts.real("rope.freq_base", 10_000.0)
    kind = facts.fact("rope.scaling.type") or "none"
    if FREQUENCIES in facts.header.tensors:
        if kind != "none":
            facts.refuse(f"has {quoted(FREQUENCIES)} beside the scaling {quoted(str(kind))}")
        return _read_llama3(facts, theta)
    plain = {"rope_theta": theta, "rope_type": "default"}
    if kind == "none" and facts.fact("rope.scale_linear") is None:
        return plain
    if kind in {"none", "linear"}:
        key = "rope.scaling.factor" if kind == "linear" else "rope.scale_linear"
        return plain | {"rope_type": "linear", "factor": facts.real(key)}
    if kind != "yarn":
        facts.refuse(f"'{facts.name}.rope.scaling.type' is {shown(kind)}, which isn't read")
    return plain | _read_yarn(facts)


def _read_yarn(facts: FileFacts) -> dict[str, Any]:
    scaling = "rope.scaling."
    length = facts.count(f"{scaling}original_context_length")
    factor = facts.real(f"{scaling}factor")
    yarn: dict[str, Any] = {"rope_type": "yarn", "factor": factor}
    yarn["original_max_position_embeddings"] = length
    for key, name in _YARN.items():
        if facts.fact(f"{scaling}{key}") is not None:
            yarn[name] = facts.real(f"{scaling}{key}")
    if facts.real(f"{scaling}yarn_ext_factor", 1.0) != 1:
        facts.refuse(f"'{facts.name}.{scaling}yarn_ext_factor' isn't 1, which isn't read")
    if facts.fact(f"{scaling}attn_factor") is not None:
        if "attention_factor" in yarn:
            facts.refuse(f"says two factors of attention under '{facts.name}.{scaling}'")
        # llama.cpp multiplies the usual factor by it; transformers replaces the usual factor.
        yarn["attention_factor"] = yarn_attention(factor) * facts.real(f"{scaling}attn_factor")
    return yarn


def yarn_attention(factor: float) -> float:
    """Return YaRN's usual factor of attention: 0.1 ln(factor) + 1."""
    return 0.1 * math.log(factor) + 1.0 if factor > 1 else 1.0


def _read_llama3(facts: FileFacts, theta: float) -> dict[str, Any]:
    """Return Llama 3.1's scaling, after a comparison with the file's divisors."""
    header = facts.header
    entry, count = header.tensors[FREQUENCIES], facts.head // 2
    if entry.kind.name != "F32" or entry.shape != (count,):
        facts.refuse(f"{quoted(FREQUENCIES)} is not {count} numbers of float32")
    with open_regular(header.path) as file:
        file.seek(entry.offset)
        divisors = struct.unpack(f"<{count}f", read_exactly(file, 4 * count, header.path, "C109"))
    if not all(0 < divisor < math.inf for divisor in divisors):
        facts.refuse(f"{quoted(FREQUENCIES)} are not all positive numbers")
    factor = short_single(max(divisors))
    low, high, length = 1.0, 4.0, 8192
    expected = llama3_divisors(theta, facts.head, factor, low=low, high=high, length=length)
    pairs = zip(divisors, expected, strict=True)
    if not all(math.isclose(a, b, rel_tol=1e-4) for a, b in pairs):
        facts.refuse(f"{quoted(FREQUENCIES)} are not the factors of Llama 3.1's scaling")
    return {
        "rope_theta": theta, "rope_type": "llama3", "factor": factor, "low_freq_factor": low,
        "high_freq_factor": high, "original_max_position_embeddings": length,
    }  # fmt: skip


def llama3_divisors(
    theta: float, head: int, factor: float, *, low: float, high: float, length: float
) -> tuple[float, ...]:
    """Return the divisors of the frequencies of a head's pairs, by Llama 3.1's scaling.

    A frequency with fewer than `low` turns in `length` tokens is divided by `factor`, a frequency
    with more than `high` turns by 1. A ramp connects both.
    """
    divisors = []
    for i in range(0, head, 2):
        turns = length / (2 * math.pi * theta ** (i / head))
        smooth = min(1.0, max(0.0, (turns - low) / (high - low)))
        divisors.append(1.0 / ((1.0 - smooth) / factor + smooth))
    return tuple(divisors)
