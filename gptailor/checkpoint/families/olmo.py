"""OLMo 1, whose norms have no tensors, and OLMo 2, whose norms stand after each branch."""

from gptailor.checkpoint.families.compatibility import rope
from gptailor.checkpoint.families.family import POST_NORM, Family, Fold, llama_keys

OLMO = (
    Family(("olmo",), llama_keys(rope(), 4096, 32, None, clip_qkv=None)),
    Family(
        ("olmo2",),
        llama_keys(rope(), 4096, 32, None, rms_norm_eps=1e-5),
        attn=("self_attn.", "post_attention_layernorm."),
        mlp=("mlp.", "post_feedforward_layernorm."),
        # The branches read the hidden state without a norm before them, so c is put back there.
        folds=(
            *(Fold(f"self_attn.{name}_proj.weight", "multiply") for name in "qkv"),
            Fold("mlp.gate_proj.weight", "multiply"),
            Fold("mlp.up_proj.weight", "multiply"),
            Fold("post_attention_layernorm.weight", "divide"),
            Fold("post_feedforward_layernorm.weight", "divide"),
        ),
        no_bridge=POST_NORM,
    ),
)
