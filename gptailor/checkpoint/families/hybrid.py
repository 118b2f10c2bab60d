"""Attention beside linear attention, convolutions or state spaces, each layer with an MLP.

Each kind of layer has tensors of its own; the configuration of the kinds moves with them.
"""

from collections.abc import Callable, Mapping
from typing import Any

from gptailor.checkpoint.families.compatibility import (
    LATENT_KEYS,
    MULTIPLIERS,
    TIME_STEPS,
    ConfigKey,
    rope,
    rope_by_kind,
    state_rank,
)
from gptailor.checkpoint.families.family import EXPERTS_OUT, UNFITTED, Family
from gptailor.checkpoint.families.layer_config import Config, RuleError
from gptailor.checkpoint.families.layer_rules import (
    DENSE,
    FULL,
    LINEAR,
    SLIDING,
    SPARSE,
    Cycled,
    EveryNth,
    Numbered,
    Periodic,
    Repeated,
    SparseSteps,
    Values,
    WithSome,
    attending,
    dense_first,
    dense_or_sparse,
    layer_types,
    sliding,
)
from gptailor.checkpoint.files import shown

_ALL_LINEAR = Repeated((LINEAR,))

# ------------------------------------------------------------------ Qwen and LARA: linear attention

_INTERVAL = "full_attention_interval"
_QWEN_KEYS = (
    rope(), "hidden_size num_attention_heads num_key_value_heads hidden_act rms_norm_eps",
    "attention_bias head_dim linear_conv_kernel_dim linear_key_head_dim linear_value_head_dim",
    "linear_num_key_heads linear_num_value_heads",
)  # fmt: skip
_QWEN_KINDS = attending(layer_types(EveryNth(4, _INTERVAL, others=LINEAR), _INTERVAL))
_QWEN_PARTS: dict[str, Any] = {
    "attn": ("input_layernorm.", "self_attn.", "linear_attn."),
    "attn_out": ("self_attn.o_proj", "linear_attn.out_proj"),
    "no_bridge": UNFITTED,
}

# ------------------------------------------------------------------------ LFM: short convolutions

_CONV = "conv"


def _listed_attention(config: Config, count: int) -> list[Any]:
    """Return LFM 2's kinds: layers in `full_attn_idxs` attend, the rest are convolutions."""
    numbers = config.get("full_attn_idxs")
    numbers = range(count) if numbers is None else numbers
    return [FULL if i in numbers else _CONV for i in range(count)]


def _no_kinds(config: Config, count: int) -> list[Any]:
    raise RuleError("there is no 'layer_types', which says what each layer is")


def _lfm_3_kinds(config: Config, count: int) -> list[Any]:
    """Return LFM 3's kinds: a pattern of four, but the first layer doesn't attend."""
    kinds = Repeated((SLIDING, _CONV, FULL, _CONV))(config, count)
    return [_CONV, *kinds[1:]][:count]


_LFM: dict[str, Any] = {
    "norm": ("embedding_norm.weight",),
    "attn": ("operator_norm.", "self_attn.", "conv."),
    "attn_out": ("self_attn.out_proj", "conv.out_proj"),
    "mlp": ("ffn_norm.", "feed_forward."),
    "no_bridge": UNFITTED,
    "tied": True,
}

# ------------------------------------------------------------------------------ beside state spaces


def _multipliers(key: str, count: int) -> ConfigKey:
    return ConfigKey(key, lambda config: config.get(key) or [1.0] * count)


_MAMBA_2 = (
    "mamba_n_heads mamba_n_groups mamba_d_state mamba_d_conv mamba_expand mamba_conv_bias "
    "mamba_proj_bias hidden_act attention_bias hidden_size num_attention_heads"
)
_BESIDE_MAMBA: dict[str, Any] = {
    "norm": ("final_layernorm.weight",), "no_bridge": UNFITTED,
    "attn": ("input_layernorm.", "self_attn.", "mamba."),
    "attn_out": ("self_attn.o_proj", "mamba.out_proj"),
    "mlp": ("pre_ff_layernorm.", "feed_forward."),
    "mlp_out": (
        "feed_forward.down_proj", "feed_forward.experts.*.down_proj",
        "feed_forward.experts.down_proj",
    ),
}  # fmt: skip

# ------------------------------------------------------------------------------------------- OLMo

_MIXED_NORMS = "its kinds of layers have their norms at different places, by the same names"
_NO_LINEAR = "no linear layer would be left, and transformers demands one"


def _olmo_kinds(config: Config, count: int) -> list[Any]:
    """Return OLMo's kinds: each fourth layer attends; if there is no fourth, the last."""
    kinds = EveryNth(4, others=LINEAR)(config, count)
    return kinds if FULL in kinds else [*kinds[:-1], FULL]


def _linear_size(key: str, of: Callable[[Config], Any]) -> ConfigKey:
    """Return a size that OLMo's hybrid computes if the configuration lacks it."""

    def read(config: Config) -> Any:
        return config[key] if config.get(key) is not None else of(config)

    return ConfigKey(key, read)


def _linear_heads(config: Config) -> Any:
    return config.get("num_attention_heads", 30)


# --------------------------------------------------------- Kimi, Bailing: beside latent attention


def _linear_config(config: Config) -> Mapping[str, Any]:
    settings = config.get("linear_attn_config")
    return settings if isinstance(settings, Mapping) else {}


def _kimi_kinds(config: Config, count: int) -> list[Any]:
    """Return the kinds by lists of numbers from 1 up; without them each fourth after the first."""
    settings = _linear_config(config)
    if "full_attn_layers" not in settings or "kda_layers" not in settings:
        return [FULL if i and i % 4 == 0 else LINEAR for i in range(count)]
    full, linear = settings["full_attn_layers"], settings["kda_layers"]
    if not isinstance(full, list) or not isinstance(linear, list):
        raise RuleError(f"'linear_attn_config' has {shown(full)}, and should have a list")
    if sorted([*full, *linear]) != list(range(1, count + 1)):
        raise RuleError("'linear_attn_config' doesn't say of each layer once what it is")
    return [FULL if i + 1 in full else LINEAR for i in range(count)]


def _keep_numbers(config: Config, values: Values) -> dict[str, Any]:
    """Return the configuration with the older numbers too, if it has them."""
    settings = dict(_linear_config(config))
    for key, kind in (("full_attn_layers", FULL), ("kda_layers", LINEAR)):
        if key in settings:
            settings[key] = [i + 1 for i, value in enumerate(values) if value == kind]
    return {**config, "linear_attn_config": settings} if settings else dict(config)


def _linear(key: str, older: str, default: int) -> ConfigKey:
    """Return a key that Kimi's checkpoints have in an object of its own, which goes first."""
    return ConfigKey(
        key, lambda config: _linear_config(config).get(older, config.get(key, default))
    )


_GROUPED = (
    "num_experts routed_scaling_factor moe_renormalize num_expert_group topk_group "
    "num_experts_per_token num_shared_experts"
)

HYBRID = (
    Family(
        ("qwen3_next",), (*_QWEN_KEYS, "num_experts num_experts_per_tok norm_topk_prob"),
        (_QWEN_KINDS, SparseSteps("mlp", "mlp", 512)), mlp_out=EXPERTS_OUT, **_QWEN_PARTS,
    ),
    Family(("qwen3_5_text",), _QWEN_KEYS, (_QWEN_KINDS,), **_QWEN_PARTS),
    Family(
        ("qwen3_5_moe_text",), (*_QWEN_KEYS, "num_experts num_experts_per_tok"), (_QWEN_KINDS,),
        mlp_out=EXPERTS_OUT, **_QWEN_PARTS,
    ),
    Family(
        ("lara_mini",), (*_QWEN_KEYS, "num_experts num_experts_per_tok norm_topk_prob"),
        sliding(
            attending(layer_types(Repeated((LINEAR, SLIDING, LINEAR, FULL, SLIDING)))), 512
        ),
        mlp_out=EXPERTS_OUT, tied=True, **_QWEN_PARTS,
    ),
    Family(
        ("lfm2",),
        (
            rope(), "hidden_size num_attention_heads num_key_value_heads norm_eps conv_bias",
            "conv_L_cache",
        ),
        (attending(layer_types(_listed_attention, "full_attn_idxs")),),
        mlp_out=("feed_forward.w2",), **_LFM,
    ),
    Family(
        ("lfm2_moe",),
        (
            rope(), "hidden_size num_attention_heads num_key_value_heads norm_eps conv_bias",
            "conv_L_cache num_experts num_experts_per_tok use_expert_bias routed_scaling_factor",
            "norm_topk_prob",
        ),
        (attending(layer_types(_no_kinds)), dense_first("num_dense_layers", 2)),
        mlp_out=("feed_forward.w2", "feed_forward.experts.*.w2", "feed_forward.experts.down_proj"),
        **_LFM,
    ),
    Family(
        ("lfm3",),
        (
            rope_by_kind, "hidden_size num_attention_heads num_key_value_heads head_dim norm_eps",
            "conv_bias conv_L_cache use_sandwich_norm use_attention_gate attention_bias",
        ),
        sliding(attending(layer_types(_lfm_3_kinds)), 256),
        norm=("embedding_norm.weight",),
        attn=("operator_norm.", "self_attn.", "conv.", "post_operator_norm."),
        mlp=("ffn_norm.", "feed_forward.", "post_ffn_norm."),
        roles=(("conv.out_proj", "attn.o"),),
        no_scale=lambda config: "a norm may stand after each branch", no_bridge=UNFITTED, tied=True,
    ),
    Family(
        ("granitemoehybrid",),
        (
            rope(), TIME_STEPS, "num_key_value_heads rms_norm_eps attention_multiplier",
            MULTIPLIERS, "num_local_experts num_experts_per_tok position_embedding_type", _MAMBA_2,
        ),
        (attending(layer_types(_ALL_LINEAR, older="layers_block_type")),),
        attn=("input_layernorm.", "self_attn.", "mamba."),
        attn_out=("self_attn.o_proj", "mamba.out_proj"),
        mlp=("post_attention_layernorm.", "block_sparse_moe.", "shared_mlp."),
        mlp_out=(
            "shared_mlp.output_linear", "block_sparse_moe.output_linear",
            "block_sparse_moe.experts.down_proj",
        ),
        no_bridge=UNFITTED,
    ),
    Family(
        ("bamba",),
        (rope(), TIME_STEPS, "num_key_value_heads rms_norm_eps mlp_bias", _MAMBA_2),
        (
            attending(
                Numbered("layer_types", "attn", "attn_layer_indices", (LINEAR, FULL), _ALL_LINEAR)
            ),
        ),
        **_BESIDE_MAMBA,
    ),
    Family(
        ("falcon_h1",),
        (
            rope(), TIME_STEPS, _multipliers("mlp_multipliers", 2),
            _multipliers("ssm_multipliers", 5),
            "num_key_value_heads rms_norm_eps mlp_bias head_dim mamba_d_ssm mamba_norm_before_gate",
            "mamba_rms_norm projectors_bias lm_head_multiplier embedding_multiplier key_multiplier",
            "attention_out_multiplier attention_in_multiplier ssm_in_multiplier ssm_out_multiplier",
            _MAMBA_2,
        ),
        **_BESIDE_MAMBA,
    ),
    Family(
        ("jamba",),
        (
            state_rank("mamba_dt_rank"),
            "hidden_size num_attention_heads num_key_value_heads hidden_act rms_norm_eps",
            "num_experts num_experts_per_tok mamba_d_state mamba_d_conv mamba_expand",
            "mamba_conv_bias mamba_proj_bias",
        ),
        (
            attending(
                Periodic(
                    "layer_types", "attn", "attn_layer_period", "attn_layer_offset",
                    (LINEAR, FULL), (8, 4),
                )
            ),
            Periodic(
                "mlp", "mlp", "expert_layer_period", "expert_layer_offset", (DENSE, SPARSE), (2, 1)
            ),
        ),
        **_BESIDE_MAMBA,
    ),
    Family(
        ("recurrent_gemma",),
        (
            rope(), "hidden_size num_attention_heads num_key_value_heads attention_window_size",
            "conv1d_width logits_soft_cap rms_norm_eps hidden_activation attention_bias",
        ),
        (
            attending(
                Cycled(
                    "layer_types", "attn", "block_types", ("recurrent", "recurrent", "attention")
                ),
                ("attention",),
            ),
        ),
        norm=("final_norm.weight",),
        attn=("temporal_pre_norm.", "temporal_block."),
        attn_out=("temporal_block.o_proj", "temporal_block.linear_out"),
        mlp=("channel_pre_norm.", "mlp_block."), mlp_out=("mlp_block.down_proj",),
        no_bridge=UNFITTED, tied=True,
    ),
    Family(
        ("olmo_hybrid",),
        (
            rope(), _linear_size("linear_num_key_heads", _linear_heads),
            _linear_size("linear_num_value_heads", _linear_heads),
            "hidden_size num_attention_heads num_key_value_heads hidden_act rms_norm_eps",
            "attention_bias linear_conv_kernel_dim linear_allow_neg_eigval",
        ),
        (
            WithSome(
                "layer_types", "attn", attending(layer_types(_olmo_kinds)), (LINEAR,), _NO_LINEAR
            ),
        ),
        attn=(
            "input_layernorm.", "attention_layer_norm.", "self_attn.", "linear_attn.",
        ),
        mlp=(
            "post_attention_layernorm.", "feedforward_layer_norm.", "mlp.",
            "post_feedforward_layernorm.",
        ),
        roles=(("linear_attn.o_proj", "attn.o"),),
        no_parts=_MIXED_NORMS, no_scale=lambda config: _MIXED_NORMS, no_bridge=UNFITTED,
    ),
    Family(
        ("kimi_linear",),
        (
            _linear("linear_head_dim", "head_dim", 128),
            _linear("linear_num_heads", "num_heads", 32),
            _linear("linear_conv_kernel_dim", "short_conv_kernel_size", 4), LATENT_KEYS, _GROUPED,
        ),
        (attending(layer_types(_kimi_kinds, keep=_keep_numbers)), dense_or_sparse(1)),
        mlp=("post_attention_layernorm.", "block_sparse_moe.", "mlp."),
        mlp_out=(
            "block_sparse_moe.down_proj", "block_sparse_moe.experts.*.w2",
            "block_sparse_moe.shared_experts.down_proj", *EXPERTS_OUT,
        ),
        no_bridge=UNFITTED,
    ),
    Family(
        ("bailing_hybrid",),
        (
            rope(), LATENT_KEYS, _GROUPED, "short_conv_kernel_size kda_safe_gate kda_lower_bound",
        ),
        (
            attending(
                layer_types(EveryNth(6, "layer_group_size", others=LINEAR), "layer_group_size")
            ),
            dense_or_sparse(2),
        ),
        embed=("word_embeddings.weight", "embed_tokens.weight"),
        attn=("input_layernorm.", "attention.", "self_attn."),
        attn_out=("attention.dense", "self_attn.o_proj"),
        mlp_out=EXPERTS_OUT, no_bridge=UNFITTED,
    ),
)  # fmt: skip
