"""(layer, part) ⇄ tensor names and the configuration of each layer: `Layout`, and `layout_of`."""

import json
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Literal, final

from gptailor.checkpoint.families import FAMILY_OF, vision
from gptailor.checkpoint.families.family import Family, How
from gptailor.checkpoint.families.layer_config import (
    LINEAR,
    QUANTISATION_KEYS,
    Config,
    LayerEntry,
    Refusal,
    RuleError,
    quantisation,
)
from gptailor.checkpoint.families.layer_rules import LayerRule, Listed
from gptailor.checkpoint.families.refused import LEARN, REFUSED, unfamiliar, unlike_llama, unproven
from gptailor.plan.bounds import MOST_LAYERS
from gptailor.plan.layer_parts import Branch

_Rest = Literal["embed", "norm", "head"]

_CONSTANTS = (
    "attn.bias", "attn.masked_bias", "attention.bias", "attention.masked_bias",
    "attn.attention.bias", "attn.attention.masked_bias", "attn.causal_mask",
)  # fmt: skip
"""Masks that old checkpoints hold in each layer: no weights, and nothing reads them."""

PREDICTORS = (
    "num_nextn_predict_layers", "num_mtp_layers", "mtp_num_hidden_layers", "num_mtp_modules",
)  # fmt: skip
"""Keys that count layers after the last one, which predict further tokens."""

_PREDICTING = re.compile(r"(^|\.)mtp[._]")
"""In the names of tensors that predict further tokens, where these have a module of their own."""

_NUMBERED = re.compile(r"(?:^|\.)mtp[^.]*\.(?:layers\.)?(\d+)\.")
"""A predictor's number in such a name."""


@final
@dataclass(frozen=True)
class Layout:
    """The places of a checkpoint's tensors, and the rules that its layers move by.

    `no_parts`, `no_scale` and `no_bridge` are the reasons why L1.attn and L1.mlp, `scale` and
    `bridge` are refused, or None. `notice` is something to tell the user. `tied` says whether the
    head is the embedding's tensor. `predicting` are names of tensors of layers that predict further
    tokens. `text_type` is the type of the language model, which a `wrapped` one has within;
    features of an image are added after the first `stacked` layers.
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
    predicting: frozenset[str] = frozenset()
    text_type: str = ""
    root: str = ""
    stacked: int = 0

    @property
    def wrapped(self) -> bool:
        """Return whether the model also has towers."""
        return self.model_type in vision.WRAPPERS

    @property
    def architecture(self) -> str:
        """The name that models have in common if layers can move between them."""
        return self.family.like or self.text_type

    @property
    def transposed(self) -> bool:
        """Return whether a projection's weight is stored as (inputs, outputs)."""
        return self.family.transposed


def place_in(prefix: str, name: str) -> tuple[int, str] | None:
    """Return the layer's number and the rest of the name, or None outside the layers."""
    if not name.startswith(prefix):
        return None
    number, dot, suffix = name[len(prefix) :].partition(".")
    digits = number.isascii() and number.isdigit() and len(number) < 10  # int() refuses thousands
    canonical = digits and str(int(number)) == number
    return (int(number), suffix) if dot and canonical else None


def split_name(layout: Layout, tensor_name: str) -> tuple[int, Branch, str] | _Rest | None:
    """Return a tensor's layer, part and name within the layer; or another place; or None."""
    if (at := place_in(layout.prefix, tensor_name)) is not None and at[0] < layout.count:
        part = layout.family.part(at[1])
        return None if part is None else (at[0], part, at[1])
    places: tuple[_Rest, ...] = ("embed", "norm", "head")
    return next((place for place in places if tensor_name in getattr(layout, place)), None)


def name_of(layout: Layout, layer: int, suffix: str) -> str:
    """Return the whole name of a tensor of a layer."""
    return f"{layout.prefix}{layer}.{suffix}"


def aliases(layout: Layout, name: str) -> Iterator[str]:
    """Yield the names that a tensor has on this disk, by its name in another version."""
    for root in vision.roots(layout.family.base) if layout.wrapped else ():
        if name.startswith(root):
            yield layout.root + name.removeprefix(root)
    for own, head in zip(layout.family.head, layout.head, strict=True):
        if name.endswith(own):
            yield head


@lru_cache(maxsize=1024)
def _pattern(name: str) -> re.Pattern[str]:
    return re.compile(re.escape(name).replace(r"\*", r"[^.]+"))


def projection(layout: Layout, suffix: str) -> Branch | None:
    """Return the part that adds this projection's output to the hidden state."""
    stem = suffix.removesuffix(".weight").removesuffix(".bias")
    if any(_pattern(each).fullmatch(stem) for each in layout.family.attn_out):
        return "attn"
    return "mlp" if any(_pattern(e).fullmatch(stem) for e in layout.family.mlp_out) else None


def fold_scale(layout: Layout, suffix: str) -> How | None:
    """Return the change of a layer's tensor if the hidden state that enters is divided by c."""
    if folds := layout.family.folds:
        return next((how for name, how in folds.items() if _pattern(name).fullmatch(suffix)), None)
    return None if projection(layout, suffix) is None else "divide"


def post_norm(layout: Layout, suffix: str) -> How | None:
    """Return the change for `scale` of a norm that ends the MLP branch; None for other tensors."""
    if layout.family.part(suffix) != "mlp" or projection(layout, suffix) is not None:
        return None
    how = fold_scale(layout, suffix)
    return None if how == "multiply" else how


def is_bridged(layout: Layout, suffix: str) -> bool:
    """Return whether a bridge changes this tensor of the layer before a gap."""
    return projection(layout, suffix) == "mlp" or post_norm(layout, suffix) is not None


def is_constant(suffix: str) -> bool:
    """Return whether a layer's tensor isn't a weight: a mask or frequencies, to be copied only."""
    return suffix in _CONSTANTS or suffix.endswith("rotary_emb.inv_freq")


def layer_entries(layout: Layout, config: Config) -> list[LayerEntry]:
    """Return each layer's entry, by the configuration of the layout's own checkpoint."""
    config = vision.text_of(config)
    read = {rule.name: rule.read(config, layout.count) for rule in layout.rules}
    return [{name: values[i] for name, values in read.items()} for i in range(layout.count)]


def joined_entry(layout: Layout, attn: LayerEntry, mlp: LayerEntry) -> LayerEntry:
    """Return the entry of a layer with the parts of two layers."""
    return {
        rule.name: (attn if rule.part == "attn" else mlp).get(rule.name) for rule in layout.rules
    }


def moved_config(
    layout: Layout, base_config: Config, entries: Sequence[LayerEntry], *, predicting: bool = False
) -> dict[str, Any] | Refusal:
    """Return the base's configuration for layers with these entries, in order; or a refusal.

    With `predicting` it keeps the number of layers that predict further tokens, otherwise it has no
    such layers.
    """
    if not entries:
        return Refusal("a model has at least one layer")
    out: dict[str, Any] = dict(vision.text_of(base_config))
    counts = {layout.family.count_key, "num_hidden_layers"} & out.keys()
    if (deepest := layout.family.deepest) is not None and len(entries) > deepest:
        return Refusal(
            f"the model would have {len(entries)} layers, but its family is proven for {deepest} "
            "at most"
        )
    try:
        for rule in layout.rules:
            out = rule.write(out, [entry.get(rule.name) for entry in entries])
        if not counts and layout.wrapped and layout.family.counted(out) is None:
            counts = {layout.family.count_key}
        out |= dict.fromkeys(counts, len(entries))
        if not predicting:
            out |= {key: 0 for key in PREDICTORS if key in out}
            out |= {key: False for key in ("use_mtp",) if key in out}
        return vision.with_text(base_config, out)
    except RuleError as error:
        return Refusal(str(error))


def predictor_count(config: Config) -> int:
    """Return the number of predictors that a configuration states, or 0."""
    config = vision.text_of(config)
    return max((n for key in PREDICTORS if isinstance(n := config.get(key), int)), default=0)


def predictor_numbers(layout: Layout, names: Collection[str]) -> frozenset[str]:
    """Return the numbers of predictors in names of tensors; 0 for a module without numbers."""
    places = ((place_in(layout.prefix, name), _NUMBERED.search(name)) for name in names)
    return frozenset(
        str(at[0]) if at is not None else match[1] if match is not None else "0"
        for at, match in places
    )


def is_predicting(name: str) -> bool:
    """Return whether a name belongs to a module that predicts further tokens, `mtp.…`."""
    return _PREDICTING.search(name) is not None


_GENERIC = (
    Listed.model_construct(optional=True).bound("layer_types", {}),  # without a validator
    Listed.model_construct(optional=True, part="mlp").bound("mlp_layer_types", {}),
)
"""Lists that transformers 5 checks, or caches by, in any family."""

QUANTISED_NAMES = (
    ".qweight", ".qzeros", ".weight_packed", ".weight_scale", ".weight_scale_inv",
    ".weight.absmax", ".weight.quant_map", ".SCB",
)  # fmt: skip
"""Ends of names that only tensors of quantised weights have."""


def layout_of(
    config: Config, tensor_names: Collection[str], supplied: Family | None = None
) -> Layout | Refusal:
    """Return the layout of a checkpoint, by its `model_type` and its tensors' names.

    A `supplied` family is one that the release doesn't have, or that wins over its own. A refusal
    says why its layers can't be distinguished and moved.
    """
    model_type = config.get("model_type")
    if not isinstance(model_type, str):
        return Refusal("the configuration names no 'model_type'")
    refused = _refused(config, model_type) or (unproven(supplied, config) if supplied else None)
    if refused is not None:
        return refused
    if model_type in vision.WRAPPERS:
        return _wrapped(model_type, config, tensor_names)
    family = supplied or FAMILY_OF.get(model_type)
    why = None if family else unfamiliar(config) or unlike_llama(tensor_names)
    if why is not None:
        return Refusal(f"model type '{model_type}' is unknown, and {why}", LEARN)
    try:
        layout = _layout(model_type, family or FAMILY_OF["llama"], config, tensor_names)
    except RuleError as error:
        return Refusal(f"{error} (model type '{model_type}')")
    return layout if family else _cautious(layout)


def _wrapped(model_type: str, config: Config, names: Collection[str]) -> Layout | Refusal:
    """Return the layout of a model with a language model and towers."""
    of = f"(the language model of model type '{model_type}')"
    try:
        text = {**vision.text_of(config)}
        text_type = str(text["model_type"])
        family, refused = FAMILY_OF.get(text_type), _refused(text, text_type)
        if refused is not None or family is None:
            why = refused.reason if refused else f"model type '{text_type}' is unknown"
            return Refusal(f"{why} {of}")
        root, head = vision.root_of(family.base, family.stack, names)
        keys = {family.count_key, "num_hidden_layers"} & text.keys()
        if not keys and family.counted(text) is None:
            numbers = (at[0] for n in names if (at := place_in(root + family.stack, n)) is not None)
            text[family.count_key] = 1 + max(numbers, default=-1)
        heads = tuple(head + name for name in family.head)
        text["tie_word_embeddings"] = vision.ties(config, family.tied) and not any(
            n in names for n in heads
        )
        if any(text.get(key) for key in QUANTISATION_KEYS):
            return Refusal(
                f"its quantisation settings are in 'text_config', expected at the top level {of}"
            )
        text |= {key: config[key] for key in QUANTISATION_KEYS if key in config}
        layout = _layout(text_type, family, text, names, root)
        stacked = vision.stacked_features(config)
    except RuleError as error:
        return Refusal(f"{error} (model type '{model_type}')")
    wrapper = vision.WRAPPERS[model_type]
    two_ways = f"the language model of a '{model_type}' model reads a text in both directions"
    no_bridge = layout.no_bridge or (two_ways if wrapper.two_ways else None)
    return replace(layout, model_type=model_type, head=heads, stacked=stacked, no_bridge=no_bridge)


def _refused(config: Config, model_type: str) -> Refusal | None:
    """Return why no checkpoint with this configuration can be cut, whatever its tensors."""
    what = f"model type '{model_type}'"
    if (reason := REFUSED.get(model_type)) is not None:
        return Refusal(f"{what} is refused: {reason}")
    if (key := next((key for key in (vision.TEXT, *vision.TOWERS) if key in config), None)) and (
        vision.wrapper_of(config) is None
    ):
        return Refusal(f"{what} contains further models ('{key}') in an unknown form")
    rules = FAMILY_OF[model_type].rules if model_type in FAMILY_OF else ()
    if config.get("per_layer_config") and "per_layer_config" not in {rule.name for rule in rules}:
        return Refusal(f"'per_layer_config' of {what} gives its layers different shapes")
    return None


def _layout(
    model_type: str,
    family: Family,
    config: Config,
    names: Collection[str],
    root: str | None = None,
) -> Layout:
    if (why := family.unfit(config)) is not None:
        raise RuleError(why)
    count = layer_count(family, config)
    full = family.base + family.stack
    # The prefix is missing if the base model was saved without its head.
    base = family.base if any(name.startswith(full) for name in names) else ""
    base = base if root is None else root
    prefix = base + family.stack
    own = {rule.name for rule in family.rules}
    rules = (*family.rules, *(rule for rule in _GENERIC if rule.name not in own))
    places = ((name, place_in(prefix, name)) for name in names)
    beyond = {name for name, at in places if at is not None and at[0] >= count}
    if beyond and not any(config.get(key) for key in PREDICTORS):
        which = f"there is a tensor '{min(beyond)}'"
        raise RuleError(f"{which}, but the configuration has {count} layers")
    beyond |= set(filter(is_predicting, names))
    _check_layers(family, prefix, count, names)
    for rule in rules:
        rule.read(config, count)
    quantised = _quantised(config, names)
    packed = f"the checkpoint's weights are quantised ('{quantised}')" if quantised else None
    no_scale = family.why_not("scale", config) or packed
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
        predicting=frozenset(beyond),
        quantised=quantised,
        no_parts=family.why_not("parts", config),
        no_scale=no_scale,
        no_bridge=family.why_not("bridge", config) or no_scale,
        text_type=model_type,
        root=base,
    )


def is_tied(config: Config, family: Family) -> bool:
    """Return whether the head is the embedding's tensor; LFM 2's own key goes first."""
    return bool(config.get(_TIE, config.get("tie_word_embeddings", family.tied)))


def untied(config: Config) -> dict[str, Any]:
    """Return the configuration for a head that has a tensor of its own."""
    out = {key: value for key, value in config.items() if key != _TIE}
    if vision.wrapper_of(config) is not None and isinstance(inner := config.get(vision.TEXT), dict):
        out[vision.TEXT] = {**inner, "tie_word_embeddings": False}
    return {**out, "tie_word_embeddings": False}


_TIE = "tie_embedding"


def layer_count(family: Family, config: Config) -> int:
    """Return the number of decoder layers that a configuration states. Raises RuleError."""
    count = family.counted(config)
    if count is None:
        key = next((k for k in (family.count_key, "num_hidden_layers") if k in config), None)
        if key is None:
            raise RuleError(f"the configuration has no '{family.count_key}'")
        if type(count := config[key]) is not int or count <= 0:
            raise RuleError(f"expected a positive integer for '{key}', got {json.dumps(count)}")
    if count > MOST_LAYERS:
        raise RuleError(
            f"expected at most {MOST_LAYERS:,} layers, but the configuration has {count:,}"
        )
    return count


def _check_layers(family: Family, prefix: str, count: int, names: Collection[str]) -> None:
    """Raise RuleError for a layer without tensors, or with a tensor outside of both parts."""
    numbers = set()
    for name in names:
        if (at := place_in(prefix, name)) is None or at[0] >= count:
            continue
        if family.part(at[1]) is None:
            raise RuleError(f"tensor '{name}' belongs to neither branch of its layer")
        numbers.add(at[0])
    if (missing := next((i for i in range(count) if i not in numbers), None)) is not None:
        which = f"there are no tensors '{prefix}{missing}.…'"
        raise RuleError(f"{which}, but the configuration has {count} layers")


def _quantised(config: Config, names: Collection[str]) -> str | None:
    """Return how the weights are quantised, by the configuration or else by tensors' names."""
    settings = quantisation(config)
    if isinstance(settings, Mapping):
        return str(settings.get("quant_method", "unnamed"))
    return "unnamed" if settings or any(name.endswith(QUANTISED_NAMES) for name in names) else None


def _cautious(layout: Layout) -> Layout:
    """Return the layout of an architecture that isn't listed, and looks like Llama on disk."""
    what = f"model type '{layout.model_type}'"
    unclear = f"the arithmetic of {what} is unknown"
    notice = f"{what} is unknown; gptailor treats its layers like Llama's"
    return replace(layout, known=False, no_scale=unclear, no_bridge=unclear, notice=notice)


# ---------------------------------------------------------------------------------- the KV cache

Shapes = Mapping[str, tuple[int, ...]]
"""Shapes of a layer's tensors, by their names within the layer."""

_TO_LATENT = ("kv_a_proj_with_mqa", "kv_a_proj")
"""Projections to the latent vector of keys and values, and to the rotated key."""
_TO_INDEX = "indexer.wk"
"""The projection to the key by which an indexer finds tokens."""
_TO_BOTH = "kv_proj"
"""JetMoE's projection to keys and values."""


def cached_entries(
    layout: Layout, config: Config, entry: LayerEntry, shapes: Shapes
) -> int | Refusal:
    """Return how many numbers of each token a layer keeps: keys and values, or their source.

    A layer of latent attention keeps the latent vector and the rotated key. A layer with an indexer
    keeps its key too. A window doesn't lower the number. The count excludes values of one size for
    any text: the states of linear attention, convolutions and state spaces.
    """
    kind = entry.get("layer_types")
    if isinstance(kind, str) and ("attention" not in kind or kind == LINEAR):
        return 0
    rows = {  # how many numbers each projection of the attention gives
        name.removesuffix(".weight"): _sides(layout, shape)[0]
        for name, shape in shapes.items()
        if name.endswith(".weight") and len(shape) == 2 and layout.family.part(name) == "attn"
    }
    by_rows = None if layout.quantised is not None else _entries_by_rows(layout, rows, shapes)
    return _entries_by_config(layout, config) if by_rows is None else by_rows


def _entries_by_rows(layout: Layout, rows: Mapping[str, int], shapes: Shapes) -> int | None:
    """Return the number by the projections' widths; None if names don't tell which they are."""
    for word in (*_TO_LATENT, _TO_BOTH):
        if (widths := [n for name, n in rows.items() if name.rpartition(".")[2] == word]) != []:
            return widths[0] + sum(n for name, n in rows.items() if name.endswith(_TO_INDEX))
    roles = {layout.family.role(f"{name}.weight"): name for name in rows}
    if "attn.k" in roles:
        keys = rows[roles["attn.k"]]
        return keys + rows.get(roles.get("attn.v", ""), keys)
    if "attn.qkv" in roles and "attn.o" in roles:
        return rows[roles["attn.qkv"]] - _sides(layout, shapes[f"{roles['attn.o']}.weight"])[1]
    complete = layout.known and bool(layout.family.attn_out)
    return 0 if complete and not roles.keys() & {"attn.q", "attn.v", "attn.qkv"} else None


def _sides(layout: Layout, shape: tuple[int, ...]) -> tuple[int, int]:
    """Return how many numbers a projection gives, and how many it takes."""
    first, second = shape[-2:]
    return (second, first) if layout.transposed else (first, second)


def _entries_by_config(layout: Layout, config: Config) -> int | Refusal:
    """Return the number by the numbers of heads, for tensors that don't tell."""
    text = vision.text_of(config)
    latent, rotated = _whole(text, "kv_lora_rank"), _whole(text, "qk_rope_head_dim")
    if latent:
        return latent + rotated
    heads = _whole(text, "num_attention_heads")
    groups = _whole(text, "num_key_value_heads") or heads
    width = _whole(text, "head_dim") or _whole(text, "hidden_size") // max(heads, 1)
    if not groups * width:
        what = f"a layer of model type '{layout.model_type}'"
        return Refusal(f"the KV cache of {what} is unknown")
    return 2 * groups * width


def _whole(config: Config, key: str) -> int:
    """Return an integer of the configuration, or 0."""
    value = config.get(key)
    return value if isinstance(value, int) else 0
