"""GLM 4: gate and up are one tensor; from GLM-4-0414 on, each branch has a norm after it too."""

from gptailor.checkpoint.families.compatibility import rope
from gptailor.checkpoint.families.family import POST_NORM, Family, Fold, llama_keys

_KEYS = llama_keys(
    rope(partial=0.5), 4096, 32, 2, head_dim=128, attention_bias=True, rms_norm_eps=1.5625e-07
)

GLM = (
    Family(("glm",), _KEYS),
    Family(
        ("glm4",),
        _KEYS,
        attn=("input_layernorm.", "self_attn.", "post_self_attn_layernorm."),
        mlp=("post_attention_layernorm.", "mlp.", "post_mlp_layernorm."),
        folds=(
            Fold("post_self_attn_layernorm.weight", "divide"),
            Fold("post_mlp_layernorm.weight", "divide"),
        ),
        no_bridge=POST_NORM,
    ),
)
