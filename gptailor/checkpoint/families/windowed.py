"""Mixtures of experts some of whose layers see a window or chunks of the text only."""

from typing import Any

from gptailor.checkpoint.families import layer_config as rules
from gptailor.checkpoint.families import layer_kinds as kinds
from gptailor.checkpoint.families.compatibility import rope, rope_of_each
from gptailor.checkpoint.families.experts import GRANITE, GRANITE_KEYS, ROUTED
from gptailor.checkpoint.families.family import EXPERTS_OUT, UNFITTED, Family, Fold, llama_keys

_YARN = {
    "rope_type": "yarn", "factor": 32.0, "beta_fast": 32.0, "beta_slow": 1.0, "truncate": False,
    "original_max_position_embeddings": 4096,
}  # fmt: skip
"""GPT-OSS's rotary embeddings where the configuration says nothing of them."""


def _interleaved(config: rules.Config, count: int) -> list[Any]:
    """Llama 4: each so manieth layer is sparse."""
    step = rules.int_of(config, "interleave_moe_layer_step", 1, least=1)
    return [rules.DENSE if (i + 1) % step else rules.SPARSE for i in range(count)]


def _rotating(config: rules.Config, count: int) -> list[Any]:
    """Llama 4: 1 for a layer with rotary embeddings, despite the key's name."""
    step = rules.int_of(config, "no_rope_layer_interval", 4, least=1)
    return [int((i + 1) % step != 0) for i in range(count)]


_LISTED = rules.derived(
    "no_rope_layers", "attn", _rotating, replaces=("no_rope_layer_interval",)
)  # fmt: skip


def _rotations(config: rules.Config, count: int) -> list[Any]:
    """An empty list stands for none."""
    given = {key: value for key, value in config.items() if key != "no_rope_layers" or value}
    return _LISTED.read(given, count)


_ROTATION = rules.LayerRule("no_rope_layers", "attn", _rotations, _LISTED.write)


def _chunked(config: rules.Config, count: int) -> list[Any]:
    chunks = config.get("attention_chunk_size", 8192) is not None
    rotates = _ROTATION.read(config, count)
    return ["chunked_attention" if chunks and turns else rules.FULL for turns in rotates]


def _thetas(config: rules.Config, count: int) -> list[Any]:
    """Granite MoE with windows: each layer's base of its rotary embeddings, 0 for none."""
    return [rope().read(config)["rope_theta"]] * count


def _keep_step(config: rules.Config, values: rules.Values) -> dict[str, Any]:
    """Say the list by a step too, for readers that don't know it; without one, by none."""
    out = {key: value for key, value in config.items() if key != "interleave_moe_layer_step"}
    for step in range(1, len(values) + 2):
        if _interleaved({"interleave_moe_layer_step": step}, len(values)) == list(values):
            return {**out, "interleave_moe_layer_step": step}
    return out


_MOE_LAYERS = kinds.numbered(
    "moe_layers", "mlp", "mlp", (rules.DENSE, rules.SPARSE), _interleaved,
    keep=_keep_step,
)  # fmt: skip


_EXPERTS: dict[str, Any] = {"mlp_out": EXPERTS_OUT, "no_bridge": UNFITTED}


def _windows(width: int, types: rules.Read) -> tuple[rules.LayerRule, ...]:
    return rules.sliding(rules.derived("layer_types", "attn", types), default=width)


def _flint_windows(config: rules.Config, count: int) -> list[Any]:
    """The first two layers, each fourth and the last attend fully."""
    full = [i < 2 or i % 4 == 1 or i == count - 1 for i in range(count)]
    return [rules.FULL if each else rules.SLIDING for each in full]


def _two_dense(config: rules.Config, count: int) -> list[Any]:
    return [rules.DENSE if i < 2 else rules.SPARSE for i in range(count)]


def _mimo_windows(config: rules.Config, count: int) -> list[Any]:
    full = [i == 0 or (i + 1) % 6 == 0 for i in range(count)]
    return [rules.FULL if each else rules.SLIDING for each in full]


def _mimo_rules() -> tuple[rules.LayerRule, ...]:
    """Its checkpoints say the window without the token itself, and have lists for other readers."""
    types, width = rules.sliding(rules.derived("layer_types", "attn", _mimo_windows), default=129)

    def read(config: rules.Config, count: int) -> list[Any]:
        without = config.get("sliding_window_size")
        given = {"sliding_window": without + 1} if type(without) is int else {}
        return width.read({**config, **given}, count)

    def write(config: rules.Config, values: rules.Values) -> dict[str, Any]:
        out = width.write(config, values)
        if type(out.get("sliding_window_size")) is int:
            out["sliding_window_size"] = out.get("sliding_window", 129) - 1
        return out

    return (
        types, rules.LayerRule("sliding_window", "attn", read, write),
        kinds.dense_or_sparse(1, None), rules.listed_per_layer("hybrid_layer_pattern", "attn"),
        rules.listed_per_layer("moe_layer_freq", "mlp"),
    )  # fmt: skip


WINDOWED = (
    Family(
        ("gpt_oss",),
        llama_keys(
            rope(150_000.0, default=_YARN), 2880, 64, 8, head_dim=64, rms_norm_eps=1e-5,
            attention_bias=True, num_local_experts=128, num_experts_per_tok=4, swiglu_alpha=1.702,
            swiglu_limit=7.0,
        ),
        _windows(128, rules.alternating(2)),
        mlp_out=("mlp.experts.down_proj", "mlp.experts.down_proj_bias"), no_bridge=UNFITTED,
    ),
    Family(
        ("llama4_text",),
        llama_keys(
            rope(500_000.0), 5120, 40, 8, head_dim=128, rms_norm_eps=1e-5, num_local_experts=16,
            num_experts_per_tok=1, use_qk_norm=True, attention_chunk_size=8192,
            attn_temperature_tuning=True, floor_scale=8192, attn_scale=0.1,
        ),
        (_ROTATION, rules.derived("layer_types", "attn", _chunked), _MOE_LAYERS),
        mlp=("post_attention_layernorm.", "feed_forward."),
        mlp_out=(
            "feed_forward.down_proj", "feed_forward.experts.down_proj",
            "feed_forward.shared_expert.down_proj",
        ),
        no_bridge=UNFITTED,
    ),
    Family(
        ("granitemoe_swa",),
        llama_keys(rope(), 4096, 32, None, **GRANITE_KEYS),
        (
            *_windows(128, rules.full_at(4)),
            rules.derived("layer_rope_theta", "attn", _thetas),
        ),
        **GRANITE,
    ),
    Family(
        ("exaone_moe",),
        llama_keys(
            rope(), 4096, 32, 32, rms_norm_eps=1e-5, num_experts=64, num_experts_per_tok=8,
            num_shared_experts=1, routed_scaling_factor=2.5, **ROUTED,
        ),
        (
            *rules.sliding(
                rules.derived(
                    "layer_types", "attn", rules.alternating(4, "sliding_window_pattern"),
                    replaces=("sliding_window_pattern",),
                )
            ),
            kinds.dense_or_sparse(1),
        ),
        **_EXPERTS,
    ),
    Family(
        ("afmoe",),
        llama_keys(
            rope(), 2048, 16, None, head_dim=128, rms_norm_eps=1e-5, num_experts=64,
            num_experts_per_tok=6, num_shared_experts=2, route_scale=1.0, mup_enabled=False,
        ),
        (
            *rules.sliding(
                rules.derived(
                    "layer_types", "attn", rules.alternating(4, "global_attn_every_n_layers"),
                    replaces=("global_attn_every_n_layers",),
                ),
                default=1024,
            ),
            kinds.dense_first("num_dense_layers", 1),
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
        llama_keys(
            rope_of_each({
                "full_attention": {"rope_theta": 500_000.0, "partial_rotary_factor": 0.5},
                "sliding_attention": {"rope_theta": 10_000.0, "partial_rotary_factor": 1.0},
            }),
            2048, 48, 8, head_dim=128, rms_norm_eps=1e-6, num_experts=256, num_experts_per_tok=8,
            gating=True, moe_routed_scaling_factor=1.0, moe_router_logit_softcapping=0.0,
        ),
        (
            *_windows(512, kinds.all_of(rules.FULL)),
            rules.derived(
                "num_attention_heads_per_layer", "attn", kinds.same("num_attention_heads", 48)
            ),
            kinds.dense_or_sparse(1, None),
        ),
        **_EXPERTS,
    ),
    Family(
        ("mellum",),
        llama_keys(
            rope_of_each({
                "full_attention": {"rope_theta": 500_000.0},
                "sliding_attention": {"rope_theta": 10_000.0},
            }),
            2304, 32, 4, head_dim=128, rms_norm_eps=1e-6, num_local_experts=64,
            num_experts_per_tok=8, norm_topk_prob=True,
        ),
        (
            *_windows(1024, kinds.all_of(rules.FULL)),
            kinds.dense_or_sparse(0, None),
        ),
        **_EXPERTS,
    ),
    Family(
        ("kolibri1",),
        llama_keys(
            rope(), 2560, 48, 4, head_dim=128, rms_norm_eps=1e-6, num_local_experts=384,
            num_experts_per_tok=6, norm_topk_prob=False,
        ),
        _windows(513, rules.alternating(5)),
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
        llama_keys(
            rope(), 2048, 32, 4, head_dim=128, rms_norm_eps=1e-6, num_experts=256,
            num_experts_per_tok=6, norm_topk_prob=True,
        ),
        (
            *_windows(513, _flint_windows),
            kinds.numbered(
                "mlp_only_layers", "mlp", "mlp", (rules.SPARSE, rules.DENSE), _two_dense
            ),
        ),
        **_EXPERTS,
    ),
    Family(
        ("mimo_v2_flash",),
        llama_keys(
            rope_of_each({
                "full_attention": {"rope_theta": 5_000_000.0, "partial_rotary_factor": 0.334},
                "sliding_attention": {"rope_theta": 10_000.0, "partial_rotary_factor": 0.334},
            }),
            4096, 64, 4, head_dim=192, v_head_dim=128, rms_norm_eps=1e-5, n_routed_experts=256,
            num_experts_per_tok=8, attention_value_scale=0.707, **ROUTED,
        ),
        _mimo_rules(),
        **_EXPERTS,
    ),
)  # fmt: skip
