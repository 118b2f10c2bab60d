"""(layer, part) ⇄ tensor names and the configuration of each layer, as data: `Layout`."""

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Literal

from gptailor.checkpoint.families.compatibility import ConfigKey, Disagreement, disagreements
from gptailor.checkpoint.families.layer_config import (
    Config,
    LayerEntry,
    LayerRule,
    Refusal,
    listed_per_layer,
)
from gptailor.checkpoint.families.table import FAMILIES, LLAMA, Family, How
from gptailor.checkpoint.families.unknown import unlike_llama
from gptailor.plan.plan import Part

_Rest = Literal["embed", "norm", "head"]
_Where = tuple[int, Part, str]
"""A layer, a part of it, and the tensor's name within the layer."""

CONSTANTS = ("attn.bias", "attn.masked_bias", "attention.bias", "attention.masked_bias")
"""Masks that old checkpoints hold in each layer: no weights, and nothing reads them."""

GENERIC = (listed_per_layer("layer_types", "attn"), listed_per_layer("mlp_layer_types", "mlp"))
"""Lists that transformers 5 checks, or caches by, in any family."""

_QUANTISED = (
    ".qweight", ".qzeros", ".weight_packed", ".weight_scale", ".weight_scale_inv",
    ".weight.absmax", ".weight.quant_map", ".SCB",
)  # fmt: skip
"""How the names of tensors end that only quantised weights have."""

PREDICTORS = ("num_nextn_predict_layers", "num_mtp_layers")
"""Keys that count layers after the last one, which predict further tokens."""

ONE_NORM = "both branches of a layer read the output of one norm"


@dataclass(frozen=True)
class Unknown:
    """Why a checkpoint's layers can't be told apart and moved."""

    reason: str


@dataclass(frozen=True)
class Layout:
    """What a checkpoint's tensors are, and what its configuration says of its layers.

    `no_parts`, `no_scale` and `no_bridge` are the reasons why L1.attn and L1.mlp, `scale` and
    `bridge` are refused, or None. `notice` is something to tell the user. `tied` says whether the
    head is the embedding's tensor. `transposed` says that a projection's weight is stored as
    (inputs, outputs). `ignored` are names that an output leaves out.
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
    def keys(self) -> tuple[ConfigKey, ...]:
        """What other models' configurations must agree on."""
        return self.family.keys

    @property
    def transposed(self) -> bool:
        """Whether a projection's weight is stored as (inputs, outputs)."""
        return self.family.transposed


# ------------------------------------------------------------------------------------ the layout of


def layout_of(config: Config, tensor_names: Collection[str]) -> Layout | Unknown:
    """The layout of a checkpoint, by its configuration's `model_type` and its tensors' names."""
    model_type = config.get("model_type")
    if not isinstance(model_type, str):
        return Unknown("the configuration names no 'model_type'")
    if (reason := _refused(model_type, config)) is not None:
        return Unknown(reason)
    if (family := FAMILIES.get(model_type)) is None:
        return _default(model_type, config, tensor_names)
    return _layout(model_type, family, config, tensor_names)


def _refused(model_type: str, config: Config) -> str | None:
    """Why no model of this kind can be cut, whatever its tensors."""
    for key in ("text_config", "vision_config", "audio_config"):
        if key in config:
            return (
                f"model type '{model_type}' keeps its language model beside others ('{key}'); "
                "only a checkpoint of the language model alone can be cut"
            )
    if config.get("per_layer_config"):
        return f"'per_layer_config' of model type '{model_type}' gives its layers other shapes"
    return None


def _layout(
    model_type: str, family: Family, config: Config, names: Collection[str]
) -> Layout | Unknown:
    count = layer_count(family, config)
    if isinstance(count, Refusal):
        return Unknown(f"{count.reason} (model type '{model_type}')")
    base = _base(family, names)
    prefix = base + family.stack
    own = {rule.name for rule in family.rules}
    rules = (*family.rules, *(rule for rule in GENERIC if rule.name not in own))
    ignored = _beyond(prefix, count, names)
    reason = (
        (None if _predicts(config) else _surplus(ignored, count))
        or _misfit(family, prefix, count, names)
        or next((v.reason for v in _read(rules, config, count) if isinstance(v, Refusal)), None)
    )
    if reason is not None:
        return Unknown(f"{reason} (model type '{model_type}')")
    return Layout(
        model_type,
        prefix,
        count,
        family,
        tuple(base + name for name in family.embed),
        tuple(base + name for name in family.norm),
        family.head,
        rules,
        bool(config.get("tie_word_embeddings", family.tied)),
        ignored=ignored,
        notice=_notice(ignored),
        quantised=(quantised := _quantised(config, names)),
        no_parts=ONE_NORM if family.one_norm(config) else None,
        no_scale=_packed(quantised),
        no_bridge=family.no_bridge or _packed(quantised),
    )


def _read(rules: Sequence[LayerRule], config: Config, count: int) -> Iterator[list[Any] | Refusal]:
    return (rule.read(config, count) for rule in rules)


def _beyond(prefix: str, count: int, names: Collection[str]) -> frozenset[str]:
    """The tensors of layers after the last that the configuration counts."""
    places = ((name, _place(prefix, name)) for name in names)
    return frozenset(name for name, at in places if at is not None and at[0] >= count)


def _predicts(config: Config) -> bool:
    """Whether the layers after the last are there to predict further tokens."""
    return any(config.get(key) for key in PREDICTORS)


def _surplus(beyond: frozenset[str], count: int) -> str | None:
    if not beyond:
        return None
    return f"there is a tensor '{min(beyond)}', and the configuration has {count} layers"


def _notice(ignored: frozenset[str]) -> str | None:
    if not ignored:
        return None
    return (
        f"{len(ignored)} tensors that stand after the last layer (layers that predict further "
        "tokens) are left out"
    )


def _quantised(config: Config, names: Collection[str]) -> str | None:
    """How the weights are quantised, by the configuration, or else as tensors' names betray."""
    given = config.get("quantization_config") or config.get("compression_config")
    if isinstance(given, Mapping):
        return str(given.get("quant_method", "unnamed"))
    return "unnamed" if given or any(name.endswith(_QUANTISED) for name in names) else None


def _packed(quantised: str | None) -> str | None:
    return f"the checkpoint's weights are quantised ('{quantised}')" if quantised else None


def layer_count(layout: Layout | Family, config: Config) -> int | Refusal:
    """How many decoder layers a configuration says that there are."""
    family = layout.family if isinstance(layout, Layout) else layout
    for key in (family.count_key, "num_hidden_layers"):
        if key in config:
            value = config[key]
            if isinstance(value, int) and not isinstance(value, bool) and value > 0:
                return value
            return Refusal(f"'{key}' is {value!r}, and should be a positive integer")
    return Refusal(f"the configuration has no '{family.count_key}'")


def _base(family: Family, names: Collection[str]) -> str:
    """The prefix of the base model: none where it was saved without its head."""
    full = family.base + family.stack
    return family.base if any(name.startswith(full) for name in names) else ""


def _place(prefix: str, name: str) -> tuple[int, str] | None:
    """The layer's number and the rest of the name, or None outside the layers."""
    if not name.startswith(prefix):
        return None
    number, dot, rest = name[len(prefix) :].partition(".")
    digits = number.isascii() and number.isdigit() and len(number) < 10  # int() refuses thousands
    canonical = digits and str(int(number)) == number
    return (int(number), rest) if dot and canonical else None


def _misfit(family: Family, prefix: str, count: int, names: Collection[str]) -> str | None:
    """What is missing of the layers, or is in them and belongs to neither part."""
    seen = set()
    for name in names:
        if (at := _place(prefix, name)) is None or at[0] >= count:
            continue
        if _part(family, at[1]) is None:
            return f"tensor '{name}' belongs to neither branch of its layer"
        seen.add(at[0])
    missing = next((i for i in range(count) if i not in seen), None)
    if missing is None:
        return None
    return f"there are no tensors '{prefix}{missing}.…', and the configuration has {count} layers"


def _part(family: Family, rest: str) -> Part | None:
    if rest.startswith(family.attn):
        return "attn"
    return "mlp" if rest.startswith(family.mlp) else None


def _default(model_type: str, config: Config, names: Collection[str]) -> Layout | Unknown:
    """The cautious layout of an architecture that isn't listed, if it looks like Llama."""
    if config.get("auto_map"):
        return Unknown(
            f"model type '{model_type}' is not known, and the code beside its weights "
            "('auto_map') is never run"
        )
    if (why := unlike_llama(config, names)) is not None:
        return Unknown(f"model type '{model_type}' is not known, and {why}")
    layout = _layout(model_type, LLAMA, config, names)
    if isinstance(layout, Unknown):
        return layout
    return replace(
        layout,
        known=False,
        no_scale=f"the arithmetic of model type '{model_type}' is not known",
        no_bridge=f"the arithmetic of model type '{model_type}' is not known",
        notice=f"model type '{model_type}' is not known; its layers are taken to be like Llama's",
    )


# -------------------------------------------------------------------------------------------- names


def split_name(layout: Layout, tensor_name: str) -> _Where | _Rest | None:
    """Where a tensor belongs: layer, part and the rest of its name; or another place; or None."""
    if (at := _place(layout.prefix, tensor_name)) is not None and at[0] < layout.count:
        part = _part(layout.family, at[1])
        return None if part is None else (at[0], part, at[1])
    if tensor_name in layout.embed:
        return "embed"
    if tensor_name in layout.norm:
        return "norm"
    return "head" if tensor_name in layout.head else None


def layer_tensors(
    layout: Layout, names: Collection[str], layer: int, part: Part | None = None
) -> dict[str, str]:
    """The tensors of a layer or a part of it: the name within the layer, and the whole name."""
    return {place[2]: name for name, place in _places(layout, names) if _is(place, layer, part)}


def _places(layout: Layout, names: Collection[str]) -> Iterator[tuple[str, _Where]]:
    for name in names:
        if isinstance(place := split_name(layout, name), tuple):
            yield name, place


def _is(place: _Where, layer: int, part: Part | None) -> bool:
    return place[0] == layer and part in {None, place[1]}


def name_of(layout: Layout, layer: int, rest: str) -> str:
    """The whole name of a tensor of a layer."""
    return f"{layout.prefix}{layer}.{rest}"


def rename(layout: Layout, name: str, new_layer: int) -> str:
    """The name of a layer's tensor in another layer; a name outside the layers stays."""
    place = split_name(layout, name)
    return name_of(layout, new_layer, place[2]) if isinstance(place, tuple) else name


# --------------------------------------------------------------------------------------- arithmetic


@lru_cache(maxsize=1024)
def _pattern(name: str) -> re.Pattern[str]:
    return re.compile(re.escape(name).replace(r"\*", r"[^.]+"))


def projection(layout: Layout, rest: str) -> Part | None:
    """The part that adds this projection's output (its weight or bias) to the hidden state."""
    stem = rest.removesuffix(".weight").removesuffix(".bias")
    parts: tuple[tuple[Part, tuple[str, ...]], ...] = (
        ("attn", layout.family.attn_out),
        ("mlp", layout.family.mlp_out),
    )
    for part, patterns in parts:
        if any(_pattern(pattern).fullmatch(stem) for pattern in patterns):
            return part
    return None


def fold_scale(layout: Layout, rest: str) -> How | None:
    """What becomes of a layer's tensor where the hidden state that enters is 1/c of what it was."""
    for each in layout.family.folds:
        if _pattern(each.tensor).fullmatch(rest):
            return each.how
    if layout.family.folds or projection(layout, rest) is None:
        return None
    return "divide"


def is_constant(rest: str) -> bool:
    """Whether a layer's tensor is no weight: a mask or frequencies, to be copied only."""
    return rest in CONSTANTS or rest.endswith("rotary_emb.inv_freq")


# ------------------------------------------------------------------------------------ configuration


def layer_entries(layout: Layout, config: Config) -> list[LayerEntry]:
    """What the configuration of the layout's own checkpoint says of each layer."""
    entries: list[dict[str, Any]] = [{} for _ in range(layout.count)]
    for rule in layout.rules:
        values = rule.read(config, layout.count)
        if isinstance(values, Refusal):
            raise ValueError(values.reason)  # noqa: TRY004 (of another checkpoint's configuration)
        for entry, value in zip(entries, values, strict=True):
            entry[rule.name] = value
    return list(entries)


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
    for rule in layout.rules:
        made = rule.write(out, [entry.get(rule.name) for entry in entries])
        if isinstance(made, Refusal):
            return made
        out = made
    for key in {layout.family.count_key, "num_hidden_layers"} & base_config.keys():
        out[key] = len(entries)
    return out | {key: 0 for key in PREDICTORS if key in out}


def incompatible(layout: Layout, base_config: Config, other_config: Config) -> list[Disagreement]:
    """What keeps another model's layers from being the base's: faults, and what may matter."""
    return disagreements(layout.keys, base_config, other_config, cautious=not layout.known)
