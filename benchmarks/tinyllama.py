"""Sizes of the benchmarks' models: TinyLlama's, in bfloat16, without a tensor library."""

import math
from dataclasses import dataclass

BYTES = 2
"""Bytes of one number in bfloat16."""


@dataclass(frozen=True)
class Shape:
    """TinyLlama's sizes, with scaled widths and vocabulary."""

    layers: int = 22
    scale: float = 1.0

    @property
    def hidden(self) -> int:
        """Return the hidden state's width: a whole number of pairs for each of the 32 heads."""
        return 64 * max(1, round(32 * self.scale))

    @property
    def ffn(self) -> int:
        """Return the width within the MLP."""
        return 64 * max(1, round(88 * self.scale))

    @property
    def vocabulary(self) -> int:
        """Return the number of tokens, at least the tokenizer's."""
        return max(64, round(32000 * self.scale))

    @property
    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of each tensor by its name, in the file's order."""
        ends = (self.vocabulary, self.hidden)
        found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": ends}
        for i in range(self.layers):
            found |= {f"model.layers.{i}.{name}": size for name, size in self.layer.items()}
        return {**found, "model.norm.weight": (self.hidden,), "lm_head.weight": ends}

    @property
    def layer(self) -> dict[str, tuple[int, ...]]:
        """Return the shapes of one layer's tensors: 32 heads, 4 of keys and values."""
        wide, narrow, ffn = self.hidden, self.hidden // 8, self.ffn
        return {
            "input_layernorm.weight": (wide,),
            "mlp.down_proj.weight": (wide, ffn),
            "mlp.gate_proj.weight": (ffn, wide),
            "mlp.up_proj.weight": (ffn, wide),
            "post_attention_layernorm.weight": (wide,),
            "self_attn.k_proj.weight": (narrow, wide),
            "self_attn.o_proj.weight": (wide, wide),
            "self_attn.q_proj.weight": (wide, wide),
            "self_attn.v_proj.weight": (narrow, wide),
        }

    @property
    def size(self) -> int:
        """Return the bytes of all weights."""
        return BYTES * sum(math.prod(shape) for shape in self.tensors.values())


def layers_for(size: float) -> int:
    """Return the number of layers for a model of full width with about `size` bytes."""
    one, two = Shape(1).size, Shape(2).size
    return max(1, 1 + round((size - one) / (two - one)))
