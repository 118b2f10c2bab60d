"""Mixtures of experts: some or all layers route each token to a few of several MLPs.

Layers may see a window of the text too. Mixtures with latent attention are in `latent.py`, those
with layers that don't attend in `hybrid.py`.
"""

from typing import Any

from gptailor.checkpoint.families.compatibility import (
    LLAMA_KEYS,
    MULTIPLIERS,
    ConfigKey,
    gated_window,
    rope,
    rope_by_kind,
)
from gptailor.checkpoint.families.family import EXPERTS_OUT, LAYER_THETAS, UNFITTED, Family, Fold
from gptailor.checkpoint.families.layer_config import Config, RuleError
from gptailor.checkpoint.families.layer_rules import (
    DENSE,
    FULL,
    SLIDING,
    SPARSE,
    Alike,
    Computed,
    Derivation,
    EveryNth,
    FirstLayers,
    IfWindow,
    LayerRule,
    Listed,
    Numbered,
    Repeated,
    SparseSteps,
    Values,
    complete,
    dense_first,
    dense_or_sparse,
    int_of,
    layer_types,
    sliding,
)
from gptailor.checkpoint.files import shown

_EXPERTS: dict[str, Any] = {"mlp_out": EXPERTS_OUT, "no_bridge": UNFITTED}
_SHARED: dict[str, Any] = {
    "mlp_out": (*EXPERTS_OUT, "mlp.shared_mlp.down_proj"), "no_bridge": UNFITTED
}  # fmt: skip
_SPARSE_BLOCK: dict[str, Any] = {
    "mlp": ("post_attention_layernorm.", "block_sparse_moe.", "mlp."),
    "mlp_out": ("block_sparse_moe.experts.*.w2", "mlp.experts.*.w2", "mlp.experts.down_proj"),
}
_GRANITE: dict[str, Any] = {
    "mlp": ("post_attention_layernorm.", "block_sparse_moe.", "shared_mlp."),
    "mlp_out": (
        "block_sparse_moe.output_linear", "block_sparse_moe.experts.down_proj",
        "shared_mlp.output_linear",
    ),
    "no_bridge": UNFITTED,
}  # fmt: skip
_GRANITE_KEYS = (
    rope(), LLAMA_KEYS, "rms_norm_eps attention_multiplier", MULTIPLIERS,
    "num_local_experts num_experts_per_tok",
)  # fmt: skip
_GROUPED = "n_group topk_group norm_topk_prob"
"""Keys of routers that choose groups of experts first."""


def _windows(width: int, absent: Derivation, *replaces: str) -> tuple[LayerRule, ...]:
    return sliding(layer_types(absent, *replaces), width)


# ------------------------------------------------------------------------- Qwen, MiniMax, Dots, …


def _even_below_bound(config: Config, count: int) -> list[Any]:
    """Return Qwen 2 MoE's kinds: every other layer below `max_window_layers` slides."""
    bound = int_of(config, "max_window_layers", 28)
    slides = bool(config.get("use_sliding_window", False))
    return [SLIDING if slides and i % 2 == 0 and i < bound else FULL for i in range(count)]


def _minimax_rope(defaults: Config) -> ConfigKey:
    """Return MiniMax M2's rotary embeddings: `rotary_dim` of a head's dimensions rotate."""
    key = rope()(defaults)

    def read(config: Config) -> Any:
        turning, size = config.get("rotary_dim"), config.get("head_dim", 128)
        if turning is None or "partial_rotary_factor" in config:
            return key.read(config)
        return key.read({**config, "partial_rotary_factor": turning / size})

    return ConfigKey(key.name, read)


def _after_dense(config: Config, count: int) -> list[Any]:
    """Return Cohere's kinds: the first dense layers have a pattern of windows of their own."""
    first = int_of(config, "first_k_dense_replace", 0)
    inner = int_of(config, "prefix_dense_sliding_window_pattern", 1, least=1)
    outer = int_of(config, "sliding_window_pattern", 4, least=1)
    steps = [(i + 1) % inner if i < first else (i - first + 1) % outer for i in range(count)]
    return [SLIDING if step else FULL for step in steps]


# ----------------------------------------------------------------------------- ERNIE, Hunyuan, DBRX


def _read_ernie(config: Config, count: int) -> list[Any]:
    start = int_of(config, "moe_layer_start_index", 1)
    end = int_of(config, "moe_layer_end_index", -1, least=-1)
    return _spaced(start, count - 1 if end == -1 else end, _interval(config), count)


def _interval(config: Config) -> int:
    return int_of(config, "moe_layer_interval", 1, least=1)


def _spaced(start: int, end: int, step: int, count: int) -> list[Any]:
    sparse = [(i + 1) % step == 0 and start <= i <= end for i in range(count)]
    return [SPARSE if each else DENSE for each in sparse]


def _write_ernie(config: Config, values: Values) -> dict[str, Any]:
    """Return the configuration with a start, an end and an interval, solved for the new order."""
    kinds, count = complete("moe_layer_start_index", values), len(values)
    sparse = [i for i, value in enumerate(kinds) if value == SPARSE]
    start, end = (sparse[0], sparse[-1]) if sparse else (count, count)
    for step in (_interval(config), *range(1, count + 1)):
        if _spaced(start, end, step, count) == kinds:
            out = {"moe_layer_start_index": start, "moe_layer_end_index": end}
            return {**config, **out, "moe_layer_interval": step}
    which = ", ".join(f"L{i}" for i in sparse)
    raise RuleError(
        "'moe_layer_start_index', 'moe_layer_end_index' and 'moe_layer_interval' can't make only "
        f"{which} sparse"
    )


def _of_each(key: str, default: int) -> Computed:
    """Return Hunyuan's rule: one number for all layers, or a list with one for each."""

    def read(config: Config, count: int) -> list[Any]:
        value = config.get(key, default)
        if isinstance(value, list | tuple) and len(value) != count:
            raise RuleError(f"'{key}' has {len(value)} entries, and the model {count} layers")
        if not isinstance(value, list | tuple | int):
            raise RuleError(f"'{key}' is {shown(value)}, and should be a number or a list")
        return list(value) if isinstance(value, list | tuple) else [value] * count

    def write(config: Config, values: Values) -> dict[str, Any]:
        numbers = complete(key, values)
        alike = len(set(numbers)) == 1 and not isinstance(config.get(key), list)
        return {**config, key: numbers[0] if alike else numbers}

    return Computed(key, "mlp", read, write)


def _nested(key: str, **defaults: Any) -> ConfigKey:
    """Return a key of DBRX's with an object of settings as its value."""

    def read(config: Config) -> Any:
        value = config.get(key)
        settings = value if isinstance(value, dict) else {}
        return {name: settings.get(name, default) for name, default in defaults.items()}

    return ConfigKey(key, read)


# ----------------------------------------------------------------------------------------- Llama 4

_STEP = "interleave_moe_layer_step"
_INTERLEAVED = EveryNth(1, _STEP, SPARSE, DENSE)
_LISTED_ROTATION = Listed(
    "no_rope_layers", "attn", EveryNth(4, "no_rope_layer_interval", 0, 1),
    replaces=("no_rope_layer_interval",),
)  # fmt: skip
"""Llama 4: 1 for a layer with rotary embeddings, despite the key's name."""


def _rotations(config: Config, count: int) -> list[Any]:
    """Return `no_rope_layers`; an empty list equals an absent one."""
    stated = {key: value for key, value in config.items() if key != "no_rope_layers" or value}
    return _LISTED_ROTATION.read(stated, count)


def _chunked(config: Config, count: int) -> list[Any]:
    chunks = config.get("attention_chunk_size", 8192) is not None
    rotates = _rotations(config, count)
    return ["chunked_attention" if chunks and turns else FULL for turns in rotates]


def _keep_step(config: Config, values: Values) -> dict[str, Any]:
    """Repeat the list as a step, for readers that don't know it, if a step fits."""
    out = {key: value for key, value in config.items() if key != _STEP}
    for step in range(1, len(values) + 2):
        if _INTERLEAVED({_STEP: step}, len(values)) == list(values):
            return {**out, _STEP: step}
    return out


# ------------------------------------------------------------------------------------- Flint, MiMo


def _flint_windows(config: Config, count: int) -> list[Any]:
    """Return Flint's kinds: the first two layers, each fourth and the last attend fully."""
    full = [i < 2 or i % 4 == 1 or i == count - 1 for i in range(count)]
    return [FULL if each else SLIDING for each in full]


def _mimo_windows(config: Config, count: int) -> list[Any]:
    """Return MiMo's kinds: the first layer and each sixth attend fully."""
    return [FULL, *EveryNth(6)(config, count)[1:]][:count]


def _mimo_rules() -> tuple[LayerRule, ...]:
    """Return MiMo's rules: checkpoints state the window without the token itself, and lists too."""
    types, width = _windows(129, _mimo_windows)

    def read(config: Config, count: int) -> list[Any]:
        without = config.get("sliding_window_size")
        window = {"sliding_window": without + 1} if type(without) is int else {}
        return width.read({**config, **window}, count)

    def write(config: Config, values: Values) -> dict[str, Any]:
        out = width.write(config, values)
        if type(out.get("sliding_window_size")) is int:
            out["sliding_window_size"] = out.get("sliding_window", 129) - 1
        return out

    return (
        types, Computed("sliding_window", "attn", read, write), dense_or_sparse(1, None),
        Listed("hybrid_layer_pattern", "attn"), Listed("moe_layer_freq", "mlp"),
    )  # fmt: skip


EXPERTS = (
    Family(
        ("mixtral",),
        (
            rope(), LLAMA_KEYS, "rms_norm_eps sliding_window num_local_experts num_experts_per_tok",
        ),
        **_SPARSE_BLOCK,
    ),
    Family(
        ("qwen2_moe",),
        (rope(), LLAMA_KEYS, "rms_norm_eps num_experts num_experts_per_tok norm_topk_prob"),
        (*sliding(layer_types(_even_below_bound), gated=True), SparseSteps("mlp", "mlp", 60)),
        mlp_out=EXPERTS_OUT,
    ),
    Family(
        ("qwen3_moe",),
        (
            rope(), gated_window(4096), LLAMA_KEYS,
            "rms_norm_eps num_experts num_experts_per_tok norm_topk_prob",
        ),
        (SparseSteps("mlp", "mlp", 128),), mlp_out=EXPERTS_OUT,
    ),
    Family(
        ("minimax_m2",),
        (_minimax_rope, LLAMA_KEYS, "rms_norm_eps num_local_experts num_experts_per_tok"),
        no_bridge=UNFITTED, **_SPARSE_BLOCK,
    ),
    Family(
        ("phimoe",),
        (
            rope(), LLAMA_KEYS, "rms_norm_eps sliding_window num_local_experts num_experts_per_tok",
            "router_jitter_noise lm_head_bias",
        ),
        no_bridge=UNFITTED, **_SPARSE_BLOCK,
    ),
    Family(
        ("glm4_moe",),
        (
            rope(), LLAMA_KEYS, "rms_norm_eps n_routed_experts n_shared_experts",
            "num_experts_per_tok routed_scaling_factor use_qk_norm", _GROUPED,
        ),
        (dense_first("first_k_dense_replace", 1),), **_EXPERTS,
    ),
    Family(
        ("solar_open",),
        (
            rope(), LLAMA_KEYS, "rms_norm_eps n_routed_experts n_shared_experts",
            "num_experts_per_tok routed_scaling_factor", _GROUPED,
        ),
        **_EXPERTS,
    ),
    Family(
        ("sarvam_moe",),
        (
            rope(), LLAMA_KEYS, "rms_norm_eps n_routed_experts n_shared_experts",
            "num_experts_per_tok routed_scaling_factor use_qk_norm", _GROUPED,
        ),
        (dense_first("first_k_dense_replace", 1),),
        embed=("word_embeddings.weight", "embed_tokens.weight"),
        attn=("input_layernorm.", "attention.", "self_attn."),
        attn_out=("attention.dense", "self_attn.o_proj"), **_EXPERTS,
    ),
    Family(
        ("dots1",),
        (
            rope(), LLAMA_KEYS, "rms_norm_eps n_routed_experts n_shared_experts",
            "num_experts_per_tok routed_scaling_factor", _GROUPED,
        ),
        (
            *_windows(
                4096, IfWindow(FirstLayers(62, "max_window_layers", FULL, SLIDING)),
                "max_window_layers",
            ),
            dense_first("first_k_dense_replace", 0),
        ),
        **_EXPERTS,
    ),
    Family(
        ("ernie4_5_moe",),
        (
            rope(), LLAMA_KEYS, "rms_norm_eps use_bias moe_k moe_num_experts",
            "moe_num_shared_experts moe_norm_min",
        ),
        (Computed("mlp", "mlp", _read_ernie, _write_ernie),), tied=True, **_EXPERTS,
    ),
    Family(
        ("hunyuan_v1_moe",), (rope(), LLAMA_KEYS, "rms_norm_eps"),
        (_of_each("num_experts", 1), _of_each("moe_topk", 1)), **_SHARED,
    ),
    Family(
        ("hy_v3",),
        (
            rope(), LLAMA_KEYS, "rms_norm_eps mlp_bias num_experts num_experts_per_tok",
            "num_shared_experts router_scaling_factor enable_moe_fp32_combine",
        ),
        (dense_or_sparse(1, None),), **_SHARED,
    ),
    Family(
        ("olmoe",),
        (
            rope(), LLAMA_KEYS,
            "rms_norm_eps clip_qkv num_experts num_experts_per_tok norm_topk_prob",
        ),
        **_EXPERTS,
    ),
    Family(
        ("flex_olmo",),
        (rope(), LLAMA_KEYS, "rms_norm_eps num_experts num_experts_per_tok norm_topk_prob"),
        attn=("self_attn.", "post_attention_layernorm."),
        mlp=("mlp.", "post_feedforward_layernorm."),
        # As OLMo 2: the branches read the hidden state without a norm before them.
        folds=(
            *(Fold(f"self_attn.{name}_proj.weight", "multiply") for name in "qkv"),
            *(Fold(f"mlp.experts.*.{name}_proj.weight", "multiply") for name in ("gate", "up")),
            Fold("mlp.experts.gate_up_proj", "multiply"),
            Fold("mlp.gate.weight", "multiply"),
            Fold("post_attention_layernorm.weight", "divide"),
            Fold("post_feedforward_layernorm.weight", "divide"),
        ),
        no_bridge=UNFITTED,
    ),
    Family(("granitemoe",), _GRANITE_KEYS, **_GRANITE),
    Family(("granitemoeshared",), _GRANITE_KEYS, **_GRANITE),
    Family(
        ("granitemoe_swa",), _GRANITE_KEYS,
        (*_windows(128, EveryNth(4, counted_from=0)), LAYER_THETAS), **_GRANITE,
    ),
    Family(
        ("aria_text",),
        (
            rope(), LLAMA_KEYS, "rms_norm_eps mlp_bias moe_num_experts moe_topk",
            "moe_num_shared_experts",
        ),
        mlp_out=("mlp.experts.fc2", "mlp.shared_experts.down_proj"), no_bridge=UNFITTED,
        roles=(("mlp.experts.fc1", "mlp.gate_up"),),
    ),
    Family(
        ("jetmoe",),
        (
            rope(), "hidden_size num_key_value_heads kv_channels activation_function",
            "num_local_experts num_experts_per_tok rms_norm_eps",
        ),
        attn=("input_layernorm.", "self_attention."),
        attn_out=("self_attention.experts.output_linear", "self_attention.experts"),
        mlp_out=("mlp.output_linear", "mlp"), no_bridge=UNFITTED, tied=True,
        roles=(
            ("self_attention.experts.input_linear", "attn.q"),
            ("self_attention.experts.router", ""), ("mlp.input_linear", "mlp.gate_up"),
            ("mlp.router", "mlp.router"),
        ),
    ),
    Family(
        ("dbrx",),
        (
            _nested("attn_config", rope_theta=10_000.0, clip_qkv=None, kv_n_heads=1),
            _nested(
                "ffn_config", ffn_act_fn={"name": "silu"}, moe_num_experts=4, moe_top_k=1,
                moe_normalize_expert_weights=1.0,
            ),
            "d_model n_heads",
        ),
        base="transformer.", stack="blocks.", count_key="n_layers",
        embed=("wte.weight",), norm=("norm_f.weight",),
        attn=("norm_attn_norm.norm_1.", "norm_attn_norm.attn."),
        attn_out=("norm_attn_norm.attn.out_proj",),
        mlp=("norm_attn_norm.norm_2.", "ffn."), mlp_out=("ffn.experts.mlp.w2",),
        no_bridge=UNFITTED,
    ),
    Family(
        ("gpt_oss",),
        (
            rope(), LLAMA_KEYS, "rms_norm_eps num_local_experts num_experts_per_tok swiglu_alpha",
            "swiglu_limit",
        ),
        _windows(128, EveryNth(2)),
        mlp_out=("mlp.experts.down_proj", "mlp.experts.down_proj_bias"), no_bridge=UNFITTED,
    ),
    Family(
        ("llama4_text",),
        (
            rope(), LLAMA_KEYS, "rms_norm_eps num_local_experts num_experts_per_tok use_qk_norm",
            "attention_chunk_size attn_temperature_tuning floor_scale attn_scale",
        ),
        (
            Computed("no_rope_layers", "attn", _rotations, _LISTED_ROTATION.write),
            layer_types(_chunked),
            Numbered("mlp", "mlp", "moe_layers", (DENSE, SPARSE), _INTERLEAVED, _keep_step),
        ),
        mlp=("post_attention_layernorm.", "feed_forward."),
        mlp_out=(
            "feed_forward.down_proj", "feed_forward.experts.down_proj",
            "feed_forward.shared_expert.down_proj",
        ),
        no_bridge=UNFITTED,
    ),
    Family(
        ("cohere2_moe",),
        (
            rope(), LLAMA_KEYS, "layer_norm_eps rms_norm_eps logit_scale num_experts",
            "num_experts_per_tok num_shared_experts shared_expert_combination_strategy",
            "expert_selection_fn norm_topk_prob prefix_dense_sliding_window_pattern",
        ),
        (*_windows(4096, _after_dense, "sliding_window_pattern"), dense_or_sparse(0)),
        one_norm=lambda config: True, tied=True, **_EXPERTS,
    ),
    Family(
        ("exaone_moe",),
        (
            rope(), LLAMA_KEYS, "rms_norm_eps num_experts num_experts_per_tok num_shared_experts",
            "routed_scaling_factor", _GROUPED,
        ),
        (
            *_windows(4096, EveryNth(4, "sliding_window_pattern"), "sliding_window_pattern"),
            dense_or_sparse(1),
        ),
        **_EXPERTS,
    ),
    Family(
        ("afmoe",),
        (
            rope(), LLAMA_KEYS, "rms_norm_eps num_experts num_experts_per_tok num_shared_experts",
            "route_scale mup_enabled",
        ),
        (
            *_windows(
                1024, EveryNth(4, "global_attn_every_n_layers"), "global_attn_every_n_layers"
            ),
            dense_first("num_dense_layers", 1),
        ),
        attn=("input_layernorm.", "self_attn.", "post_attention_layernorm."),
        mlp=("pre_mlp_layernorm.", "mlp.", "post_mlp_layernorm."),
        folds=(
            Fold("post_attention_layernorm.weight", "divide"),
            Fold("post_mlp_layernorm.weight", "divide"),
        ),
        no_bridge=UNFITTED,
    ),
    Family(
        ("laguna",),
        (
            rope_by_kind, LLAMA_KEYS, "rms_norm_eps num_experts num_experts_per_tok gating",
            "moe_routed_scaling_factor moe_router_logit_softcapping",
        ),
        (
            *_windows(512, Repeated((FULL,))),
            Listed("num_attention_heads_per_layer", "attn", Alike("num_attention_heads", 48)),
            dense_or_sparse(1, None),
        ),
        **_EXPERTS,
    ),
    Family(
        ("mellum",),
        (
            rope_by_kind, LLAMA_KEYS, "rms_norm_eps num_local_experts num_experts_per_tok",
            "norm_topk_prob",
        ),
        (*_windows(1024, Repeated((FULL,))), dense_or_sparse(0, None)),
        **_EXPERTS,
    ),
    Family(
        ("kolibri1",),
        (
            rope(), LLAMA_KEYS, "rms_norm_eps num_local_experts num_experts_per_tok norm_topk_prob",
        ),
        _windows(513, EveryNth(5)),
        attn=(
            "input_layernorm.", "self_attn.", "post_attn_norm.", "post_self_attn_layernorm.",
        ),
        mlp=(
            "post_attention_layernorm.", "mlp.", "moe.", "post_ffn_norm.", "post_mlp_layernorm.",
        ),
        folds=tuple(
            Fold(f"{name}.weight", "divide")
            for name in (
                "post_attn_norm", "post_self_attn_layernorm", "post_ffn_norm", "post_mlp_layernorm"
            )
        ),
        no_bridge=UNFITTED,
    ),
    Family(
        ("flint",),
        (rope(), LLAMA_KEYS, "rms_norm_eps num_experts num_experts_per_tok norm_topk_prob"),
        (
            *_windows(513, _flint_windows),
            Numbered("mlp", "mlp", "mlp_only_layers", (SPARSE, DENSE), FirstLayers(2)),
        ),
        **_EXPERTS,
    ),
    Family(
        ("mimo_v2_flash",),
        (
            rope_by_kind, LLAMA_KEYS, "v_head_dim rms_norm_eps n_routed_experts",
            "num_experts_per_tok attention_value_scale", _GROUPED,
        ),
        _mimo_rules(), **_EXPERTS,
    ),
)  # fmt: skip
