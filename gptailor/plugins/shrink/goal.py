"""The goal of `gptailor shrink`, and the sizes of a plan that it bounds."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, final

from gptailor.reporting.quantities import bytes_in_words, millions

CONTEXT = 4096
"""Tokens in the KV cache, if the model takes as many."""


@final
@dataclass(frozen=True)
class PlanCost:
    """The sizes of a plan's output: of its GGUF file if it `is_gguf`, else of its folder.

    `kv_cache` is the bytes of a token in the KV cache, or None if they are unknown. The share
    `sliding` of the layers caches at most `window` tokens.
    """

    bytes: int
    parameters: int
    kv_cache: int | None
    is_gguf: bool
    sliding: float = 0.0
    window: int = 0

    def memory(self, context: int) -> int:
        """Return the bytes of the weights and of a full KV cache."""
        tokens = (1 - self.sliding) * context + self.sliding * min(context, self.window)
        return self.bytes + round((self.kv_cache or 0) * tokens)


def sliding_layers(config: Mapping[str, Any]) -> tuple[float, int]:
    """Return the share of a config's layers that attend within a window, and the window."""
    window = config.get("sliding_window")
    if not isinstance(window, int) or config.get("use_sliding_window") is False:
        return 0.0, 0
    types = config.get("layer_types") or ["sliding_attention"]
    return sum("sliding" in kind for kind in types) / len(types), window


@final
@dataclass(frozen=True)
class ShrinkGoal:
    """Bounds of a plan, which must all hold; None means no bound.

    `to` are bytes of the output, `parameters` stored numbers, `memory` bytes of the weights with
    a KV cache of `context` tokens, and `faster` is the least speed of decoding as a multiple of
    the uncut model's. Raises ValueError without any bound.
    """

    to: int | None = None
    parameters: int | None = None
    memory: int | None = None
    faster: float | None = None
    context: int = CONTEXT

    def __post_init__(self) -> None:
        bounds = (self.to, self.parameters, self.memory, self.faster)
        if all(bound is None for bound in bounds):
            raise ValueError("expected a goal, got none: name bytes, parameters, memory or a speed")
        if self.faster is not None and self.faster <= 1:
            raise ValueError(f"'faster': expected a number above 1, got {self.faster:g}")

    @property
    def sized(self) -> bool:
        """Return whether the goal bounds bytes, which a type with fewer bits changes."""
        return self.to is not None or self.memory is not None

    def excess(self, cost: PlanCost, speed: float | None = None) -> float:
        """Return the largest share of a size in its bound: at most 1 if the goal is met.

        A `speed` is a multiple of the uncut model's; an unknown one counts as 1.
        """
        pairs = (
            (cost.bytes, self.to),
            (cost.parameters, self.parameters),
            (cost.memory(self.context), self.memory),
        )
        shares = [size / bound for size, bound in pairs if bound is not None]
        if self.faster is not None:
            shares.append(self.faster / (speed or 1.0))
        return max(shares)

    @property
    def words(self) -> str:
        """The goal in words, such as `at most 100.0 MB`."""
        parts = []
        if self.to is not None:
            parts.append(f"at most {bytes_in_words(self.to)}")
        if self.parameters is not None:
            parts.append(f"at most {millions(self.parameters)} parameters")
        if self.memory is not None:
            held = f"at most {bytes_in_words(self.memory)} of memory"
            parts.append(f"{held} with {self.context:,} tokens in the KV cache")
        if self.faster is not None:
            parts.append(f"{self.faster:g} times the speed")
        return ", ".join(parts)
