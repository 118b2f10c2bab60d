"""Configurations: their types, single values in one form, rotary embeddings; refusals."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

from pydantic import Field

from gptailor.checkpoint.files import shown
from gptailor.plan.plan import Closed, Several

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
        raise RuleError(f"'{key}' is {shown(value)}, expected an integer of at least {least}")
    return value


# ----------------------------------------------------------------------------- rotary embeddings


@final
class Rotary(Closed):
    """The forms in which a family's configurations have the rotary embeddings.

    `older` are the keys of older configurations for `rope_theta` and `partial_rotary_factor`, or
    for the base of each kind of layers. `renamed` are types by their older names. `without` are
    parts that don't depend on a text. `base` is the base of settings without a base, if it isn't
    the default's.
    """

    older: dict[str, str] = Field(default_factory=dict)
    renamed: dict[str, str] = Field(default_factory=dict)
    without: Several[str] = ()
    base: float | None = None

    def read(self, config: Config, default: Any) -> dict[str, Any]:
        """Return the settings in one form, from `rope_parameters` and from the older keys."""
        usual = _object(default)
        if any(isinstance(value, Mapping) for value in usual.values()):
            return self._by_kind(config, usual)
        own = usual if usual.get("rope_type", "default") != "default" else {}
        stated = config.get("rope_scaling") or config.get("rope_parameters") or own
        form = _form(_object(stated), config, self.renamed)
        usual = {"rope_theta": 10_000.0, "partial_rotary_factor": 1.0, **usual}
        if self.base is not None:
            usual["rope_theta"] = self.base
        for name in ("rope_theta", "partial_rotary_factor"):
            form.setdefault(name, config.get(self.older.get(name, name), usual[name]))
        return {key: value for key, value in form.items() if key not in self.without}

    def _by_kind(self, config: Config, usual: Mapping[str, Any]) -> dict[str, Any]:
        """Return the settings of each kind of layers.

        Older configurations may have a base for each kind, and a scaling of full layers.
        """
        stated = _object(config.get("rope_parameters")) or ({} if self.older else usual)
        read: dict[str, Any] = {}
        for kind, own in usual.items():
            wide = self.older and kind == "full_attention"
            scaling = _object(config.get("rope_scaling")) if wide else {}
            read[kind] = _form({**_object(stated.get(kind)), **scaling}, config)
            if kind in self.older:
                base = config.get(self.older[kind], _object(own).get("rope_theta"))
                read[kind].setdefault("rope_theta", base)
        return read


def _object(value: object) -> Mapping[str, Any]:
    """Return a setting as an object: anything else is its type, and equals itself only."""
    if isinstance(value, Mapping):
        return value
    return {"rope_type": value} if value else {}


_ASIDE = ("type", "max_position_embeddings")
"""Keys of a rotary setting that repeat another key."""


def _form(
    setting: Mapping[str, Any], config: Config, renamed: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Return a setting with a type, without Nones, with the lengths that the type needs."""
    form = {key: value for key, value in setting.items() if value is not None and key not in _ASIDE}
    kind = form.get("rope_type") or setting.get("type") or "default"
    if not isinstance(kind, str):
        return form
    form["rope_type"] = kind = (renamed or {}).get(kind, kind)
    length = config.get("max_position_embeddings")
    if kind in {"llama3", "yarn", "longrope"}:  # they know the length before they stretched it
        form.setdefault("original_max_position_embeddings", length)
        if "original_max_position_embeddings" in config:
            form["original_max_position_embeddings"] = config["original_max_position_embeddings"]
    if kind == "dynamic" or (kind in {"yarn", "longrope"} and "factor" not in form):
        form["max_position_embeddings"] = length
    return form
