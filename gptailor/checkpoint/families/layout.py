"""(layer, part) ⇄ tensor names and the configuration of each layer: `Layout`, and `layout_of`."""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Literal, final

from gptailor.checkpoint.families import FAMILY_OF
from gptailor.checkpoint.families.compatibility import Disagreement, disagreements
from gptailor.checkpoint.families.family import Family, How
from gptailor.checkpoint.families.layer_config import (
    Config,
    LayerEntry,
    LayerRule,
    Refusal,
    RuleError,
    listed_per_layer,
)
from gptailor.checkpoint.families.refused import REFUSED
from gptailor.plan.plan import Part

_Rest = Literal["embed", "norm", "head"]
_Where = tuple[int, Part, str]
"""A layer, a part of it, and the tensor's name within the layer."""

_CONSTANTS = ("attn.bias", "attn.masked_bias", "attention.bias", "attention.masked_bias")
"""Masks that old checkpoints hold in each layer: no weights, and nothing reads them."""

PREDICTORS = (
    "num_nextn_predict_layers", "num_mtp_layers", "mtp_num_hidden_layers", "num_mtp_modules",
)  # fmt: skip
"""Keys that count layers after the last one, which predict further tokens."""

_PREDICTING = re.compile(r"(^|\.)mtp[._]")
"""In the names of tensors that predict further tokens, where these have a module of their own."""


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


_GENERIC = (listed_per_layer("layer_types", "attn"), listed_per_layer("mlp_layer_types", "mlp"))
"""Lists that transformers 5 checks, or caches by, in any family."""

_QUANTISED = (
    ".qweight", ".qzeros", ".weight_packed", ".weight_scale", ".weight_scale_inv",
    ".weight.absmax", ".weight.quant_map", ".SCB",
)  # fmt: skip
"""How the names of tensors end that only quantised weights have."""


def layout_of(
    config: Config, tensor_names: Collection[str], more: Mapping[str, Family] | None = None
) -> Layout | Refusal:
    """The layout of a checkpoint, by its configuration's `model_type` and its tensors' names.

    `more` are families by model type that the release doesn't have, or that win over its own. A
    refusal says why its layers can't be told apart and moved.
    """
    model_type = config.get("model_type")
    if not isinstance(model_type, str):
        return Refusal("the configuration names no 'model_type'")
    if (refused := _refused(config, model_type)) is not None:
        return refused
    given = (more or {}).get(model_type)
    if given is not None and (why := _unseen(given, config)) is not None:
        return Refusal(f"the family file of model type '{model_type}' does not say that {why}")
    family = given or FAMILY_OF.get(model_type)
    why = None if family else _unfamiliar(config) or _unlike_llama(tensor_names)
    if why is not None:
        return Refusal(f"model type '{model_type}' is not known, and {why}")
    try:
        layout = _layout(model_type, family or FAMILY_OF["llama"], config, tensor_names)
    except RuleError as error:
        return Refusal(f"{error} (model type '{model_type}')")
    return layout if family else _cautious(layout)


def _refused(config: Config, model_type: str) -> Refusal | None:
    """Why no checkpoint with such a configuration can be cut, whatever its tensors."""
    what = f"model type '{model_type}'"
    if (reason := REFUSED.get(model_type)) is not None:
        return Refusal(f"{what} is refused: {reason}")
    for key in ("text_config", "vision_config", "audio_config"):
        if key in config:
            return Refusal(
                f"{what} keeps its language model beside others ('{key}'); "
                "only a checkpoint of the language model alone can be cut"
            )
    if config.get("per_layer_config"):
        return Refusal(f"'per_layer_config' of {what} gives its layers other shapes")
    return None


def _layout(model_type: str, family: Family, config: Config, names: Collection[str]) -> Layout:
    if (why := family.unfit(config)) is not None:
        raise RuleError(why)
    count = layer_count(family, config)
    full = family.base + family.stack
    # There is no prefix where the base model was saved without its head.
    base = family.base if any(name.startswith(full) for name in names) else ""
    prefix = base + family.stack
    own = {rule.name for rule in family.rules}
    rules = (*family.rules, *(rule for rule in _GENERIC if rule.name not in own))
    places = ((name, place_in(prefix, name)) for name in names)
    beyond = {name for name, at in places if at is not None and at[0] >= count}
    if beyond and not any(config.get(key) for key in PREDICTORS):
        which = f"there is a tensor '{min(beyond)}'"
        raise RuleError(f"{which}, and the configuration has {count} layers")
    beyond |= {name for name in names if _PREDICTING.search(name)}
    _check_layers(family, prefix, count, names)
    for rule in rules:
        rule.read(config, count)
    quantised = _quantised(config, names)
    packed = f"the checkpoint's weights are quantised ('{quantised}')" if quantised else None
    no_scale = family.no_scale(config) or packed
    one_norm = "both branches of a layer read the output of one norm"
    predicting = "tensors that stand after the last layer (layers that predict further tokens)"
    return Layout(
        model_type,
        prefix,
        count,
        family,
        tuple(base + name for name in family.embed),
        tuple(base + name for name in family.norm),
        family.head,
        rules,
        is_tied(config, family),
        ignored=frozenset(beyond),
        notice=f"{len(beyond)} {predicting} are left out" if beyond else None,
        quantised=quantised,
        no_parts=family.no_parts or (one_norm if family.one_norm(config) else None),
        no_scale=no_scale,
        no_bridge=family.no_bridge or no_scale,
    )


def is_tied(config: Config, family: Family) -> bool:
    """Whether the head is the embedding's tensor; LFM 2 has another key, which goes first."""
    return bool(config.get(_TIE, config.get("tie_word_embeddings", family.tied)))


def untied(config: Config) -> dict[str, Any]:
    """The configuration of the model whose head has a tensor of its own."""
    out = {key: value for key, value in config.items() if key != _TIE}
    return {**out, "tie_word_embeddings": False}


_TIE = "tie_embedding"


def layer_count(family: Family, config: Config) -> int:
    """How many decoder layers a configuration says that there are. Raises RuleError."""
    if (listed := family.count_of(config)) is not None:
        return listed
    key = next((k for k in (family.count_key, "num_hidden_layers") if k in config), None)
    if key is None:
        raise RuleError(f"the configuration has no '{family.count_key}'")
    if type(count := config[key]) is not int or count <= 0:
        raise RuleError(f"'{key}' is {count!r}, and should be a positive integer")
    return count


def _check_layers(family: Family, prefix: str, count: int, names: Collection[str]) -> None:
    """No layer lacks all of its tensors, or has one that belongs to neither part."""
    seen = set()
    for name in names:
        if (at := place_in(prefix, name)) is None or at[0] >= count:
            continue
        if family.part(at[1]) is None:
            raise RuleError(f"tensor '{name}' belongs to neither branch of its layer")
        seen.add(at[0])
    if (missing := next((i for i in range(count) if i not in seen), None)) is not None:
        which = f"there are no tensors '{prefix}{missing}.…'"
        raise RuleError(f"{which}, and the configuration has {count} layers")


def _quantised(config: Config, names: Collection[str]) -> str | None:
    """How the weights are quantised, by the configuration, or else as tensors' names betray."""
    given = config.get("quantization_config") or config.get("compression_config")
    if isinstance(given, Mapping):
        return str(given.get("quant_method", "unnamed"))
    return "unnamed" if given or any(name.endswith(_QUANTISED) for name in names) else None


_POSITIONAL = re.compile(
    r"layer|block|pattern|interval|every|freq|sparse|dense|window|expert|depth"
)
"""Words in a key that may make a layer's arithmetic depend on its place."""

_PLAIN = re.compile(
    r"num_hidden_layers|.*layer_?norm.*|.*layer_norm_eps.*|layerdrop|.*initializer.*"
)
"""Keys with such a word that don't."""

_LISTS = re.compile(r"architectures|.*_token_ids?|keys_to_ignore.*")
"""Keys with lists that are about no layer."""

_NEEDED = {
    "input_layernorm.weight", "self_attn.o_proj.weight",
    "post_attention_layernorm.weight", "mlp.down_proj.weight",
}  # fmt: skip
_ALLOWED = re.compile(
    r"(input_layernorm|post_attention_layernorm)\.(weight|bias)"
    r"|self_attn\.\w+\.(weight|bias)|self_attn\.rotary_emb\.inv_freq|mlp\.\w+\.(weight|bias)"
)
"""The tensors of a layer like Llama's."""

_LAYER_NAME = re.compile(r"model\.layers\.(\d+)\.(.+)")


def _cautious(layout: Layout) -> Layout:
    """The layout of an architecture that isn't listed, and looks like Llama on disk."""
    what = f"model type '{layout.model_type}'"
    unclear = f"the arithmetic of {what} is not known"
    notice = f"{what} is not known; its layers are taken to be like Llama's"
    return replace(layout, known=False, no_scale=unclear, no_bridge=unclear, notice=notice)


def _unfamiliar(config: Config) -> str | None:
    """What in a configuration may be about layers by their places, or is code of its own."""
    if config.get("auto_map"):
        return "the code beside its weights ('auto_map') is never run"
    count = config.get("num_hidden_layers")
    for key, value in config.items():
        if isinstance(value, list | tuple) and len(value) == count and not _LISTS.fullmatch(key):
            return f"'{key}' may say something of each layer"
        if value and _POSITIONAL.search(key) and not _PLAIN.fullmatch(key):
            return f"'{key}' may make a layer depend on its place"
    return None


def _unseen(family: Family, config: Config) -> str | None:
    """What a configuration has that the proof of its family file didn't, and may be by layers."""
    unseen = {key: value for key, value in config.items() if key not in family.seen}
    return _unfamiliar({**unseen, "num_hidden_layers": config.get(family.count_key)})


def _unlike_llama(names: Collection[str]) -> str | None:
    found: dict[str, set[str]] = {}
    for name in names:
        if (match := _LAYER_NAME.fullmatch(name)) is not None:
            found.setdefault(match[1], set()).add(match[2])
    kinds = list(found.values())
    if not kinds or not kinds[0] >= _NEEDED:
        return "its layers are not built like Llama's"
    if any(kind != kinds[0] for kind in kinds):
        return "its layers are not all built alike"
    strange = sorted(rest for rest in kinds[0] if not _ALLOWED.fullmatch(rest))
    return f"its layers have a tensor '{strange[0]}'" if strange else None
