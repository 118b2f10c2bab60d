"""Tiny configurations of mixtures of experts and hybrids; `tiny.py` has other families."""

from collections.abc import Mapping
from typing import Any

COMMON = {"hidden_size": 16, "num_attention_heads": 4, "vocab_size": 64}
LLAMA = {
    **COMMON,
    "intermediate_size": 24,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}
HEADS = {**LLAMA, "head_dim": 4}
ROUTED = {"moe_intermediate_size": 12, "n_routed_experts": 4, "num_experts_per_tok": 2}
ROUTED_FEW = {"moe_intermediate_size": 12, "num_local_experts": 4, "num_experts_per_tok": 2}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 12}
DELTA = {
    "linear_key_head_dim": 4,
    "linear_value_head_dim": 4,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "head_dim": 8,
}
MAMBA_2 = {
    "mamba_n_heads": 4,
    "mamba_d_head": 8,
    "mamba_n_groups": 1,
    "mamba_d_state": 4,
    "mamba_expand": 2,
    "mamba_chunk_size": 8,
}
STATES = {"hidden_size": 16, "state_size": 4, "vocab_size": 64}

LATENT = {
    **LLAMA,
    **ROUTED,
    "num_key_value_heads": 4,
    "n_shared_experts": 1,
    "q_lora_rank": 8,
    "kv_lora_rank": 8,
    "qk_nope_head_dim": 4,
    "qk_rope_head_dim": 4,
    "v_head_dim": 4,
    "n_group": 2,
    "topk_group": 1,
}
KIMI = {**LATENT, "q_lora_rank": None, "num_local_experts": 4, "first_k_dense_replace": 1}
# Heads enough that no two tokens have the same score: a tie is broken as it comes.
INDEXED = {"index_topk": 4, "index_head_dim": 8, "index_n_heads": 16}

MIXED: Mapping[str, Mapping[str, Any]] = {
    "qwen3_next": {**LLAMA, **EXPERTS, **DELTA, "shared_expert_intermediate_size": 12},
    "qwen3_5_text": {**LLAMA, **DELTA},
    "qwen3_5_moe_text": {**LLAMA, **EXPERTS, **DELTA, "shared_expert_intermediate_size": 12},
    "lfm2": {**LLAMA, "full_attn_idxs": [1, 5], "block_multiple_of": 4},
    "lfm2_moe": {
        **LLAMA,
        **EXPERTS,
        "layer_types": ["conv", "full_attention"] * 3,
        "num_dense_layers": 1,
    },
    "granitemoehybrid": {
        **LLAMA,
        **MAMBA_2,
        "num_local_experts": 4,
        "shared_intermediate_size": 12,
        "residual_multiplier": 0.7,
        "layer_types": ["linear_attention", "full_attention"] * 3,
    },
    "bamba": {**LLAMA, **MAMBA_2, "attn_layer_indices": [1, 3]},
    "falcon_h1": {**LLAMA, **MAMBA_2, "mamba_d_ssm": 32, "head_dim": 4, "ssm_out_multiplier": 0.7},
    "jamba": {
        **LLAMA,
        "num_experts": 4,
        "mamba_d_state": 4,
        "mamba_dt_rank": 4,
        "attn_layer_period": 3,
        "expert_layer_period": 1,
        "expert_layer_offset": 0,
        "attn_layer_offset": 1,
        "use_mamba_kernels": False,
    },
    "recurrent_gemma": {**LLAMA, "attention_window_size": 4},
    "mamba": STATES,
    "mamba2": {**STATES, "num_heads": 4, "head_dim": 8, "n_groups": 2, "chunk_size": 8},
    "falcon_mamba": STATES,
    "nemotron_h": {
        **LLAMA,
        "layers_block_type": [
            "linear_attention",
            "moe",
            "mlp",
            "full_attention",
            "moe",
            "linear_attention",
        ],
        "head_dim": 4,
        "ssm_state_size": 4,
        "mamba_num_heads": 4,
        "mamba_head_dim": 8,
        "n_groups": 2,
        "chunk_size": 8,
        "time_step_min": 1e-9,  # steps are held above it without a cache, and not with one
        "n_routed_experts": 4,
        "moe_intermediate_size": 12,
        "moe_shared_expert_intermediate_size": 12,
    },
    "gpt_oss": {**HEADS, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 4},
    "llama4_text": {
        **HEADS,
        "intermediate_size_mlp": 20,
        "num_local_experts": 4,
        "interleave_moe_layer_step": 2,
        "no_rope_layer_interval": 3,
        "attention_chunk_size": 4,
    },
    "minimax_m2": {**LLAMA, "head_dim": 8, "num_local_experts": 4, "num_experts_per_tok": 2},
    "glm4_moe": {**LLAMA, **ROUTED, "head_dim": 8},
    "solar_open": {**HEADS, **ROUTED},
    "sarvam_moe": {**HEADS, **ROUTED},
    "dots1": {**HEADS, **ROUTED, "n_shared_experts": 1, "first_k_dense_replace": 1},
    "ernie4_5_moe": {**LLAMA, "moe_intermediate_size": 12, "moe_k": 2, "moe_num_experts": 4},
    "hunyuan_v1_moe": {**HEADS, "num_experts": 4, "moe_topk": [2, 1, 2, 2, 1, 2]},
    "hy_v3": {**HEADS, **EXPERTS},
    "olmoe": {**LLAMA, "num_experts": 4, "num_experts_per_tok": 2},
    "flex_olmo": {**LLAMA, "num_experts": 4, "num_experts_per_tok": 2},
    "phimoe": {**LLAMA, "num_local_experts": 4},
    "granitemoe": {**LLAMA, "num_local_experts": 4, "residual_multiplier": 0.7},
    "granitemoeshared": {**LLAMA, "num_local_experts": 4, "shared_intermediate_size": 12},
    "granitemoe_swa": {
        **LLAMA,
        "num_local_experts": 4,
        "shared_intermediate_size": 12,
        "sliding_window": 4,
        "layer_rope_theta": [10000.0, 500.0, 0, 10000.0, 500.0, 10000.0],
    },
    "exaone_moe": {**HEADS, **EXPERTS, "sliding_window": 4},
    "afmoe": {**HEADS, **EXPERTS, "sliding_window": 4},
    "laguna": {
        **HEADS,
        **EXPERTS,
        "shared_expert_intermediate_size": 12,
        "sliding_window": 4,
        "layer_types": ["full_attention", "full_attention", "sliding_attention"] * 2,
        "num_attention_heads_per_layer": [4, 8, 4, 4, 4, 8],
    },
    "mellum": {
        **HEADS,
        **EXPERTS,
        "sliding_window": 4,
        "layer_types": ["full_attention", "sliding_attention"] * 3,
    },
    "aria_text": {**LLAMA, "moe_num_experts": 4},
    "deepseek_v32": {**LATENT, **INDEXED, "first_k_dense_replace": 1},
    "glm_moe_dsa": {**LATENT, **INDEXED, "first_k_dense_replace": 1},
    "glm4_moe_lite": LATENT,
    "sarvam_mla": LATENT,
    "axk1": LATENT,
    "axk2": {**LATENT, **INDEXED, "gated_norm_rank": 4},
    "kimi_linear": {
        **KIMI,
        "linear_head_dim": 4,
        "linear_num_heads": 4,
        "layer_types": ["linear_attention"] * 3 + ["full_attention"] + ["linear_attention"] * 2,
    },
    "bailing_hybrid": {**KIMI, "head_dim": 4, "layer_group_size": 2, "num_mtp_layers": 0},
    "gemma4_text": {
        **HEADS,
        "sliding_window": 4,
        "hidden_size_per_layer_input": 0,
        "global_head_dim": 8,
        "attention_k_eq_v": True,
        "num_global_key_value_heads": 1,
        "layer_types": ["sliding_attention"]
        + ["full_attention"] * 3
        + ["sliding_attention", "full_attention"],
    },
    "gemma4_unified_text": {
        **HEADS,
        "sliding_window": 4,
        "global_head_dim": 8,
        "layer_types": ["sliding_attention"]
        + ["full_attention"] * 3
        + ["sliding_attention", "full_attention"],
    },
    "kolibri1": {**HEADS, **ROUTED_FEW, "shared_expert_intermediate_size": 12, "sliding_window": 4},
    "flint": {**HEADS, **EXPERTS, "shared_expert_intermediate_size": 12, "sliding_window": 4},
    "mimo_v2_flash": {**LLAMA, **ROUTED, "head_dim": 8, "v_head_dim": 4, "sliding_window": 4},
    "jetmoe": {
        **COMMON,
        "intermediate_size": 24,
        "num_key_value_heads": 2,
        "kv_channels": 4,
        "num_local_experts": 4,
    },
    "cohere2_moe": {
        **HEADS,
        "num_experts": 4,
        "num_shared_experts": 1,
        "sliding_window": 4,
        "first_k_dense_replace": 1,
    },
    "lara_mini": {
        **LLAMA,
        **EXPERTS,
        **DELTA,
        "shared_expert_intermediate_size": 12,
        "sliding_window": 4,
    },
    "lfm3": {
        **HEADS,
        "sliding_window": 4,
        "layer_types": ["conv", "full_attention", "conv", "sliding_attention", "conv", "conv"],
    },
    "olmo_hybrid": {**LLAMA, "linear_key_head_dim": 4, "linear_value_head_dim": 4},
    "dbrx": {
        "d_model": 16,
        "n_heads": 4,
        "n_layers": 6,
        "max_seq_len": 128,
        "vocab_size": 64,
        "attn_config": {"kv_n_heads": 2, "clip_qkv": 8, "rope_theta": 10000.0},
        "ffn_config": {"ffn_hidden_size": 24, "moe_num_experts": 4, "moe_top_k": 2},
    },
}
