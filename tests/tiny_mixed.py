"""What makes mixtures of experts and hybrids tiny; `tests/tiny.py` has the other families."""

from collections.abc import Mapping
from typing import Any

COMMON = {"hidden_size": 16, "num_attention_heads": 4, "vocab_size": 64}
LLAMA = {
    **COMMON,
    "intermediate_size": 24,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}
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
}
