"""DeepSeek 2 and 3: latent attention, dense layers first and mixtures of experts after them."""

from typing import Any

from gptailor.checkpoint.families import layer_config as rules
from gptailor.checkpoint.families.compatibility import keys, rope
from gptailor.checkpoint.families.family import EXPERTS_OUT, Family
from gptailor.checkpoint.files import shown


def _dense_first(default: int) -> rules.LayerRule:
    """The first `first_k_dense_replace` layers are dense, the others sparse."""

    def read(config: rules.Config, count: int) -> list[Any]:
        first = rules.int_of(config, "first_k_dense_replace", default)
        if (every := config.get("moe_layer_freq", 1)) != 1:
            raise rules.RuleError(
                f"'moe_layer_freq' is {shown(every)}, which transformers doesn't read"
            )
        return [rules.DENSE if i < first else rules.SPARSE for i in range(count)]

    def write(config: rules.Config, values: rules.Values) -> dict[str, Any]:
        first = list(values).index(rules.SPARSE) if rules.SPARSE in values else len(values)
        for i, value in enumerate(values):
            if value != (rules.DENSE if i < first else rules.SPARSE):
                raise rules.RuleError(
                    "'first_k_dense_replace' makes the first layers dense and all others sparse, "
                    f"and a dense layer would be L{i}, after the sparse L{first}"
                )
        return {**config, "first_k_dense_replace": first}

    return rules.LayerRule("mlp", "mlp", read, write)


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
        (_dense_first(0),),
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
        (_dense_first(3),),
        mlp_out=EXPERTS_OUT,
    ),
)  # fmt: skip
