"""Falcon, in its three forms: branches in a row, side by side after one norm, or after two."""

from gptailor.checkpoint.families.compatibility import keys, rope
from gptailor.checkpoint.families.family import Family
from gptailor.checkpoint.families.layer_config import Config


def _shares_a_norm(config: Config) -> bool:
    """Whether the two branches, side by side, read the output of one norm."""
    if not config.get("parallel_attn", True):
        return False
    two = config.get("num_ln_in_parallel_attn") in {None, 2}
    return not (config.get("new_decoder_architecture", False) and two)


FALCON = (
    Family(
        ("falcon",),
        keys(
            rope(), hidden_size=4544, num_attention_heads=71, num_kv_heads=None, activation="gelu",
            layer_norm_epsilon=1e-5, alibi=False, bias=False, multi_query=True,
            new_decoder_architecture=False, parallel_attn=True,
        ),
        base="transformer.",
        stack="h.",
        embed=("word_embeddings.weight",),
        norm=("ln_f.weight", "ln_f.bias"),
        attn=("input_layernorm.", "ln_attn.", "self_attention."),
        mlp=("post_attention_layernorm.", "ln_mlp.", "mlp."),
        attn_out=("self_attention.dense",),
        mlp_out=("mlp.dense_4h_to_h",),
        one_norm=_shares_a_norm,
        tied=True,
    ),
)  # fmt: skip
