"""Types of a configuration and of one layer's part of it; refusals."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

from gptailor.checkpoint.files import shown

Config = Mapping[str, Any]
Values = Sequence[Any]
"""A value for each layer."""

LayerEntry = Mapping[str, Any]
"""One layer's configuration: a value for the name of each rule."""

FULL, SLIDING, LINEAR = "full_attention", "sliding_attention", "linear_attention"
DENSE, SPARSE = "dense", "sparse"

OLDER_NAMES = {
    "mamba": LINEAR,
    "attention": FULL,
    "deepseek_sparse_attention": "indexed_attention",
}
"""Kinds of layers by the names that older configurations have for them."""

UNSPOKEN = frozenset({
    "_name_or_path", "architectures", "auto_map", "bos_token_id", "eos_token_id", "pad_token_id",
    "torch_dtype", "dtype", "transformers_version", "use_cache", "vocab_size", "model_type",
    "max_position_embeddings", "initializer_range", "attention_dropout", "hidden_dropout",
    "tie_word_embeddings", "num_hidden_layers", "pretraining_tp", "rope_theta", "rope_scaling",
    "rope_parameters", "partial_rotary_factor",
})  # fmt: skip
"""Keys that don't change a layer's arithmetic, or that are compared in another form."""

QUANTISATION_KEYS = ("quantization_config", "compression_config")
"""Keys that state how weights are quantised."""


def quantisation(config: Config) -> Any:
    """Return the quantisation's configuration, or None."""
    return next((config[key] for key in QUANTISATION_KEYS if config.get(key)), None)


@final
@dataclass(frozen=True, slots=True)
class Refusal:
    """A reason why a model or a configuration is impossible, and what to do."""

    reason: str
    help: str = ""


@final
class RuleError(ValueError):
    """A reason why a configuration has no value for a rule, or can't have one."""


def window(config: Config, *, gated: bool, default: int | None) -> object:
    """Return the width of the window, of whatever type; None: no layer has one.

    In a `gated` family the window counts only where `use_sliding_window` is set.
    """
    if gated and not config.get("use_sliding_window", False):
        return None
    return config.get("sliding_window", default)


# ------------------------------------------------------------------------------------ single values

ALIASES: Mapping[str, tuple[str, ...]] = {
    "hidden_size": ("n_embd", "n_embed"),
    "n_embd": ("hidden_size",),
    "n_head": ("num_attention_heads",),
    "num_attention_heads": ("n_head",),
    "rms_norm_eps": ("layer_norm_epsilon",),
    "hidden_act": ("activation_function",),
    "attention_bias": ("qkv_bias",),
    "mlp_bias": ("bias",),
    "num_heads": ("num_attention_heads",),
    "num_experts": ("num_local_experts",),
    "num_local_experts": ("num_experts",),
    "n_routed_experts": ("num_local_experts", "num_experts"),
    "n_shared_experts": ("num_shared_experts",),
}
"""Other names of a key, which transformers reads too."""


def stated_value(config: Config, name: str, default: Any) -> Any:
    """Return a key's value; resolve its absence, and a None that stands for another key."""
    names = (name, *ALIASES.get(name, ()))
    value = next((config[each] for each in names if each in config), default)
    heads, hidden = config.get("num_attention_heads"), config.get("hidden_size")
    if value is None and name in {"num_key_value_heads", "num_kv_heads"}:
        return heads
    if value is None and name == "head_dim" and isinstance(heads, int) and heads:
        return hidden // heads if isinstance(hidden, int) else None
    return value


def current_name(kind: Any) -> Any:
    """Return a kind of layer by transformers 5's name, whatever an older configuration has."""
    return OLDER_NAMES.get(kind, kind) if isinstance(kind, str) else kind


def complete(key: str, values: Values) -> list[Any]:
    """Return the values, if each layer has one. Raises RuleError."""
    if None in values:
        raise RuleError(f"'{key}' has no entry for the layer that would be L{values.index(None)}")
    return list(values)


def int_of(config: Config, key: str, default: int | None, least: int = 0) -> int:
    """Return a key's value, an integer from `least` up. Raises RuleError."""
    value = config.get(key, default)
    if type(value) is not int or value < least:
        raise RuleError(f"'{key}' is {shown(value)}, and should be an integer from {least} up")
    return value
