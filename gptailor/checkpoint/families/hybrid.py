"""Attention beside linear attention, convolutions or state spaces, each layer with an MLP.

Each kind of layer has tensors of its own; what a configuration says of the kinds moves with them.
"""

from typing import Any

from gptailor.checkpoint.families import layer_config as rules
from gptailor.checkpoint.families import layer_kinds as kinds
from gptailor.checkpoint.families.compatibility import ConfigKey, keys, rope, rope_of_each
from gptailor.checkpoint.families.family import EXPERTS_OUT, UNFITTED, Family
from gptailor.checkpoint.families.mamba import TIME_STEPS
from gptailor.checkpoint.families.qwen import sparse_steps

_CONV = "conv"
_MIXED_NORMS = "its kinds of layers have their norms at different places, by the same names"


def _listed_attention(config: rules.Config, count: int) -> list[Any]:
    """LFM 2: those of `full_attn_idxs` attend, all without it, and the others are convolutions."""
    numbers = config.get("full_attn_idxs")
    numbers = range(count) if numbers is None else numbers
    return [rules.FULL if i in numbers else _CONV for i in range(count)]


def _no_kinds(config: rules.Config, count: int) -> list[Any]:
    raise rules.RuleError("there is no 'layer_types', which says what each layer is")


def _all_linear(config: rules.Config, count: int) -> list[Any]:
    return [rules.LINEAR] * count


def _dt_rank(config: rules.Config) -> Any:
    rank, hidden = config.get("mamba_dt_rank", "auto"), config.get("hidden_size")
    return -(-hidden // 16) if rank == "auto" and isinstance(hidden, int) else rank


def _multipliers(key: str, count: int) -> ConfigKey:
    return ConfigKey(key, lambda config: config.get(key) or [1.0] * count)


_RANK = ConfigKey("mamba_dt_rank", _dt_rank)

_QWEN_LINEAR: dict[str, Any] = {
    "hidden_act": "silu", "rms_norm_eps": 1e-6, "attention_bias": False, "head_dim": 256,
    "linear_conv_kernel_dim": 4, "linear_key_head_dim": 128, "linear_value_head_dim": 128,
    "linear_num_key_heads": 16, "linear_num_value_heads": 32,
}  # fmt: skip
_QWEN_KINDS = kinds.attending(
    rules.derived(
        "layer_types", "attn", kinds.every_nth(4, "full_attention_interval"),
        replaces=("full_attention_interval",),
    )
)  # fmt: skip
_QWEN_PARTS: dict[str, Any] = {
    "attn": ("input_layernorm.", "self_attn.", "linear_attn."),
    "attn_out": ("self_attn.o_proj", "linear_attn.out_proj"),
    "no_bridge": UNFITTED,
}
_MAMBA_2: dict[str, Any] = {
    "mamba_n_heads": 128, "mamba_n_groups": 1, "mamba_d_state": 256, "mamba_d_conv": 4,
    "mamba_expand": 2, "mamba_conv_bias": True, "mamba_proj_bias": False, "hidden_act": "silu",
    "attention_bias": False, "hidden_size": 4096, "num_attention_heads": 32,
}  # fmt: skip
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


def _lara_kinds(config: rules.Config, count: int) -> list[Any]:
    pattern = (rules.LINEAR, rules.SLIDING, rules.LINEAR, rules.FULL, rules.SLIDING)
    return [pattern[i % len(pattern)] for i in range(count)]


def _lfm_3_kinds(config: rules.Config, count: int) -> list[Any]:
    sliding = [rules.SLIDING if i else _CONV for i in range(count)]
    return [{0: sliding[i], 2: rules.FULL}.get(i % 4, _CONV) for i in range(count)]


def _olmo_kinds(config: rules.Config, count: int) -> list[Any]:
    kinds_of = [rules.FULL if i % 4 == 3 else rules.LINEAR for i in range(count)]
    return kinds_of if rules.FULL in kinds_of else [*kinds_of[:-1], rules.FULL]


def _both_kinds(types: rules.LayerRule) -> rules.LayerRule:
    """OLMo's hybrid: transformers takes no model without a linear layer."""

    def write(config: rules.Config, values: rules.Values) -> dict[str, Any]:
        if rules.LINEAR not in values:
            raise rules.RuleError("no linear layer would be left, and transformers demands one")
        return types.write(config, values)

    return rules.LayerRule(types.name, types.part, types.read, write)


def _linear_size(key: str, of: Any) -> ConfigKey:
    """What OLMo's hybrid computes where the configuration has no such size."""

    def read(config: rules.Config) -> Any:
        return config[key] if config.get(key) is not None else of(config)

    return ConfigKey(key, read)


def _linear_heads(config: rules.Config) -> Any:
    return config.get("num_attention_heads", 30)


HYBRID = (
    Family(
        ("qwen3_next",),
        keys(
            rope(partial=0.25), hidden_size=2048, num_attention_heads=16, num_key_value_heads=2,
            num_experts=512, num_experts_per_tok=10, norm_topk_prob=True, **_QWEN_LINEAR,
        ),
        (_QWEN_KINDS, sparse_steps(512)),
        mlp_out=EXPERTS_OUT, **_QWEN_PARTS,
    ),
    Family(
        ("qwen3_5_text",),
        keys(
            rope(partial=0.25), hidden_size=4096, num_attention_heads=16, num_key_value_heads=4,
            **_QWEN_LINEAR,
        ),
        (_QWEN_KINDS,),
        **_QWEN_PARTS,
    ),
    Family(
        ("qwen3_5_moe_text",),
        keys(
            rope(partial=0.25), hidden_size=2048, num_attention_heads=16, num_key_value_heads=2,
            num_experts=256, num_experts_per_tok=8, **_QWEN_LINEAR,
        ),
        (_QWEN_KINDS,),
        mlp_out=EXPERTS_OUT, **_QWEN_PARTS,
    ),
    Family(
        ("lfm2",),
        keys(
            rope(1_000_000.0), hidden_size=2560, num_attention_heads=32, num_key_value_heads=8,
            norm_eps=1e-5, conv_bias=False, conv_L_cache=3,
        ),
        (
            kinds.attending(
                rules.derived(
                    "layer_types", "attn", _listed_attention, replaces=("full_attn_idxs",)
                )
            ),
        ),
        norm=("embedding_norm.weight",),
        attn=("operator_norm.", "self_attn.", "conv."),
        attn_out=("self_attn.out_proj", "conv.out_proj"),
        mlp=("ffn_norm.", "feed_forward."), mlp_out=("feed_forward.w2",),
        no_bridge=UNFITTED, tied=True,
    ),
    Family(
        ("lfm2_moe",),
        keys(
            rope(1_000_000.0), hidden_size=2048, num_attention_heads=32, num_key_value_heads=8,
            norm_eps=1e-5, conv_bias=False, conv_L_cache=3, num_experts=32, num_experts_per_tok=4,
            use_expert_bias=True, routed_scaling_factor=1.0, norm_topk_prob=True,
        ),
        (
            kinds.attending(rules.derived("layer_types", "attn", _no_kinds)),
            kinds.dense_first("num_dense_layers", 2),
        ),
        norm=("embedding_norm.weight",),
        attn=("operator_norm.", "self_attn.", "conv."),
        attn_out=("self_attn.out_proj", "conv.out_proj"),
        mlp=("ffn_norm.", "feed_forward."),
        mlp_out=("feed_forward.w2", "feed_forward.experts.*.w2", "feed_forward.experts.down_proj"),
        no_bridge=UNFITTED, tied=True,
    ),
    Family(
        ("granitemoehybrid",),
        keys(
            rope(), TIME_STEPS, num_key_value_heads=None, rms_norm_eps=1e-6,
            attention_multiplier=1.0, residual_multiplier=1.0, embedding_multiplier=1.0,
            logits_scaling=1.0, num_local_experts=8, num_experts_per_tok=2,
            position_embedding_type=None, **_MAMBA_2,
        ),
        (
            kinds.attending(
                rules.derived("layer_types", "attn", _all_linear, older="layers_block_type")
            ),
        ),
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
        keys(
            rope(partial=0.5), TIME_STEPS, num_key_value_heads=8, rms_norm_eps=1e-5,
            mlp_bias=False, **_MAMBA_2,
        ),
        (
            kinds.attending(
                kinds.numbered(
                    "attn_layer_indices", "attn", "layer_types", (rules.LINEAR, rules.FULL),
                    _all_linear,
                )
            ),
        ),
        **_BESIDE_MAMBA,
    ),
    Family(
        ("falcon_h1",),
        keys(
            rope(), TIME_STEPS, _multipliers("mlp_multipliers", 2),
            _multipliers("ssm_multipliers", 5), num_key_value_heads=8, rms_norm_eps=1e-5,
            mlp_bias=False, head_dim=None, mamba_d_ssm=1024, mamba_norm_before_gate=True,
            mamba_rms_norm=False, projectors_bias=False, lm_head_multiplier=1.0,
            embedding_multiplier=1.0, key_multiplier=1.0, attention_out_multiplier=1.0,
            attention_in_multiplier=1.0, ssm_in_multiplier=1.0, ssm_out_multiplier=1.0, **_MAMBA_2,
        ),
        **_BESIDE_MAMBA,
    ),
    Family(
        ("jamba",),
        keys(
            _RANK, hidden_size=4096, num_attention_heads=32, num_key_value_heads=8,
            hidden_act="silu", rms_norm_eps=1e-6, num_experts=16, num_experts_per_tok=2,
            mamba_d_state=16, mamba_d_conv=4, mamba_expand=2, mamba_conv_bias=True,
            mamba_proj_bias=False,
        ),
        (
            kinds.attending(
                kinds.periodic(
                    "attn_layer_period", "attn_layer_offset", "attn", "layer_types",
                    (rules.LINEAR, rules.FULL), (8, 4),
                )
            ),
            kinds.periodic(
                "expert_layer_period", "expert_layer_offset", "mlp", "mlp",
                (rules.DENSE, rules.SPARSE), (2, 1),
            ),
        ),
        **_BESIDE_MAMBA,
    ),
    Family(
        ("recurrent_gemma",),
        keys(
            rope(partial=0.5), hidden_size=2560, num_attention_heads=10, num_key_value_heads=None,
            attention_window_size=2048, conv1d_width=4, logits_soft_cap=30.0, rms_norm_eps=1e-6,
            hidden_activation="gelu_pytorch_tanh", attention_bias=False,
        ),
        (
            kinds.attending(
                kinds.cycled("block_types", ("recurrent", "recurrent", "attention")),
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
        ("lara_mini",),
        keys(
            rope(), hidden_size=1024, num_attention_heads=16, num_key_value_heads=4,
            num_experts=128, num_experts_per_tok=4, norm_topk_prob=True,
            **(
                _QWEN_LINEAR | {
                    "head_dim": 128, "linear_num_key_heads": 8, "linear_num_value_heads": 16
                }
            ),
        ),
        rules.sliding(
            kinds.attending(rules.derived("layer_types", "attn", _lara_kinds)), default=512
        ),
        mlp_out=EXPERTS_OUT, tied=True, **_QWEN_PARTS,
    ),
    Family(
        ("lfm3",),
        keys(
            rope_of_each({
                "full_attention": {
                    "rope_type": "proportional", "rope_theta": 1_000_000.0,
                    "partial_rotary_factor": 0.5,
                },
                "sliding_attention": {"rope_theta": 10_000.0},
            }),
            hidden_size=2048, num_attention_heads=16, num_key_value_heads=4, head_dim=128,
            norm_eps=1e-5, conv_bias=False, conv_L_cache=7, use_sandwich_norm=True,
            use_attention_gate=True, attention_bias=False,
        ),
        rules.sliding(
            kinds.attending(rules.derived("layer_types", "attn", _lfm_3_kinds)), default=256
        ),
        norm=("embedding_norm.weight",),
        attn=("operator_norm.", "self_attn.", "conv.", "post_operator_norm."),
        mlp=("ffn_norm.", "feed_forward.", "post_ffn_norm."),
        roles=(("conv.out_proj", "attn.o"),),
        no_scale=lambda config: "a norm may stand after each branch", no_bridge=UNFITTED, tied=True,
    ),
    Family(
        ("olmo_hybrid",),
        keys(
            rope(), _linear_size("linear_num_key_heads", _linear_heads),
            _linear_size("linear_num_value_heads", _linear_heads), hidden_size=3840,
            num_attention_heads=30, num_key_value_heads=None, hidden_act="silu",
            rms_norm_eps=1e-6, attention_bias=False, linear_conv_kernel_dim=4,
            linear_allow_neg_eigval=True,
        ),
        (_both_kinds(kinds.attending(rules.derived("layer_types", "attn", _olmo_kinds))),),
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
)  # fmt: skip
