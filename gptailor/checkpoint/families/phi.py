"""Phi 1 to 3, and Persimmon, which names its tensors as they do."""

from gptailor.checkpoint.families.compatibility import keys, rope
from gptailor.checkpoint.families.family import Family, llama_keys

PHI = (
    Family(
        ("phi",),
        keys(
            rope(partial=0.5), hidden_size=2048, num_attention_heads=32, num_key_value_heads=None,
            hidden_act="gelu_new", layer_norm_eps=1e-5, qk_layernorm=False,
        ),
        norm=("final_layernorm.weight", "final_layernorm.bias"),
        attn_out=("self_attn.dense",), mlp_out=("mlp.fc2",),
        one_norm=lambda config: True,
    ),
    Family(
        ("phi3",),
        llama_keys(
            rope(renamed={"su": "longrope", "yarn": "longrope"}), 3072, 32, None,
            rms_norm_eps=1e-5, sliding_window=None,
        ),
    ),
    Family(
        ("persimmon",),
        keys(
            rope(partial=0.5), hidden_size=4096, num_attention_heads=64, hidden_act="relu2",
            layer_norm_eps=1e-5, qk_layernorm=True,
        ),
        norm=("final_layernorm.weight", "final_layernorm.bias"),
        attn_out=("self_attn.dense",), mlp_out=("mlp.dense_4h_to_h",),
    ),
)  # fmt: skip
