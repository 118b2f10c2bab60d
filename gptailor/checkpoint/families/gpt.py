"""GPT-2, GPT-NeoX, Falcon, StarCoder: names of their own; query, key and value are one tensor."""

from typing import Any

from gptailor.checkpoint.families.compatibility import keys, rope
from gptailor.checkpoint.families.family import Family
from gptailor.checkpoint.families.layer_config import (
    Config,
    LayerRule,
    RuleError,
    Values,
    at_end,
)


def _in_place(key: str, what: str) -> LayerRule:
    """A switch that makes a layer compute with its own number: a layer stays where it is."""

    def read(config: Config, count: int) -> list[Any]:
        return list(range(count)) if config.get(key) else [None] * count

    def write(config: Config, values: Values) -> dict[str, Any]:
        for i, value in enumerate(values):
            if config.get(key) and value is None:
                raise RuleError(f"'{key}' is set for all layers, and L{i}'s own model has it unset")
            if value is not None and (value != i or not config.get(key)):
                raise RuleError(f"'{key}' {what}, and L{value} would be L{i}")
        return dict(config)

    return LayerRule(key, "attn", read, write)


def _falcon_shares_a_norm(config: Config) -> bool:
    """Whether a Falcon's two branches, side by side, read the output of one norm."""
    if not config.get("parallel_attn", True):
        return False
    two = config.get("num_ln_in_parallel_attn") in (None, 2)
    return not (config.get("new_decoder_architecture", False) and two)


GPT = (
    Family(
        ("gpt2", "gpt-sw3"),
        keys(
            n_embd=768, n_head=12, activation_function="gelu_new", layer_norm_epsilon=1e-5,
            scale_attn_weights=True,
        ),
        (_in_place("scale_attn_by_inverse_layer_idx", "divides by a layer's own number"),),
        base="transformer.", stack="h.", count_key="n_layer",
        embed=("wte.weight", "wpe.weight"), norm=("ln_f.weight", "ln_f.bias"),
        attn=("ln_1.", "attn."), attn_out=("attn.c_proj",),
        mlp=("ln_2.", "mlp."), mlp_out=("mlp.c_proj",),
        transposed=True, tied=True,
    ),
    Family(
        ("gpt_neox",),
        keys(
            rope(partial=0.25, theta_key="rotary_emb_base", partial_key="rotary_pct"),
            hidden_size=6144, num_attention_heads=64, hidden_act="gelu", layer_norm_eps=1e-5,
            attention_bias=True, use_parallel_residual=True,
        ),
        base="gpt_neox.",
        embed=("embed_in.weight",), norm=("final_layer_norm.weight", "final_layer_norm.bias"),
        head=("embed_out.weight", "lm_head.weight"),
        attn=("input_layernorm.", "attention."), attn_out=("attention.dense",),
        mlp_out=("mlp.dense_4h_to_h",),
    ),
    Family(
        ("gpt_neox_japanese",),
        keys(
            rope(theta_key="rotary_emb_base", partial_key="rotary_pct"),
            hidden_size=2560, num_attention_heads=32, hidden_act="gelu", layer_norm_eps=1e-5,
        ),
        (at_end("dense_bias", "attn", "last", "the last layer alone has 'attention.dense_bias'"),),
        base="gpt_neox_japanese.",
        embed=("embed_in.weight",), norm=("final_layer_norm.weight", "final_layer_norm.bias"),
        head=("embed_out.weight", "lm_head.weight"),
        attn=("input_layernorm.", "attention."),
        attn_out=("attention.dense", "attention.dense_bias"),
        mlp_out=("mlp.dense_4h_to_h",), tied=True,
    ),
    Family(
        ("gpt_bigcode",),
        keys(
            n_embd=768, n_head=12, activation_function="gelu_pytorch_tanh",
            layer_norm_epsilon=1e-5, scale_attn_weights=True, multi_query=True,
        ),
        base="transformer.", stack="h.", count_key="n_layer",
        embed=("wte.weight", "wpe.weight"), norm=("ln_f.weight", "ln_f.bias"),
        attn=("ln_1.", "attn."), attn_out=("attn.c_proj",),
        mlp=("ln_2.", "mlp."), mlp_out=("mlp.c_proj",), tied=True,
    ),
    Family(
        ("falcon",),
        keys(
            rope(), hidden_size=4544, num_attention_heads=71, num_kv_heads=None, activation="gelu",
            layer_norm_epsilon=1e-5, alibi=False, bias=False, multi_query=True,
            new_decoder_architecture=False, parallel_attn=True,
        ),
        base="transformer.", stack="h.",
        embed=("word_embeddings.weight",), norm=("ln_f.weight", "ln_f.bias"),
        attn=("input_layernorm.", "ln_attn.", "self_attention."),
        attn_out=("self_attention.dense",),
        mlp=("post_attention_layernorm.", "ln_mlp.", "mlp."), mlp_out=("mlp.dense_4h_to_h",),
        one_norm=_falcon_shares_a_norm, tied=True,
    ),
)  # fmt: skip
