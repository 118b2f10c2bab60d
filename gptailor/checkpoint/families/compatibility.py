"""Keys on which two models' configurations must agree for their layers to be exchangeable.

The value that a key's absence means is transformers' own, in `defaults.json`, which
`python tests/checkpoint/families/make_defaults.py` writes.
"""

import json
import pkgutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache, partial
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
"""Keys whose difference is only a warning: the base's value holds for all layers."""

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

_WITHOUT_DEFAULT: Config = {"attention_bias": False}
"""Values for keys that transformers doesn't read of a type, other than None."""

LLAMA_KEYS = (
    "hidden_size num_attention_heads num_key_value_heads head_dim hidden_act attention_bias"
)
"""Keys of all families whose attention is built like Llama's."""

LATENT_KEYS = (
    "hidden_size num_attention_heads hidden_act rms_norm_eps attention_bias q_lora_rank "
    "kv_lora_rank qk_nope_head_dim qk_rope_head_dim v_head_dim"
)
"""Keys of families with latent attention."""

MULTIPLIERS = "residual_multiplier embedding_multiplier logits_scaling"
"""Keys of Granite and its like, beside `attention_multiplier`."""

UNSPOKEN = frozenset({
    "_name_or_path", "architectures", "auto_map", "bos_token_id", "eos_token_id", "pad_token_id",
    "torch_dtype", "dtype", "transformers_version", "use_cache", "vocab_size", "model_type",
    "max_position_embeddings", "initializer_range", "attention_dropout", "hidden_dropout",
    "tie_word_embeddings", "num_hidden_layers", "pretraining_tp", "rope_theta", "rope_scaling",
    "rope_parameters", "partial_rotary_factor",
})  # fmt: skip
"""Keys that don't change a layer's arithmetic, or that are compared in another form."""


@final
@dataclass(frozen=True)
class ConfigKey:
    """A value that must be equal: how it is read, and how bad a difference is."""

    name: str
    read: Callable[[Config], Any]
    severity: _Weight = "fault"


Agreed = str | ConfigKey | Callable[[Config], ConfigKey]
"""Names of keys, apart by spaces; a key that is read in its own way; one that needs defaults."""


@final
@dataclass(frozen=True)
class Disagreement:
    """A key, its value in the base, its value in the other model, and how bad that is."""

    key: str
    base_value: object
    other_value: object
    severity: _Weight


@cache
def _all_defaults() -> Mapping[str, Config]:
    table = json.loads(pkgutil.get_data(__package__, "defaults.json") or b"{}")
    types: Mapping[str, Config] = table["types"]
    return types


def config_keys(agreed: Iterable[Agreed], model_type: str) -> Iterator[ConfigKey]:
    """Yield the keys of a model type, with the values that their absence means."""
    defaults = _all_defaults().get(model_type, {})
    for each in agreed:
        if isinstance(each, ConfigKey):
            yield each
        elif isinstance(each, str):
            for name in each.split():
                absent = defaults.get(name, _WITHOUT_DEFAULT.get(name))
                severity: _Weight = "warning" if name in _MINOR else "fault"
                yield ConfigKey(name, _value(name, absent), severity)
        else:
            yield each(defaults)


def _value(name: str, default: Any) -> Callable[[Config], Any]:
    """Return a reader that resolves a key's absence, and a None that stands for another key."""

    def read(config: Config) -> Any:
        names = (name, *ALIASES.get(name, ()))
        value = next((config[each] for each in names if each in config), default)
        heads, hidden = config.get("num_attention_heads"), config.get("hidden_size")
        if value is None and name in {"num_key_value_heads", "num_kv_heads"}:
            return heads
        if value is None and name == "head_dim" and isinstance(heads, int) and heads:
            return hidden // heads if isinstance(hidden, int) else None
        return value

    return read


def gated_window(default: int | None) -> ConfigKey:
    """Return the key `sliding_window` where it counts only if `use_sliding_window` is set."""
    return ConfigKey("sliding_window", partial(window, gated=True, default=default), "warning")


def state_rank(key: str) -> ConfigKey:
    """Return the rank of a state space's time steps: a 16th of the width, if it is `auto`."""

    def read(config: Config) -> Any:
        rank, hidden = config.get(key, "auto"), config.get("hidden_size")
        return -(-hidden // 16) if rank == "auto" and isinstance(hidden, int) else rank

    return ConfigKey(key, read)


def _time_steps(config: Config) -> Any:
    """Return the limits of time steps: JSON has no infinity; transformers writes an object."""
    limits = config.get("time_step_limit", (0.0, float("inf")))
    return [0.0, "Infinity"] if limits is None else [_number(end) for end in limits]


def _number(end: Any) -> Any:
    if isinstance(end, dict):
        return end.get("__float__")
    return "Infinity" if end == float("inf") else end


TIME_STEPS = ConfigKey("time_step_limit", _time_steps)
"""The limits of a state space's time steps."""

ROTARY = ("rope_theta", "partial_rotary_factor", "rope_parameters")
"""Defaults of the rotary embeddings. `rope_parameters` has one unless it has only a base."""


def rope(
    *,
    theta_key: str = "rope_theta",
    partial_key: str = "partial_rotary_factor",
    renamed: Mapping[str, str] | None = None,
) -> Callable[[Config], ConfigKey]:
    """Return the rotary embeddings in one form, from `rope_parameters` and from the older keys."""

    def key(defaults: Config) -> ConfigKey:
        def read(config: Config) -> dict[str, Any]:
            scaling = config.get("rope_scaling") or config.get("rope_parameters")
            form = _form(_object(scaling or defaults.get("rope_parameters")), config, renamed or {})
            theta = defaults.get("rope_theta", 10_000.0)
            form.setdefault("rope_theta", config.get(theta_key, theta))
            turning = defaults.get("partial_rotary_factor", 1.0)
            form.setdefault("partial_rotary_factor", config.get(partial_key, turning))
            return form

        return ConfigKey("rope_parameters", read)

    return key


def rope_by_kind(defaults: Config) -> ConfigKey:
    """Return the rotary embeddings of families with a setting for each kind of layer."""
    settings = defaults["rope_parameters"]

    def read(config: Config) -> dict[str, Any]:
        values = _object(config.get("rope_parameters")) or settings
        return {kind: _form(_object(values.get(kind)), config) for kind in settings}

    return ConfigKey("rope_parameters", read)


def rope_near_and_wide(
    *, near_key: str = "rope_local_base_freq", wide_key: str = "rope_theta"
) -> Callable[[Config], ConfigKey]:
    """Return the rotary embeddings of Gemma 3 and its like: for sliding and for full layers.

    Older configurations have a base for each, and a scaling of full layers.
    """

    def key(defaults: Config) -> ConfigKey:
        bases = {kind: form["rope_theta"] for kind, form in defaults["rope_parameters"].items()}

        def read(config: Config) -> dict[str, Any]:
            by_kind = _object(config.get("rope_parameters"))
            scaling = _object(config.get("rope_scaling"))
            full = _form({**_object(by_kind.get("full_attention")), **scaling}, config)
            full.setdefault("rope_theta", config.get(wide_key, bases["full_attention"]))
            near = _form(_object(by_kind.get("sliding_attention")), config)
            near.setdefault("rope_theta", config.get(near_key, bases["sliding_attention"]))
            return {"full_attention": full, "sliding_attention": near}

        return ConfigKey("rope_parameters", read)

    return key


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


def disagreements(
    base_keys: Iterable[ConfigKey],
    other_keys: Iterable[ConfigKey],
    base: Config,
    other: Config,
    *,
    cautious: bool = False,
) -> list[Disagreement]:
    """Return the keys of both families that differ in two configurations.

    If `cautious`, keys of unknown meaning are compared too.
    """
    readers = {key.name: key for key in other_keys}
    shared = [key for key in base_keys if key.name in readers]
    if cautious:
        more = {*base, *other} - readers.keys() - UNSPOKEN
        unknown = [ConfigKey(name, _value(name, None), "warning") for name in sorted(more)]
        shared, readers = shared + unknown, readers | {key.name: key for key in unknown}
    read = [(key, key.read(base), readers[key.name].read(other)) for key in shared]
    return [Disagreement(key.name, a, b, _severity(key, a, b)) for key, a, b in read if a != b]


def _severity(key: ConfigKey, a: Any, b: Any) -> _Weight:
    """Return how bad a difference is; epsilons that are near each other hardly matter."""
    if key.name not in _EPSILONS:
        return key.severity
    numbers = [value for value in (a, b) if isinstance(value, int | float) and value > 0]
    near = len(numbers) == 2 and max(numbers) <= 10.5 * min(numbers)
    return "warning" if near else "fault"
