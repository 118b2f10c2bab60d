"""OPT, XGLM and BioGPT, as fairseq names them; BLOOM and MPT, with slopes for positions (ALiBi)."""

from collections.abc import Mapping
from typing import Any

from gptailor.checkpoint.families.compatibility import ConfigKey, keys
from gptailor.checkpoint.families.family import POST_SUM, Family
from gptailor.checkpoint.families.layer_config import Config


def _no_scale(config: Config) -> str | None:
    """OPT 350M has its norms after the sums; another switch takes the last norm away."""
    if not config.get("do_layer_norm_before", True):
        return POST_SUM
    return "there is no norm before the head" if config.get("_remove_final_layer_norm") else None


def _no_bloom_scale(config: Config) -> str | None:
    if config.get("apply_residual_connection_post_layernorm"):
        return "a branch is added to what a norm made of the hidden state"
    return None


def _attention(config: Config) -> dict[str, Any]:
    """MPT: what of `attn_config` changes a layer's arithmetic."""
    given = config.get("attn_config")
    given = given if isinstance(given, Mapping) else {}
    return {key: given.get(key) for key in ("clip_qkv", "softmax_scale")}


_FAIRSEQ: dict[str, Any] = {
    "attn": ("self_attn_layer_norm.", "self_attn."),
    "attn_out": ("self_attn.out_proj",),
    "mlp": ("final_layer_norm.", "fc1.", "fc2."),
    "mlp_out": ("fc2",),
    "tied": True,
}

OPT = (
    Family(
        ("opt",),
        keys(
            hidden_size=768, num_attention_heads=12, activation_function="relu",
            do_layer_norm_before=True, enable_bias=True, layer_norm_elementwise_affine=True,
        ),
        base="model.decoder.",
        embed=("embed_tokens.weight", "embed_positions.weight", "project_in.weight"),
        norm=("final_layer_norm.weight", "final_layer_norm.bias", "project_out.weight"),
        no_scale=_no_scale, **_FAIRSEQ,
    ),
    Family(
        ("xglm",),
        keys(
            d_model=1024, attention_heads=16, activation_function="gelu", scale_embedding=True,
        ),
        count_key="num_layers", norm=("layer_norm.weight", "layer_norm.bias"), **_FAIRSEQ,
    ),
    Family(
        ("biogpt",),
        keys(
            hidden_size=1024, num_attention_heads=16, hidden_act="gelu", scale_embedding=True,
        ),
        base="biogpt.",
        embed=("embed_tokens.weight", "embed_positions.weight"),
        norm=("layer_norm.weight", "layer_norm.bias"),
        head=("output_projection.weight",), **_FAIRSEQ,
    ),
    Family(
        ("bloom",),
        keys(
            hidden_size=64, n_head=8, layer_norm_epsilon=1e-5,
            apply_residual_connection_post_layernorm=False,
        ),
        base="transformer.", stack="h.", count_key="n_layer",
        embed=(
            "word_embeddings.weight", "word_embeddings_layernorm.weight",
            "word_embeddings_layernorm.bias",
        ),
        norm=("ln_f.weight", "ln_f.bias"),
        attn=("input_layernorm.", "self_attention."), attn_out=("self_attention.dense",),
        mlp_out=("mlp.dense_4h_to_h",), no_scale=_no_bloom_scale, tied=True,
    ),
    Family(
        ("mpt",),
        keys(
            ConfigKey("attn_config", _attention), d_model=2048, n_heads=16, layer_norm_epsilon=1e-5,
        ),
        base="transformer.", stack="blocks.", count_key="n_layers",
        embed=("wte.weight",), norm=("norm_f.weight", "norm_f.bias"),
        attn=("norm_1.", "attn."), attn_out=("attn.out_proj",),
        mlp=("norm_2.", "ffn."), mlp_out=("ffn.down_proj",), tied=True,
    ),
)  # fmt: skip
