"""ModernBERT as a decoder: its first layer has no norm before its attention."""

from gptailor.checkpoint.families import layer_config as rules
from gptailor.checkpoint.families.compatibility import keys, rope_by_type
from gptailor.checkpoint.families.family import Family

_EVERY = "global_attn_every_n_layers"

MODERNBERT = (
    Family(
        ("modernbert-decoder",),
        keys(
            rope_by_type(
                10_000.0, 160_000.0, local_key="local_rope_theta", wide_key="global_rope_theta"
            ),
            hidden_size=768, num_attention_heads=12, hidden_activation="gelu", norm_eps=1e-5,
            norm_bias=False, attention_bias=False, mlp_bias=False, local_attention=128,
            classifier_activation="gelu",
        ),
        (
            rules.derived("layer_types", "attn", rules.full_at(3, _EVERY), replaces=(_EVERY,)),
            rules.at_end(
                "attn_norm", "attn", "first", "the first layer alone has no norm at its beginning"
            ),
        ),
        embed=(
            "embeddings.tok_embeddings.weight", "embeddings.norm.weight", "embeddings.norm.bias",
        ),
        norm=("final_norm.weight", "final_norm.bias"),
        head=(
            "decoder.weight", "decoder.bias", "lm_head.dense.weight", "lm_head.dense.bias",
            "lm_head.norm.weight", "lm_head.norm.bias",
        ),
        attn=("attn_norm.", "attn."), attn_out=("attn.Wo",),
        mlp=("mlp_norm.", "mlp."), mlp_out=("mlp.Wo",), tied=True,
    ),
)  # fmt: skip
