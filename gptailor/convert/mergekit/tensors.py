"""The names of a model's tensors, by which mergekit's filters choose: `Tensors`."""

from dataclasses import dataclass
from pathlib import Path

from gptailor.checkpoint.families.detect import Unknown, layout_of
from gptailor.checkpoint.folder import open_checkpoint
from gptailor.checkpoint.models import Opened
from gptailor.convert.note import ConversionError
from gptailor.plan.layers import PARTS
from gptailor.plan.plan import Part


@dataclass(frozen=True)
class TensorNames:
    """Names of the tensors of a family; within a layer, by its parts."""

    embed: tuple[str, ...]
    norm: tuple[str, ...]
    head: tuple[str, ...]
    prefix: str
    parts: dict[Part, tuple[str, ...]]
    tied: bool = False
    layers: int | None = None
    read: bool = False
    """Whether these were read from a checkpoint; else they are what most models have."""

    def name(self, layer: int, rest: str) -> str:
        """The whole name of a tensor of a layer."""
        return f"{self.prefix}{layer}.{rest}"

    def all(self, layers: int) -> list[str]:
        """Every name of a model of that many layers."""
        inner = [rest for part in PARTS for rest in self.parts[part]]
        named = [self.name(layer, rest) for layer in range(layers) for rest in inner]
        return [*self.embed, *named, *self.norm, *self.head]


LLAMA_TENSORS = TensorNames(
    embed=("model.embed_tokens.weight",),
    norm=("model.norm.weight",),
    head=("lm_head.weight",),
    prefix="model.layers.",
    parts={
        "attn": (
            *(f"self_attn.{name}_proj.weight" for name in "qkvo"),
            "input_layernorm.weight",
        ),
        "mlp": (
            *(f"mlp.{name}_proj.weight" for name in ("gate", "up", "down")),
            "post_attention_layernorm.weight",
        ),
    },
)
"""Llama's names, which Mistral and others have too."""


def is_norm(rest: str) -> bool:
    """Whether a tensor of a layer belongs to a norm, by its name."""
    return any("norm" in word or word.startswith("ln_") for word in rest.split("."))


def read_tensors(folder: Path) -> TensorNames:
    """The names in a checkpoint's folder, from its headers."""
    checkpoint = open_checkpoint(folder)
    layout = layout_of(checkpoint.config, checkpoint.tensors)
    if isinstance(layout, Unknown):
        raise ConversionError(layout.reason, name=str(folder))
    opened = Opened("base", checkpoint, layout)
    parts: dict[Part, tuple[str, ...]] = {}
    for part in PARTS:
        names = [rest for layer in range(layout.count) for rest in opened.part(layer, part)]
        parts[part] = tuple(dict.fromkeys(names))
    return TensorNames(layout.embed, layout.norm, layout.head, layout.prefix, parts,
                   layout.tied, layout.count, read=True)  # fmt: skip
