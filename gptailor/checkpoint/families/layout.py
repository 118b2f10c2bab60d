"""(layer, part) ⇄ tensor names and the configuration of each layer, as data: `Layout`."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, final

from gptailor.checkpoint.families.compatibility import Disagreement, disagreements
from gptailor.checkpoint.families.family import Family, How
from gptailor.checkpoint.families.layer_config import (
    Config,
    LayerEntry,
    LayerRule,
    Refusal,
    RuleError,
)
from gptailor.plan.plan import Part

_Rest = Literal["embed", "norm", "head"]
_Where = tuple[int, Part, str]
"""A layer, a part of it, and the tensor's name within the layer."""

_CONSTANTS = ("attn.bias", "attn.masked_bias", "attention.bias", "attention.masked_bias")
"""Masks that old checkpoints hold in each layer: no weights, and nothing reads them."""

PREDICTORS = ("num_nextn_predict_layers", "num_mtp_layers")
"""Keys that count layers after the last one, which predict further tokens."""


@final
@dataclass(frozen=True)
class Layout:
    """What a checkpoint's tensors are, and what its configuration says of its layers.

    `no_parts`, `no_scale` and `no_bridge` are the reasons why L1.attn and L1.mlp, `scale` and
    `bridge` are refused, or None. `notice` is something to tell the user. `tied` says whether the
    head is the embedding's tensor. `ignored` are names that an output leaves out.
    """

    model_type: str
    prefix: str
    count: int
    family: Family
    embed: tuple[str, ...]
    norm: tuple[str, ...]
    head: tuple[str, ...]
    rules: tuple[LayerRule, ...]
    tied: bool
    known: bool = True
    quantised: str | None = None
    no_parts: str | None = None
    no_scale: str | None = None
    no_bridge: str | None = None
    notice: str | None = None
    ignored: frozenset[str] = frozenset()

    @property
    def transposed(self) -> bool:
        """Whether a projection's weight is stored as (inputs, outputs)."""
        return self.family.transposed


def place_in(prefix: str, name: str) -> tuple[int, str] | None:
    """The layer's number and the rest of the name, or None outside the layers."""
    if not name.startswith(prefix):
        return None
    number, dot, rest = name[len(prefix) :].partition(".")
    digits = number.isascii() and number.isdigit() and len(number) < 10  # int() refuses thousands
    canonical = digits and str(int(number)) == number
    return (int(number), rest) if dot and canonical else None


def split_name(layout: Layout, tensor_name: str) -> _Where | _Rest | None:
    """Where a tensor belongs: layer, part and the rest of its name; or another place; or None."""
    if (at := place_in(layout.prefix, tensor_name)) is not None and at[0] < layout.count:
        part = layout.family.part(at[1])
        return None if part is None else (at[0], part, at[1])
    if tensor_name in layout.embed:
        return "embed"
    if tensor_name in layout.norm:
        return "norm"
    return "head" if tensor_name in layout.head else None


def name_of(layout: Layout, layer: int, rest: str) -> str:
    """The whole name of a tensor of a layer."""
    return f"{layout.prefix}{layer}.{rest}"


@lru_cache(maxsize=1024)
def _pattern(name: str) -> re.Pattern[str]:
    return re.compile(re.escape(name).replace(r"\*", r"[^.]+"))


def projection(layout: Layout, rest: str) -> Part | None:
    """The part that adds this projection's output (its weight or bias) to the hidden state."""
    stem = rest.removesuffix(".weight").removesuffix(".bias")
    if any(_pattern(each).fullmatch(stem) for each in layout.family.attn_out):
        return "attn"
    return "mlp" if any(_pattern(e).fullmatch(stem) for e in layout.family.mlp_out) else None


def fold_scale(layout: Layout, rest: str) -> How | None:
    """What becomes of a layer's tensor where the hidden state that enters is 1/c of what it was."""
    if folds := layout.family.folds:
        return next((fold.how for fold in folds if _pattern(fold.tensor).fullmatch(rest)), None)
    return None if projection(layout, rest) is None else "divide"


def is_constant(rest: str) -> bool:
    """Whether a layer's tensor is no weight: a mask or frequencies, to be copied only."""
    return rest in _CONSTANTS or rest.endswith("rotary_emb.inv_freq")


def layer_entries(layout: Layout, config: Config) -> list[LayerEntry]:
    """What the configuration of the layout's own checkpoint says of each layer."""
    read = {rule.name: rule.read(config, layout.count) for rule in layout.rules}
    return [{name: values[i] for name, values in read.items()} for i in range(layout.count)]


def joined_entry(layout: Layout, attn: LayerEntry, mlp: LayerEntry) -> LayerEntry:
    """The entry of a layer whose parts come from two layers."""
    return {
        rule.name: (attn if rule.part == "attn" else mlp).get(rule.name) for rule in layout.rules
    }


def moved_config(
    layout: Layout, base_config: Config, entries: Sequence[LayerEntry]
) -> dict[str, Any] | Refusal:
    """The base's configuration for layers with these entries, in order; or why there is none."""
    if not entries:
        return Refusal("a model has at least one layer")
    out: dict[str, Any] = dict(base_config)
    try:
        for rule in layout.rules:
            out = rule.write(out, [entry.get(rule.name) for entry in entries])
    except RuleError as error:
        return Refusal(str(error))
    for key in {layout.family.count_key, "num_hidden_layers"} & base_config.keys():
        out[key] = len(entries)
    return out | {key: 0 for key in PREDICTORS if key in out}


def incompatible(layout: Layout, base_config: Config, other_config: Config) -> list[Disagreement]:
    """What keeps another model's layers from being the base's: faults, and what may matter."""
    return disagreements(layout.family.keys, base_config, other_config, cautious=not layout.known)
