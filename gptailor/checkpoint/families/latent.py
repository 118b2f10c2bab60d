"""Latent attention: DeepSeek 2 and 3, and after them with an indexer or beside linear attention."""

from collections.abc import Mapping
from typing import Any

from gptailor.checkpoint.families import layer_config as rules
from gptailor.checkpoint.families import layer_kinds as kinds
from gptailor.checkpoint.families.compatibility import ConfigKey, keys, rope
from gptailor.checkpoint.families.family import EXPERTS_OUT, UNFITTED, Family, Fold
from gptailor.checkpoint.files import shown

_LATENT: dict[str, Any] = {
    "hidden_act": "silu", "rms_norm_eps": 1e-6, "attention_bias": False, "q_lora_rank": 1536,
    "kv_lora_rank": 512, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128,
}  # fmt: skip
_ROUTED: dict[str, Any] = {
    "n_shared_experts": 1, "num_experts_per_tok": 8, "n_group": 1, "topk_group": 1,
    "norm_topk_prob": True, "routed_scaling_factor": 2.5,
}  # fmt: skip
_INDEXED: dict[str, Any] = {"index_topk": 2048, "index_head_dim": 128}
_EXPERTS: dict[str, Any] = {"mlp_out": EXPERTS_OUT, "no_bridge": UNFITTED}
_GROUPED: dict[str, Any] = {
    "moe_renormalize": True, "num_expert_group": 1, "topk_group": 1, "num_experts_per_token": 8,
    "num_shared_experts": 1,
}  # fmt: skip
"""Kimi Linear and those after it have other names for how experts are chosen."""

_ALL_INDEXED = rules.derived("layer_types", "attn", kinds.all_of("indexed_attention"))


def _indexers(config: rules.Config, count: int) -> list[Any]:
    """GLM with an indexer: each layer has one of its own."""
    listed, pattern = config.get("indexer_types"), config.get("index_topk_pattern")
    found = pattern if listed is None else listed
    if found is None and max(rules.int_of(config, "index_topk_freq", 1), 1) == 1:
        found = ["full"] * count
    if not isinstance(found, list | tuple | str) or not set(found) <= {"full", "F"}:
        which = "indexer_types" if listed is not None else "index_topk_freq"
        given = shown(found if found is not None else config.get(which))
        raise rules.RuleError(
            f"'{which}' is {given}, where layers use the index of another layer before them"
        )
    return [None] * count


def _write_indexers(config: rules.Config, values: rules.Values) -> dict[str, Any]:
    own = {"indexer_types": ["full"] * len(values), "index_topk_pattern": "F" * len(values)}
    return {**config, **{key: value for key, value in own.items() if config.get(key) is not None}}


def _linear_config(config: rules.Config) -> Mapping[str, Any]:
    given = config.get("linear_attn_config")
    return given if isinstance(given, Mapping) else {}


def _kimi_kinds(config: rules.Config, count: int) -> list[Any]:
    """The numbers of each kind's layers, from 1 up, or every fourth after the first."""
    given = _linear_config(config)
    if "full_attn_layers" not in given or "kda_layers" not in given:
        return [rules.FULL if i and i % 4 == 0 else rules.LINEAR for i in range(count)]
    full, linear = given["full_attn_layers"], given["kda_layers"]
    if not isinstance(full, list) or not isinstance(linear, list):
        raise rules.RuleError(f"'linear_attn_config' has {shown(full)}, and should have a list")
    if sorted([*full, *linear]) != list(range(1, count + 1)):
        raise rules.RuleError("'linear_attn_config' doesn't say of each layer once what it is")
    return [rules.FULL if i + 1 in full else rules.LINEAR for i in range(count)]


def _keep_numbers(config: rules.Config, values: rules.Values) -> dict[str, Any]:
    """Say the list by the older numbers too, where they are."""
    given = dict(_linear_config(config))
    for key, kind in (("full_attn_layers", rules.FULL), ("kda_layers", rules.LINEAR)):
        if key in given:
            given[key] = [i + 1 for i, value in enumerate(values) if value == kind]
    return {**config, "linear_attn_config": given} if given else dict(config)


def _linear(key: str, older: str, default: int) -> ConfigKey:
    """Kimi's checkpoints have it in an object of its own, which goes first."""
    return ConfigKey(
        key, lambda config: _linear_config(config).get(older, config.get(key, default))
    )


DEEPSEEK = (
    Family(
        ("deepseek_v2",),
        keys(
            rope(), hidden_size=4096, num_attention_heads=32, hidden_act="silu",
            rms_norm_eps=1e-6, attention_bias=False, mlp_bias=False, q_lora_rank=1536,
            kv_lora_rank=512, qk_nope_head_dim=128, qk_rope_head_dim=64, v_head_dim=128,
            n_routed_experts=64, n_shared_experts=2, num_experts_per_tok=None, n_group=None,
            topk_group=None, topk_method="greedy", norm_topk_prob=False, routed_scaling_factor=1.0,
        ),
        (kinds.dense_first("first_k_dense_replace", 0),),
        mlp_out=EXPERTS_OUT,
    ),
    Family(
        ("deepseek_v3",),
        keys(
            rope(), hidden_size=7168, num_attention_heads=128, hidden_act="silu",
            rms_norm_eps=1e-6, attention_bias=False, q_lora_rank=1536, kv_lora_rank=512,
            qk_nope_head_dim=128, qk_rope_head_dim=64, v_head_dim=128, n_routed_experts=256,
            n_shared_experts=1, num_experts_per_tok=8, n_group=8, topk_group=4,
            norm_topk_prob=True, routed_scaling_factor=2.5, rope_interleave=True,
        ),
        (kinds.dense_first("first_k_dense_replace", 3),),
        mlp_out=EXPERTS_OUT,
    ),
)  # fmt: skip

LATENT = (
    Family(
        ("deepseek_v32",),
        keys(
            rope(), hidden_size=7168, num_attention_heads=128, n_routed_experts=256,
            index_n_heads=64, **_LATENT, **_INDEXED, **(_ROUTED | {"n_group": 8, "topk_group": 4}),
        ),
        (_ALL_INDEXED, kinds.dense_or_sparse(3)),
        **_EXPERTS,
    ),
    Family(
        ("glm_moe_dsa",),
        keys(
            rope(), hidden_size=6144, num_attention_heads=64, n_routed_experts=256,
            index_n_heads=32, **_INDEXED, **_ROUTED,
            **(
                _LATENT | {
                    "rms_norm_eps": 1e-5, "q_lora_rank": 2048, "qk_nope_head_dim": 192,
                    "v_head_dim": 256,
                }
            ),
        ),
        (
            _ALL_INDEXED, kinds.dense_or_sparse(3),
            rules.LayerRule("indexer_types", "attn", _indexers, _write_indexers),
        ),
        **_EXPERTS,
    ),
    Family(
        ("glm4_moe_lite",),
        keys(
            rope(), hidden_size=2048, num_attention_heads=20, n_routed_experts=64,
            rope_interleave=True,
            **(
                _LATENT | {
                    "rms_norm_eps": 1e-5, "q_lora_rank": 768, "qk_nope_head_dim": 192,
                    "v_head_dim": 256,
                }
            ),
            **(_ROUTED | {"num_experts_per_tok": 4, "routed_scaling_factor": 1.8}),
        ),
        (kinds.dense_or_sparse(1, None),),
        **_EXPERTS,
    ),
    Family(
        ("sarvam_mla",),
        keys(
            rope(renamed={"deepseek_yarn": "yarn"}), hidden_size=4096, num_attention_heads=64,
            n_routed_experts=128, rope_interleave=True, **(_LATENT | {"q_lora_rank": None}),
            **_ROUTED,
        ),
        (kinds.dense_first("first_k_dense_replace", 1),),
        **_EXPERTS,
    ),
    Family(
        ("axk1",),
        keys(
            rope(), hidden_size=7168, num_attention_heads=64, n_routed_experts=192,
            rope_interleave=True, **_LATENT, **(_ROUTED | {"n_group": 8, "topk_group": 4}),
        ),
        (kinds.dense_or_sparse(1, stepped=True),),
        mlp=("post_attention_layernorm.", "mlp.", "post_mlp_layernorm."),
        roles=(("mlp.post_mlp_layernorm", "norms"),),
        folds=(
            Fold("self_attn.o_proj.weight", "divide"), Fold("self_attn.o_proj.bias", "divide"),
            Fold("mlp.down_proj.weight", "divide"), Fold("post_mlp_layernorm.weight", "divide"),
        ),
        no_bridge=UNFITTED,
    ),
    Family(
        ("axk2",),
        keys(
            rope(), hidden_size=2048, num_attention_heads=32, n_routed_experts=128,
            index_n_heads=16, gated_norm_rank=16, **_INDEXED,
            **(
                _LATENT | {
                    "q_lora_rank": 384, "kv_lora_rank": 128, "qk_nope_head_dim": 64,
                    "qk_rope_head_dim": 32, "v_head_dim": 64,
                }
            ),
            **(_ROUTED | {"n_group": None, "topk_group": None}),
        ),
        (_ALL_INDEXED, kinds.dense_or_sparse(1, stepped=True)),
        **_EXPERTS,
    ),
    Family(
        ("kimi_linear",),
        keys(
            _linear("linear_head_dim", "head_dim", 128),
            _linear("linear_num_heads", "num_heads", 32),
            _linear("linear_conv_kernel_dim", "short_conv_kernel_size", 4),
            hidden_size=2304, num_attention_heads=32, num_experts=256,
            routed_scaling_factor=2.446, **_GROUPED,
            **(_LATENT | {"rms_norm_eps": 1e-5, "q_lora_rank": None}),
        ),
        (
            kinds.attending(
                rules.derived("layer_types", "attn", _kimi_kinds, keep=_keep_numbers)
            ),
            kinds.dense_or_sparse(1),
        ),
        mlp=("post_attention_layernorm.", "block_sparse_moe.", "mlp."),
        mlp_out=(
            "block_sparse_moe.down_proj", "block_sparse_moe.experts.*.w2",
            "block_sparse_moe.shared_experts.down_proj", *EXPERTS_OUT,
        ),
        no_bridge=UNFITTED,
    ),
    Family(
        ("bailing_hybrid",),
        keys(
            rope(6_000_000.0), hidden_size=2560, num_attention_heads=32, num_experts=512,
            routed_scaling_factor=2.5, short_conv_kernel_size=4, kda_safe_gate=True,
            kda_lower_bound=-5.0, **(_LATENT | {"q_lora_rank": None}),
            **(_GROUPED | {"num_expert_group": 8, "topk_group": 4}),
        ),
        (
            kinds.attending(
                rules.derived(
                    "layer_types", "attn", kinds.every_nth(6, "layer_group_size"),
                    replaces=("layer_group_size",),
                )
            ),
            kinds.dense_or_sparse(2),
        ),
        embed=("word_embeddings.weight", "embed_tokens.weight"),
        attn=("input_layernorm.", "attention.", "self_attn."),
        attn_out=("attention.dense", "self_attn.o_proj"),
        **_EXPERTS,
    ),
)  # fmt: skip
