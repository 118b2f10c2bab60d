"""Gemma 1 to 4: from Gemma 2 on, a norm before and one after each branch."""

from collections.abc import Callable, Mapping
from typing import Any

from gptailor.checkpoint.families.compatibility import (
    ConfigKey,
    keys,
    rope,
    rope_by_type,
    rope_of_each,
)
from gptailor.checkpoint.families.family import PATTERN_KEYS, POST_NORM, Family, Fold
from gptailor.checkpoint.families.layer_config import (
    FULL,
    Config,
    LayerRule,
    RuleError,
    Values,
    alternating,
    complete,
    derived,
    sliding,
)
from gptailor.checkpoint.files import shown


def _activation(config: Config) -> Any:
    """Gemma's first configurations say `gelu` and mean its approximation by tanh."""
    act = config.get("hidden_act", "gelu_pytorch_tanh")
    return "gelu_pytorch_tanh" if act == "gelu" else act


_FOUR_NORMS: dict[str, Any] = {
    "attn": ("input_layernorm.", "self_attn.", "post_attention_layernorm."),
    "mlp": ("pre_feedforward_layernorm.", "mlp.", "post_feedforward_layernorm."),
    "folds": (
        Fold("post_attention_layernorm.weight", "divide_offset"),
        Fold("post_feedforward_layernorm.weight", "divide_offset"),
    ),
    "no_bridge": POST_NORM,
    "tied": True,
}

_SCALED = "a layer's own number multiplies the sum of its branches"
_ROTATIONS: dict[str, dict[str, Any]] = {
    "full_attention": {
        "rope_type": "proportional", "partial_rotary_factor": 0.25, "rope_theta": 1_000_000.0,
    },
    "sliding_attention": {"rope_theta": 10_000.0},
}  # fmt: skip


def _last_is_full(types: LayerRule) -> LayerRule:
    """Gemma 4: transformers makes the last layer full, whatever is said of it."""

    def read(config: Config, count: int) -> list[Any]:
        return [*types.read(config, count)[:-1], FULL]

    def write(config: Config, values: Values) -> dict[str, Any]:
        if values[-1] != FULL:
            raise RuleError(f"the last layer attends fully, and L{len(values) - 1} would slide")
        return types.write(config, values)

    return LayerRule(types.name, types.part, read, write)


def _of_full_layers(config: Config, count: int, types: LayerRule) -> list[Any]:
    """What full layers have of their own where no list says it."""
    own = {"head_dim": config.get("global_head_dim", 512)}
    heads = config.get("num_global_key_value_heads")
    if heads is not None and config.get("attention_k_eq_v", False):
        own["num_key_value_heads"] = heads
    return [own if kind == FULL else {} for kind in types.read(config, count)]


def _own_shapes(types: LayerRule) -> LayerRule:
    """Gemma 4: what single layers have in place of what all have, by their numbers."""

    def read(config: Config, count: int) -> list[Any]:
        given = config.get("per_layer_config")
        if given is None:
            return _of_full_layers(config, count, types)
        numbered = isinstance(given, Mapping) and all(str(key).isdecimal() for key in given)
        if not numbered or not all(int(key) < count for key in given):
            raise RuleError(
                f"'per_layer_config' is {shown(given)}, not an object of layers' numbers"
            )
        found = {int(key): value for key, value in given.items()}
        return [found.get(i, {}) for i in range(count)]

    def write(config: Config, values: Values) -> dict[str, Any]:
        found = complete("per_layer_config", values)
        given = config.get("per_layer_config")
        if given is None and _of_full_layers(config, len(found), types) == found:
            return dict(config)
        own = {str(i): value for i, value in enumerate(found) if value}
        return {**config, "per_layer_config": own}

    return LayerRule("per_layer_config", "attn", read, write)


def _gemma_4(width: int) -> tuple[LayerRule, ...]:
    types = _last_is_full(derived("layer_types", "attn", alternating(6)))
    return *sliding(types, default=width), _own_shapes(types)


def _shared(default_inputs: int) -> Callable[[Config], str | None]:
    """What layers of the smaller Gemma 4 share, if they do."""

    def unfit(config: Config) -> str | None:
        if config.get("num_kv_shared_layers", 0):
            return "'num_kv_shared_layers': its last layers use keys and values of layers before"
        if config.get("hidden_size_per_layer_input", default_inputs):
            return "'hidden_size_per_layer_input': one tensor has the inputs of all its layers"
        return None

    return unfit


_GEMMA_4: dict[str, Any] = {
    "hidden_size": 2304, "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256,
    "hidden_activation": "gelu_pytorch_tanh", "rms_norm_eps": 1e-6, "attention_bias": False,
    "final_logit_softcapping": None, "attention_k_eq_v": False,
}  # fmt: skip
_GEMMA_4_LAYER: dict[str, Any] = {
    "attn": ("input_layernorm.", "self_attn.", "post_attention_layernorm."),
    "mlp": (
        "pre_feedforward_layernorm", "mlp.", "post_feedforward_layernorm", "router.", "experts.",
        "layer_scalar",
    ),
    "no_parts": _SCALED, "no_scale": lambda config: _SCALED, "no_bridge": POST_NORM, "tied": True,
}  # fmt: skip

GEMMA = (
    Family(
        ("gemma",),
        keys(
            rope(), ConfigKey("hidden_act", _activation), hidden_size=3072,
            num_attention_heads=16, num_key_value_heads=16, head_dim=256, rms_norm_eps=1e-6,
            attention_bias=False, use_bidirectional_attention=None,
        ),
        tied=True,
    ),
    Family(
        ("gemma2",),
        keys(
            rope(), hidden_size=2304, num_attention_heads=8, num_key_value_heads=4, head_dim=256,
            hidden_activation="gelu_pytorch_tanh", rms_norm_eps=1e-6, attention_bias=False,
            query_pre_attn_scalar=256, attn_logit_softcapping=50.0, final_logit_softcapping=30.0,
            use_bidirectional_attention=None,
        ),
        sliding(derived("layer_types", "attn", alternating(2))),
        **_FOUR_NORMS,
    ),
    # Without the norms after the branches.
    Family(
        ("vaultgemma",),
        keys(
            rope(), hidden_size=2304, num_attention_heads=8, num_key_value_heads=4, head_dim=256,
            hidden_activation="gelu_pytorch_tanh", rms_norm_eps=1e-6, attention_bias=False,
            query_pre_attn_scalar=256, attn_logit_softcapping=50.0, final_logit_softcapping=30.0,
        ),
        sliding(derived("layer_types", "attn", alternating(2))),
        mlp=("pre_feedforward_layernorm.", "mlp."), tied=True,
    ),
    Family(
        ("gemma3_text",),
        keys(
            rope_by_type(local=10_000.0, wide=1_000_000.0), hidden_size=2304,
            num_attention_heads=8, num_key_value_heads=4, head_dim=256,
            hidden_activation="gelu_pytorch_tanh", rms_norm_eps=1e-6, attention_bias=False,
            query_pre_attn_scalar=256, attn_logit_softcapping=None, final_logit_softcapping=None,
            use_bidirectional_attention=False,
        ),
        sliding(
            derived("layer_types", "attn", alternating(6, PATTERN_KEYS[0]), replaces=PATTERN_KEYS)
        ),
        **_FOUR_NORMS,
    ),
    Family(
        ("gemma4_text",),
        keys(
            rope_of_each(_ROTATIONS), use_bidirectional_attention=None, enable_moe_block=False,
            num_experts=None, top_k_experts=None, **_GEMMA_4,
        ),
        _gemma_4(512), unfit=_shared(256),
        **_GEMMA_4_LAYER,
    ),
    Family(
        ("gemma4_unified_text",),
        keys(rope_of_each(_ROTATIONS), use_bidirectional_attention="vision", **_GEMMA_4),
        _gemma_4(1024), unfit=_shared(0),
        **_GEMMA_4_LAYER,
    ),
)  # fmt: skip
