"""A mergekit parameter for one tensor: which block decides, filters, gradients, tensors' names."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import final

from gptailor.checkpoint.families.layer_config import Refusal
from gptailor.checkpoint.families.lookup import family_for
from gptailor.checkpoint.folder import open_checkpoint
from gptailor.checkpoint.models import Opened
from gptailor.convert.mergekit.config import Filtered, ParameterBlock
from gptailor.convert.mergekit.methods import MergekitMethod, ParameterValue
from gptailor.convert.note import ConversionError, Note
from gptailor.plan.faults import Place, nearest
from gptailor.plan.layers import PARTS
from gptailor.plan.plan import Part

_DEFAULTS: dict[str, ParameterValue] = {
    **dict.fromkeys(("weight", "scale", "t", "normalize", "rescale")),
    "density": 1.0, "gamma": 0.01, "lambda": 1.0, "int8_mask": False, "filter_wise": False,
    "max_iter": 10.0, "tol": 1e-5,
}  # fmt: skip
"""The parameters of the methods that are known, and their values where the file has none."""

_OF_OTHERS = ("epsilon", "select_topk", "r", "alpha", "nuslerp_row_wise", "nuslerp_flatten",
              "embed_slerp", "eps", "similarity_threshold")  # fmt: skip
"""Parameters of methods that have no equivalent, and of older versions."""

_FLAGS = ("normalize", "rescale", "int8_mask", "filter_wise")


@final
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
    """Whether these were read from a checkpoint; else they are the names that most models have."""

    def name(self, layer: int | None, rest: str) -> str:
        """The whole name of a tensor: `rest`, within a layer if one is given."""
        return rest if layer is None else f"{self.prefix}{layer}.{rest}"

    def has(self, filter_: str, layers: int) -> bool:
        """Whether a filter is of a tensor of a model of that many layers."""
        inner = [rest for part in PARTS for rest in self.parts[part]]
        named = [self.name(layer, rest) for layer in range(layers) for rest in inner]
        return any(filter_ in name for name in (*self.embed, *named, *self.norm, *self.head))


LLAMA_TENSORS = TensorNames(
    embed=("model.embed_tokens.weight",),
    norm=("model.norm.weight",),
    head=("lm_head.weight",),
    prefix="model.layers.",
    parts={
        "attn": (*(f"self_attn.{n}_proj.weight" for n in "qkvo"), "input_layernorm.weight"),
        "mlp": (
            *(f"mlp.{n}_proj.weight" for n in ("gate", "up", "down")),
            "post_attention_layernorm.weight",
        ),
    },
)
"""Llama's names, which Mistral and others have too."""


def read_tensors(folder: Path) -> TensorNames:
    """The names in a checkpoint's folder, from its headers."""
    checkpoint = open_checkpoint(folder)
    found = family_for(checkpoint.config.get("model_type"), (), folder)
    checkpoint = replace(checkpoint, family=found)
    layout = checkpoint.layout()
    if isinstance(layout, Refusal):
        raise ConversionError(layout.reason, name=str(folder))
    opened = Opened("base", checkpoint, layout)
    parts = {
        part: tuple(dict.fromkeys(n for i in range(layout.count) for n in opened.part(i, part)))
        for part in PARTS
    }
    return TensorNames(layout.embed, layout.norm, layout.head, layout.prefix, parts,
                       layout.tied, layout.count, read=True)  # fmt: skip


def value_at(name: str, tensor: str, t: float, blocks: Sequence[ParameterBlock]) -> ParameterValue:
    """A parameter for a tensor: that of the first block that has one for it, or the default.

    `t` is how far through its slice the tensor is: 0 at the first layer, 1 at the last.
    """
    for block in blocks:
        for setting, at in _entries(block, name):
            if setting.filter not in tensor:
                continue
            given = setting.value
            if not isinstance(given, list):
                return _value(block, name, given, at)
            values = [_value(block, name, one, (*at, i)) for i, one in enumerate(given)]
            return _interpolated(values, t)
    return _DEFAULTS[name]


def _entries(block: ParameterBlock, name: str) -> Iterator[tuple[Filtered, Place]]:
    setting, at = block.parameters.get(name), ("parameters", name)
    if isinstance(setting, Filtered):
        yield setting, (*at, "value")
    elif isinstance(setting, list) and isinstance(setting[0], Filtered):
        yield from ((one, (*at, i, "value")) for i, one in enumerate(setting))
    elif setting is not None:
        yield Filtered.model_construct(value=setting), at


def _value(block: ParameterBlock, name: str, value: object, at: Place) -> float | bool:
    """A flag, or a finite number; YAML 1.1 reads `1e-3` as a text."""
    if name in _FLAGS:
        if not isinstance(value, bool):
            raise block.error(f"'{name}' is true or false, and not {value!r}", *at)
        return value
    try:
        number = math.nan if isinstance(value, bool) else float(value)  # type: ignore[arg-type]
    except (ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise block.error(f"'{name}' is a number, and not {value!r}", *at)
    return number


def _interpolated(values: Sequence[float | bool], t: float) -> float | bool:
    """The value on the straight lines through the values, evenly spaced; flags are steps."""
    scaled = t * (len(values) - 1)
    low = int(scaled)
    if any(isinstance(value, bool) for value in values):
        return values[low]
    high = min(len(values) - 1, low + 1)
    share = scaled - low
    return (1 - share) * values[low] + share * values[high]


def filters_of(block: ParameterBlock, name: str) -> list[str]:
    """The filters of a block's parameter."""
    return [setting.filter for setting, _ in _entries(block, name) if setting.filter]


def unread(block: ParameterBlock, method: MergekitMethod) -> Iterator[Note]:
    """Notes on a block's parameters that its method doesn't read."""
    for name in block.parameters:
        if name in method.parameters:
            continue
        if name not in _DEFAULTS and name not in _OF_OTHERS:
            have = f"'{method.name}' has {', '.join(method.parameters) or 'none'}"
            raise block.error(f"there is no parameter '{name}'", "parameters", name,
                              help=nearest(name, method.parameters) or have)  # fmt: skip
        why = f"'{method.name}' has no '{name}'; it does nothing, in mergekit neither"
        yield block.note(why, "parameters", name)
    if block.parameters.get("int8_mask") is True and "int8_mask" in method.shared:
        why = "it saves mergekit memory, and changes nothing"
        yield block.note(why, "parameters", "int8_mask")


def idle_filters(block: ParameterBlock, tensors: TensorNames, layers: int) -> Iterator[Note]:
    """Notes on a block's filters that no tensor of a model of that many layers has."""
    for name, filter_ in ((n, f) for n in block.parameters for f in filters_of(block, n)):
        if tensors.has(filter_, layers):
            continue
        if not tensors.read:
            message = f"the filter '{filter_}' is of no tensor of a model such as Llama"
            help_ = "with the base's folder at hand its own tensors' names would count"
            raise block.error(message, "parameters", name, help=help_)
        message = f"the filter '{filter_}' is of no tensor, and does nothing"
        yield block.note(message, "parameters", name)


def idle_in_source(
    source: ParameterBlock, method: MergekitMethod, *, is_base: bool
) -> Iterator[Note]:
    """Notes on the parameters of one source that do nothing there."""
    for name in source.parameters:
        if name in method.shared:
            why = f"'{name}' of one source does nothing, in mergekit neither"
            yield source.note(why, "parameters", name)
        elif is_base and "lambda" in method.shared and name in ("weight", "density"):
            yield source.note(f"the base's own '{name}' does nothing", "parameters", name)
