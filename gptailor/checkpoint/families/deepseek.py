"""DeepSeek 2 and 3: latent attention, dense layers first and mixtures of experts after them."""

from gptailor.checkpoint.families import layer_kinds as kinds
from gptailor.checkpoint.families.compatibility import keys, rope
from gptailor.checkpoint.families.family import EXPERTS_OUT, Family

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
