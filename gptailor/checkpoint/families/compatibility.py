"""What the configurations of two models must agree on for their layers to be exchangeable."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, final

from gptailor.checkpoint.families.layer_config import Config, window

_Weight = Literal["fault", "warning"]

_EPSILONS = frozenset({
    "rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "norm_eps", "norm_epsilon",
})  # fmt: skip
"""Norms' epsilons: 1e-5 beside 1e-6 is a warning, as checkpoints of one family have both."""

_MINOR = frozenset({
    "sliding_window", "embedding_multiplier", "logits_scaling", "logit_scale",
    "final_logit_softcapping", "scale_emb", "scale_embedding", "dim_model_base",
})  # fmt: skip
"""Keys that make a difference which is only a warning: the base's value holds for all layers."""

_ALIASES: Mapping[str, tuple[str, ...]] = {
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

UNSPOKEN = frozenset({
    "_name_or_path", "architectures", "auto_map", "bos_token_id", "eos_token_id", "pad_token_id",
    "torch_dtype", "dtype", "transformers_version", "use_cache", "vocab_size", "model_type",
    "max_position_embeddings", "initializer_range", "attention_dropout", "hidden_dropout",
    "tie_word_embeddings", "num_hidden_layers", "pretraining_tp", "rope_theta", "rope_scaling",
    "rope_parameters", "partial_rotary_factor",
})  # fmt: skip
"""Keys that say nothing of a layer's arithmetic, or that are compared in another form."""


@final
@dataclass(frozen=True)
class ConfigKey:
    """Something that must be equal: how it is read, and how bad a difference is."""

    name: str
    read: Callable[[Config], Any]
    severity: _Weight = "fault"


@final
@dataclass(frozen=True)
class Disagreement:
    """A key, its value in the base, its value in the other model, and how bad that is."""

    key: str
    base_value: object
    other_value: object
    severity: _Weight


def keys(*read: ConfigKey, **defaults: Any) -> tuple[ConfigKey, ...]:
    """Keys that are read in their own way, and keys with the values that their absence means."""
    return *read, *(
        ConfigKey(name, _value(name, default), "warning" if name in _MINOR else "fault")
        for name, default in defaults.items()
    )


def _value(name: str, default: Any) -> Callable[[Config], Any]:
    """A reader of a key; its absence, and a None that stands for another key, are resolved."""

    def read(config: Config) -> Any:
        names = (name, *_ALIASES.get(name, ()))
        value = next((config[each] for each in names if each in config), default)
        heads, hidden = config.get("num_attention_heads"), config.get("hidden_size")
        if value is None and name in {"num_key_value_heads", "num_kv_heads"}:
            return heads
        if value is None and name == "head_dim" and isinstance(heads, int) and heads:
            return hidden // heads if isinstance(hidden, int) else None
        return value

    return read


def gated_window(default: int | None) -> ConfigKey:
    """`sliding_window`, where it counts only if `use_sliding_window` is set."""
    return ConfigKey("sliding_window", partial(window, gated=True, default=default), "warning")


def rope(
    theta: float = 10_000.0,
    partial: float = 1.0,
    *,
    theta_key: str = "rope_theta",
    partial_key: str = "partial_rotary_factor",
    renamed: Mapping[str, str] | None = None,
    default: Mapping[str, Any] | None = None,
) -> ConfigKey:
    """The rotary embeddings in one form, from `rope_parameters` and from the older keys.

    `default` stands for both, where neither is there.
    """

    def read(config: Config) -> dict[str, Any]:
        given = config.get("rope_scaling") or config.get("rope_parameters") or default
        form = _form(_object(given), config, renamed or {})
        form.setdefault("rope_theta", config.get(theta_key, theta))
        form.setdefault("partial_rotary_factor", config.get(partial_key, partial))
        return form

    return ConfigKey("rope_parameters", read)


def rope_of_each(defaults: Mapping[str, Mapping[str, Any]]) -> ConfigKey:
    """A setting for each kind of layer, and what their absence means."""

    def read(config: Config) -> dict[str, Any]:
        given = _object(config.get("rope_parameters")) or defaults
        return {kind: _form(_object(given.get(kind)), config) for kind in defaults}

    return ConfigKey("rope_parameters", read)


def rope_by_type(
    local: float,
    wide: float,
    *,
    local_key: str = "rope_local_base_freq",
    wide_key: str = "rope_theta",
) -> ConfigKey:
    """Gemma 3 and its like: one setting for full and one for sliding layers."""

    def read(config: Config) -> dict[str, Any]:
        given = _object(config.get("rope_parameters"))
        scaling = _object(config.get("rope_scaling"))
        full = _form({**_object(given.get("full_attention")), **scaling}, config)
        full.setdefault("rope_theta", config.get(wide_key, wide))
        near = _form(_object(given.get("sliding_attention")), config)
        near.setdefault("rope_theta", config.get(local_key, local))
        return {"full_attention": full, "sliding_attention": near}

    return ConfigKey("rope_parameters", read)


def _object(given: object) -> Mapping[str, Any]:
    """A setting as an object: anything else that stands there is its type, equal to itself only."""
    if isinstance(given, Mapping):
        return given
    return {"rope_type": given} if given else {}


_ASIDE = ("type", "max_position_embeddings")
"""Keys of a rotary setting that say what another one says."""


def _form(
    given: Mapping[str, Any], config: Config, renamed: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """With a type, without what is None, and with the lengths that the type computes with."""
    form = {key: value for key, value in given.items() if value is not None and key not in _ASIDE}
    kind = form.get("rope_type") or given.get("type") or "default"
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


def disagreements(
    ours: Iterable[ConfigKey],
    theirs: Iterable[ConfigKey],
    base: Config,
    other: Config,
    *,
    cautious: bool = False,
) -> list[Disagreement]:
    """What two configurations disagree on, of the keys that the families of both have.

    With caution, also on keys of unknown meaning.
    """
    readers = {key.name: key for key in theirs}
    named = [key for key in ours if key.name in readers]
    if cautious:
        more = {*base, *other} - readers.keys() - UNSPOKEN
        unknown = [ConfigKey(name, _value(name, None), "warning") for name in sorted(more)]
        named, readers = named + unknown, readers | {key.name: key for key in unknown}
    read = [(key, key.read(base), readers[key.name].read(other)) for key in named]
    return [Disagreement(key.name, a, b, _severity(key, a, b)) for key, a, b in read if a != b]


def _severity(key: ConfigKey, a: Any, b: Any) -> _Weight:
    """How bad a difference is; epsilons that are near each other hardly matter."""
    if key.name not in _EPSILONS:
        return key.severity
    numbers = [value for value in (a, b) if isinstance(value, int | float) and value > 0]
    near = len(numbers) == 2 and max(numbers) <= 10.5 * min(numbers)
    return "warning" if near else "fault"
