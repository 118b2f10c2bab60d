"""The metadata of a GGUF file by its architecture's keys: checked numbers, rotary embeddings."""

import math
import struct
from typing import Any, NoReturn

from gptailor.checkpoint.files import CheckpointError, open_regular, quoted, read_exactly, shown
from gptailor.checkpoint.formats.gguf.header import GgufValue, Header


class FileFacts:
    """The facts of a file about its architecture `name`, with the sizes of the model.

    `hidden` is the width of the stream, `wide` the width within a feed-forward block, `head` the
    width of a head; `heads` and `kv` are the numbers of heads of queries and of keys.
    """

    def __init__(self, header: Header, name: str) -> None:
        self.header = header
        self.name = name
        first = "blk.0."
        self.first_layer = frozenset(
            each.removeprefix(first) for each in header.tensors if each.startswith(first)
        )
        self.hidden = self.count("embedding_length")
        self.heads = self.count("attention.head_count")
        self.kv = self.count("attention.head_count_kv", self.heads)
        self.head = self.count("attention.key_length", self.hidden // self.heads)
        self.layers = self.count("block_count")
        self.wide = self.count("feed_forward_length")

    def refuse(self, message: str, help: str = "") -> NoReturn:
        """Raise CheckpointError (C109) about the file."""
        raise CheckpointError("C109", message, self.header.path, help)

    def has(self, *names: str) -> bool:
        """Return whether the first layer has all of these tensors: `attn_q.bias`."""
        return self.first_layer.issuperset(names)

    def fact(self, key: str) -> GgufValue | None:
        """Return the value of a key of the architecture's, None for a missing key."""
        return self.header.facts.get(f"{self.name}.{key}")

    def count(self, key: str, default: int | None = None) -> int:
        """Return a positive whole number; a list of one number counts as that number."""
        value = default if self.fact(key) is None else self.fact(key)
        if isinstance(value, tuple) and len({*map(repr, value)}) == 1:
            value = value[0]
        if type(value) is not int or not 0 < value < 2**31:
            message = f"'{self.name}.{key}' is {shown(value)}"
            self.refuse(f"{message}, expected a positive whole number")
        return value

    def real(self, key: str, default: float | None = None) -> float:
        """Return a positive number, with the fewest digits that mean it in float32."""
        value = default if self.fact(key) is None else self.fact(key)
        if isinstance(value, bool) or not isinstance(value, int | float):
            self.refuse(f"'{self.name}.{key}' is {shown(value)}, expected a number")
        if not math.isfinite(value) or value <= 0:
            self.refuse(f"'{self.name}.{key}' is {value!r}, expected a positive number")
        return _short_single(float(value))


def _short_single(value: float) -> float:
    """Return the number of the fewest digits that equals this number in float32.

    For 9.99999974e-06 it is 1e-05.
    """
    single = struct.pack("<f", value) if abs(value) < 3e38 else b""
    for digits in range(1, 10):
        short = float(f"{value:.{digits}g}")
        if single and struct.pack("<f", short) == single:
            return short
    return value


# ------------------------------------------------------------------------------ rotary embeddings

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
            facts.refuse(f"has both {quoted(FREQUENCIES)} and the scaling {quoted(str(kind))}")
        return _read_llama3(facts, theta)
    plain = {"rope_theta": theta, "rope_type": "default"}
    if kind == "none" and facts.fact("rope.scale_linear") is None:
        return plain
    if kind in {"none", "linear"}:
        key = "rope.scaling.factor" if kind == "linear" else "rope.scale_linear"
        return plain | {"rope_type": "linear", "factor": facts.real(key)}
    if kind != "yarn":
        facts.refuse(
            f"'{facts.name}.rope.scaling.type' is {shown(kind)}, which gptailor can't read"
        )
    return plain | _read_yarn(facts)


def _read_yarn(facts: FileFacts) -> dict[str, Any]:
    scaling = "rope.scaling."
    length = facts.count(f"{scaling}original_context_length")
    factor = facts.real(f"{scaling}factor")
    given = {name: f"{scaling}{key}" for key, name in _YARN.items()}
    yarn: dict[str, Any] = {
        "rope_type": "yarn",
        "factor": factor,
        "original_max_position_embeddings": length,
        **{name: facts.real(key) for name, key in given.items() if facts.fact(key) is not None},
    }
    if facts.real(f"{scaling}yarn_ext_factor", 1.0) != 1:
        facts.refuse(f"'{facts.name}.{scaling}yarn_ext_factor' isn't 1, which gptailor can't read")
    if facts.fact(f"{scaling}attn_factor") is not None:
        if "attention_factor" in yarn:
            facts.refuse(f"has two factors of attention under '{facts.name}.{scaling}'")
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
    if (entry.spec.dtype, entry.spec.shape) != ("F32", (count,)):
        facts.refuse(f"expected {count} numbers of float32 for {quoted(FREQUENCIES)}")
    with open_regular(header.path) as file:
        file.seek(entry.offset)
        divisors = struct.unpack(f"<{count}f", read_exactly(file, 4 * count, header.path, "C109"))
    if not all(0 < divisor < math.inf for divisor in divisors):
        facts.refuse(f"expected only positive numbers for {quoted(FREQUENCIES)}")
    factor = _short_single(max(divisors))
    low, high, length = 1.0, 4.0, 8192
    expected = llama3_divisors(theta, facts.head, factor, low=low, high=high, length=length)
    pairs = zip(divisors, expected, strict=True)
    if not all(math.isclose(a, b, rel_tol=1e-4) for a, b in pairs):
        facts.refuse(f"{quoted(FREQUENCIES)} doesn't have the factors of Llama 3.1's scaling")
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
