"""Dense decoders in which some layers see only a window of the text."""

from collections.abc import Callable, Mapping
from typing import Any

from gptailor.checkpoint.families.compatibility import (
    LLAMA_KEYS,
    MULTIPLIERS,
    ConfigKey,
    rope,
    rope_by_kind,
    rope_near_and_wide,
)
from gptailor.checkpoint.families.family import (
    LAYER_THETAS,
    NORMS_AFTER,
    PATTERN_KEYS,
    POST_NORM,
    Family,
    Fold,
)
from gptailor.checkpoint.families.layer_config import Config, RuleError, window
from gptailor.checkpoint.families.layer_rules import (
    FULL,
    SLIDING,
    AtEnd,
    Computed,
    Derivation,
    EveryNth,
    FirstLayers,
    IfWindow,
    LayerRule,
    Listed,
    Repeated,
    Values,
    complete,
    first_place,
    layer_types,
    sliding,
)
from gptailor.checkpoint.files import shown

# ------------------------------------------------------------------------------------ Qwen, SmolLM


def _keep_max_window_layers(config: Config, values: Values) -> dict[str, Any]:
    """Return the list as `max_window_layers` too, for readers that don't know `layer_types`."""
    full = first_place(SLIDING, values)
    if SLIDING in values and FULL not in values[full:]:
        return {**config, "max_window_layers": full}
    return dict(config)


def later_slide(first: int) -> tuple[LayerRule, ...]:
    """Return Qwen's rules: of its layers only later ones slide; `first` don't by default."""
    kinds = IfWindow(FirstLayers(first, "max_window_layers", FULL, SLIDING), gated=True)
    return sliding(layer_types(kinds, keep=_keep_max_window_layers), gated=True)


_ROTATION = Listed("no_rope_layers", "attn", EveryNth(4, "no_rope_layer_interval", 0, 1))
"""SmolLM 3: 1 for a layer with rotary embeddings, despite the key's name."""


def _without_rotation(config: Config, count: int) -> list[Any]:
    """Return SmolLM 3's kinds: layers without rotary embeddings slide, if any layer does."""
    slides = window(config, gated=True, default=None) is not None
    rotates = _ROTATION.read(config, count)
    return [SLIDING if slides and not each else FULL for each in rotates]


# ------------------------------------------------------------------------------------------- Gemma

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
_GEMMA_KEYS = (
    "hidden_size num_attention_heads num_key_value_heads head_dim hidden_activation rms_norm_eps "
    "attention_bias"
)
_CAPPED = "query_pre_attn_scalar attn_logit_softcapping final_logit_softcapping"
_SCALED = "a layer's own number multiplies the sum of its branches"


def _last_is_full(types: Listed) -> Computed:
    """Return Gemma 4's kinds: transformers makes the last layer full, whatever is configured."""

    def read(config: Config, count: int) -> list[Any]:
        return [*types.read(config, count)[:-1], FULL]

    def write(config: Config, values: Values) -> dict[str, Any]:
        if values[-1] != FULL:
            raise RuleError(f"the last layer attends fully, and L{len(values) - 1} would slide")
        return types.write(config, values)

    return Computed(types.name, types.part, read, write)


def _of_full_layers(config: Config, count: int, types: LayerRule) -> list[Any]:
    """Return the settings that full layers have of their own where no object states them."""
    own = {"head_dim": config.get("global_head_dim", 512)}
    heads = config.get("num_global_key_value_heads")
    if heads is not None and config.get("attention_k_eq_v", False):
        own["num_key_value_heads"] = heads
    return [own if kind == FULL else {} for kind in types.read(config, count)]


def _own_shapes(types: LayerRule) -> Computed:
    """Return Gemma 4's settings of single layers, by their numbers, in place of those of all."""

    def read(config: Config, count: int) -> list[Any]:
        by_number = config.get("per_layer_config")
        if by_number is None:
            return _of_full_layers(config, count, types)
        numbered = isinstance(by_number, Mapping) and all(str(key).isdecimal() for key in by_number)
        if not numbered or not all(int(key) < count for key in by_number):
            raise RuleError(
                f"'per_layer_config' is {shown(by_number)}, not an object of layers' numbers"
            )
        settings = {int(key): value for key, value in by_number.items()}
        return [settings.get(i, {}) for i in range(count)]

    def write(config: Config, values: Values) -> dict[str, Any]:
        settings = complete("per_layer_config", values)
        by_number = config.get("per_layer_config")
        if by_number is None and _of_full_layers(config, len(settings), types) == settings:
            return dict(config)
        own = {str(i): value for i, value in enumerate(settings) if value}
        return {**config, "per_layer_config": own}

    return Computed("per_layer_config", "attn", read, write)


def _gemma_4(width: int) -> tuple[LayerRule, ...]:
    types = _last_is_full(layer_types(EveryNth(6)))
    return *sliding(types, width), _own_shapes(types)


def _shared(default_inputs: int) -> Callable[[Config], str | None]:
    """Return the test for tensors that layers of the smaller Gemma 4 share."""

    def unfit(config: Config) -> str | None:
        if config.get("num_kv_shared_layers", 0):
            return "'num_kv_shared_layers': its last layers use keys and values of layers before"
        if config.get("hidden_size_per_layer_input", default_inputs):
            return "'hidden_size_per_layer_input': one tensor has the inputs of all its layers"
        return None

    return unfit


_GEMMA_4_KEYS = f"{_GEMMA_KEYS} final_logit_softcapping attention_k_eq_v"
_GEMMA_4_LAYER: dict[str, Any] = {
    "attn": ("input_layernorm.", "self_attn.", "post_attention_layernorm."),
    "mlp": (
        "pre_feedforward_layernorm", "mlp.", "post_feedforward_layernorm", "router.", "experts.",
        "layer_scalar",
    ),
    "no_parts": _SCALED, "no_scale": lambda config: _SCALED, "no_bridge": POST_NORM, "tied": True,
}  # fmt: skip

# -------------------------------------------------------------------------------------- GPT-Neo


def _read_attention_types(config: Config, count: int) -> list[Any]:
    """Return GPT-Neo's kinds: `[[["global", "local"], 12]]` is both in turn, twelve times."""
    pairs = config.get("attention_types") or [[["global", "local"], 12]]
    try:
        kinds = [kind for names, times in pairs for _ in range(times) for kind in names]
    except (TypeError, ValueError):
        message = f"'attention_types' is {shown(pairs)}, and should be lists of types and times"
        raise RuleError(message) from None
    if len(kinds) != count:
        raise RuleError(
            f"'attention_types' says {len(kinds)} layers, and the model has {count} layers"
        )
    return kinds


def _write_attention_types(config: Config, values: Values) -> dict[str, Any]:
    kinds = complete("attention_types", values)
    listed = {"attention_layers": kinds} if "attention_layers" in config else {}
    return {**config, **listed, "attention_types": [[kinds, 1]]}


_EVERY = "global_attn_every_n_layers"


def _types(absent: Derivation, default: int | None = 4096) -> tuple[LayerRule, ...]:
    return sliding(layer_types(absent), default)


def _pattern(period: int) -> Listed:
    return layer_types(EveryNth(period, PATTERN_KEYS[0]), *PATTERN_KEYS)


WINDOWED = (
    Family(("qwen2",), (rope(), LLAMA_KEYS, "rms_norm_eps"), later_slide(28)),
    Family(("qwen3",), (rope(), LLAMA_KEYS, "rms_norm_eps"), later_slide(28)),
    Family(
        ("smollm3",), (rope(), LLAMA_KEYS, "rms_norm_eps mlp_bias"),
        (_ROTATION, *sliding(layer_types(_without_rotation), None, gated=True)),
        tied=True,
    ),
    Family(
        ("ministral",), (rope(), LLAMA_KEYS, "rms_norm_eps"),
        _types(IfWindow(Repeated((SLIDING,)))),
    ),
    Family(
        ("cwm",), (rope(), LLAMA_KEYS, "rms_norm_eps mlp_bias"),
        _types(EveryNth(4, counted_from=0), 8192),
    ),
    Family(
        ("granite_swa",),
        (
            rope(), LLAMA_KEYS, "rms_norm_eps mlp_bias attention_multiplier", MULTIPLIERS,
        ),
        (*_types(EveryNth(4, counted_from=0), 128), LAYER_THETAS),
        tied=True,
    ),
    Family(
        ("gemma2",), (rope(), _GEMMA_KEYS, _CAPPED, "use_bidirectional_attention"),
        _types(EveryNth(2)), **_FOUR_NORMS,
    ),
    # Without the norms after the branches.
    Family(
        ("vaultgemma",), (rope(), _GEMMA_KEYS, _CAPPED), _types(EveryNth(2)),
        mlp=("pre_feedforward_layernorm.", "mlp."), tied=True,
    ),
    Family(
        ("gemma3_text",),
        (rope_near_and_wide(), _GEMMA_KEYS, _CAPPED, "use_bidirectional_attention"),
        sliding(_pattern(6)), **_FOUR_NORMS,
    ),
    Family(
        ("gemma4_text",),
        (
            rope_by_kind, "use_bidirectional_attention enable_moe_block num_experts top_k_experts",
            _GEMMA_4_KEYS,
        ),
        _gemma_4(512), unfit=_shared(256), **_GEMMA_4_LAYER,
    ),
    Family(
        ("gemma4_unified_text",), (rope_by_kind, "use_bidirectional_attention", _GEMMA_4_KEYS),
        _gemma_4(1024), unfit=_shared(0), **_GEMMA_4_LAYER,
    ),
    Family(
        ("cohere2",), (rope(), LLAMA_KEYS, "layer_norm_eps logit_scale"), sliding(_pattern(4)),
        one_norm=lambda config: True, tied=True,
    ),
    # Each type of layers has rotary embeddings of its own, or has none.
    Family(
        ("cohere_compass_text",),
        (
            ConfigKey("rope_parameters", lambda config: config.get("rope_parameters") or {}),
            LLAMA_KEYS, "layer_norm_eps logit_scale",
        ),
        _types(Repeated((FULL,))), one_norm=lambda config: True, tied=True,
    ),
    Family(
        ("olmo3",), (rope_near_and_wide(), LLAMA_KEYS, "rms_norm_eps"), _types(EveryNth(4)),
        **NORMS_AFTER,
    ),
    Family(
        ("exaone4",),
        (
            rope(),
            # Full layers have rotary embeddings only where there is no window.
            ConfigKey("sliding_window", lambda config: window(config, gated=False, default=4096)),
            LLAMA_KEYS, "rms_norm_eps",
        ),
        sliding(layer_types(IfWindow(EveryNth(4, PATTERN_KEYS[0])), *PATTERN_KEYS)),
        **NORMS_AFTER,
    ),
    Family(
        ("gpt_neo",),
        ("hidden_size num_heads activation_function layer_norm_epsilon window_size",),
        (Computed("attention_types", "attn", _read_attention_types, _write_attention_types),),
        base="transformer.", stack="h.", count_key="num_layers",
        embed=("wte.weight", "wpe.weight"), norm=("ln_f.weight", "ln_f.bias"),
        attn=("ln_1.", "attn."), attn_out=("attn.attention.out_proj",),
        mlp=("ln_2.", "mlp."), mlp_out=("mlp.c_proj",), tied=True,
    ),
    # Its first layer has no norm before its attention.
    Family(
        ("modernbert-decoder",),
        (
            rope_near_and_wide(near_key="local_rope_theta", wide_key="global_rope_theta"),
            "hidden_size num_attention_heads hidden_activation norm_eps norm_bias attention_bias",
            "mlp_bias local_attention classifier_activation",
        ),
        (
            layer_types(EveryNth(3, _EVERY, counted_from=0), _EVERY),
            AtEnd(
                "attn_norm", "attn", "first", "the first layer alone has no norm at its beginning"
            ),
        ),
        embed=(
            "embeddings.tok_embeddings.weight", "embeddings.norm.weight", "embeddings.norm.bias",
        ),
        norm=("final_norm.weight", "final_norm.bias"),
        head=(
            "decoder.weight", "decoder.bias", "lm_head.dense.weight", "lm_head.dense.bias",
            "lm_head.norm.weight", "lm_head.norm.bias",
        ),
        attn=("attn_norm.", "attn."), attn_out=("attn.Wo",),
        mlp=("mlp_norm.", "mlp."), mlp_out=("mlp.Wo",), tied=True,
    ),
)  # fmt: skip
