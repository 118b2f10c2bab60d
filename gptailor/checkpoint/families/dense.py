"""Dense decoders: all layers are of one kind, and attend to the whole text."""

from collections.abc import Mapping
from typing import Any

from gptailor.checkpoint.families.compatibility import LLAMA_KEYS, MULTIPLIERS, ConfigKey, rope
from gptailor.checkpoint.families.family import NORMS_AFTER, POST_NORM, POST_SUM, Family, Fold
from gptailor.checkpoint.families.layer_config import Config
from gptailor.checkpoint.families.layer_rules import AtEnd, InPlace, Unset

# ------------------------------------------------------------------------------ built like Llama's

_GLM_KEYS = (rope(), LLAMA_KEYS, "rms_norm_eps")
_APERTUS_KEYS = (rope(), LLAMA_KEYS, "rms_norm_eps")
_APERTUS: dict[str, Any] = {
    "attn": ("attention_layernorm.", "self_attn."),
    "mlp": ("feedforward_layernorm.", "mlp."),
}


def _activation(config: Config) -> Any:
    """Return Gemma's activation: its first configurations mean the approximation by `gelu`."""
    act = config.get("hidden_act", "gelu_pytorch_tanh")
    return "gelu_pytorch_tanh" if act == "gelu" else act


def _attention_multiplier(config: Config) -> Any:
    """Return HyperCLOVA X's factor; without one, a head's width to the power of -1/2."""
    if (multiplier := config.get("attention_multiplier")) is not None:
        return multiplier
    width = config.get("head_dim")
    hidden, heads = config.get("hidden_size", 4096), config.get("num_attention_heads", 32)
    if width is None and isinstance(hidden, int) and isinstance(heads, int) and heads > 0:
        width = hidden // heads
    return width**-0.5 if isinstance(width, int) and width > 0 else None


def _without_post_norm(config: Config) -> str | None:
    if config.get("use_post_norm", True):
        return None
    return "'use_post_norm' is false, and no norm after a branch takes the factor"


_LIKE_LLAMA = (
    Family(("llama",), (rope(), LLAMA_KEYS, "rms_norm_eps mlp_bias")),
    Family(("mistral",), (rope(), LLAMA_KEYS, "rms_norm_eps sliding_window")),
    Family(("ministral3",), (rope(), LLAMA_KEYS, "rms_norm_eps sliding_window")),
    Family(
        ("granite",),
        (rope(), LLAMA_KEYS, "rms_norm_eps mlp_bias attention_multiplier", MULTIPLIERS),
    ),
    Family(
        ("hyperclovax",),
        (
            rope(), ConfigKey("attention_multiplier", _attention_multiplier), LLAMA_KEYS,
            "rms_norm_eps mlp_bias", MULTIPLIERS, "use_post_norm",
        ),
        attn=("input_layernorm.", "self_attn.", "post_norm1."),
        mlp=("post_attention_layernorm.", "mlp.", "post_norm2."),
        folds=(Fold("post_norm1.weight", "divide"), Fold("post_norm2.weight", "divide")),
        no_scale=_without_post_norm, no_bridge=POST_NORM,
    ),
    Family(
        ("stablelm",),
        (
            rope(), "hidden_size num_attention_heads num_key_value_heads hidden_act",
            "layer_norm_eps use_qkv_bias qk_layernorm use_parallel_residual",
        ),
        one_norm=lambda config: bool(config.get("use_parallel_residual", False)),
    ),
    Family(
        ("gemma",),
        (
            rope(), ConfigKey("hidden_act", _activation),
            "hidden_size num_attention_heads num_key_value_heads head_dim rms_norm_eps",
            "attention_bias use_bidirectional_attention",
        ),
        tied=True,
    ),
    Family(
        ("cohere",), (rope(), LLAMA_KEYS, "layer_norm_eps use_qk_norm logit_scale"),
        one_norm=lambda config: True, tied=True,
    ),
    # Its norms have no tensors.
    Family(("olmo",), (rope(), LLAMA_KEYS, "clip_qkv")),
    Family(
        ("olmo2",), (rope(), LLAMA_KEYS, "rms_norm_eps"),
        **NORMS_AFTER,
    ),
    Family(("glm",), _GLM_KEYS),
    # From GLM-4-0414 on, each branch has a norm after it too.
    Family(
        ("glm4",), _GLM_KEYS,
        attn=("input_layernorm.", "self_attn.", "post_self_attn_layernorm."),
        mlp=("post_attention_layernorm.", "mlp.", "post_mlp_layernorm."),
        folds=(
            Fold("post_self_attn_layernorm.weight", "divide"),
            Fold("post_mlp_layernorm.weight", "divide"),
        ),
        no_bridge=POST_NORM,
    ),
    Family(("internlm3",), (rope(), LLAMA_KEYS, "rms_norm_eps mlp_bias")),
    Family(("arcee",), (rope(), LLAMA_KEYS, "rms_norm_eps mlp_bias")),
    # Its projections pass a norm before they add to the hidden state.
    Family(("bitnet",), (rope(), LLAMA_KEYS, "rms_norm_eps")),
    Family(
        ("ernie4_5",),
        (
            rope(), "hidden_size num_attention_heads num_key_value_heads head_dim hidden_act",
            "use_bias rms_norm_eps",
        ),
        tied=True,
    ),
    Family(("helium",), (rope(), LLAMA_KEYS, "rms_norm_eps mlp_bias")),
    Family(("hunyuan_v1_dense",), (rope(), LLAMA_KEYS, "rms_norm_eps")),
    Family(("iquestcoder",), (rope(), LLAMA_KEYS, "rms_norm_eps mlp_bias")),
    Family(("jais2",), (rope(), LLAMA_KEYS, "layer_norm_eps mlp_bias")),
    Family(("nemotron",), (rope(), LLAMA_KEYS, "norm_eps mlp_bias")),
    Family(("seed_oss",), (rope(), LLAMA_KEYS, "attention_out_bias mlp_bias rms_norm_eps")),
    # Its norms have no tensors.
    Family(
        ("nanochat",), (rope(), LLAMA_KEYS, "rms_norm_eps final_logit_softcapping"),
        mlp_out=("mlp.fc2",),
    ),
    # The hidden state is weighed before a branch is added.
    Family(
        ("doge",),
        (rope(), LLAMA_KEYS, "rms_norm_eps mlp_bias sliding_window keep_window_size"),
        (Unset("is_moe", "mlp", "and rows of an embedding are its experts"),),
        attn=("input_layernorm.", "input_residual", "self_attn."),
        mlp=("post_attention_layernorm.", "post_attention_residual", "mlp."),
    ),
    Family(
        ("diffllama",), (rope(), LLAMA_KEYS, "rms_norm_eps"),
        (InPlace("lambda_init", "attn", "a layer's attention reckons with its own number"),),
    ),
    Family(
        ("starcoder2",),
        (
            rope(), "hidden_size num_attention_heads num_key_value_heads hidden_act use_bias",
            "norm_epsilon sliding_window",
        ),
        mlp_out=("mlp.c_proj",), tied=True,
    ),
    Family(("apertus",), _APERTUS_KEYS, **_APERTUS),
    Family(
        ("apertus1p5_text",), _APERTUS_KEYS,
        (Unset("output_vocab_size", "mlp", "and the head lacks the rows of some tokens"),),
        **_APERTUS,
    ),
    Family(
        ("exaone",), (rope(), LLAMA_KEYS, "rms_norm_eps mlp_bias"),
        base="transformer.", stack="h.", count_key="num_layers",
        embed=("wte.weight",), norm=("ln_f.weight",),
        attn=("ln_1.", "attn."), attn_out=("attn.attention.out_proj",),
        # On disk, and as transformers' module has it.
        mlp=("ln_2.", "mlp."), mlp_out=("mlp.c_proj", "mlp.down_proj"),
    ),
    Family(
        ("phi",),
        (
            rope(), "hidden_size num_attention_heads num_key_value_heads hidden_act",
            "layer_norm_eps qk_layernorm",
        ),
        norm=("final_layernorm.weight", "final_layernorm.bias"),
        attn_out=("self_attn.dense",), mlp_out=("mlp.fc2",), one_norm=lambda config: True,
    ),
    Family(
        ("phi3",),
        (
            rope(renamed={"su": "longrope", "yarn": "longrope"}), LLAMA_KEYS,
            "rms_norm_eps sliding_window",
        ),
    ),
    Family(
        ("persimmon",),
        (rope(), "hidden_size num_attention_heads hidden_act layer_norm_eps qk_layernorm"),
        norm=("final_layernorm.weight", "final_layernorm.bias"),
        attn_out=("self_attn.dense",), mlp_out=("mlp.dense_4h_to_h",),
    ),
)  # fmt: skip

# ------------------------------------------ with names of their own, as GPT-2 and fairseq have them

_GPT: dict[str, Any] = {
    "base": "transformer.", "stack": "h.", "count_key": "n_layer",
    "embed": ("wte.weight", "wpe.weight"), "norm": ("ln_f.weight", "ln_f.bias"),
    "attn": ("ln_1.", "attn."), "attn_out": ("attn.c_proj",),
    "mlp": ("ln_2.", "mlp."), "mlp_out": ("mlp.c_proj",), "tied": True,
}  # fmt: skip
_NEOX: dict[str, Any] = {
    "embed": ("embed_in.weight",),
    "norm": ("final_layer_norm.weight", "final_layer_norm.bias"),
    "head": ("embed_out.weight", "lm_head.weight"),
    "attn": ("input_layernorm.", "attention."),
    "mlp_out": ("mlp.dense_4h_to_h",),
}
_NEOX_ROPE = rope(theta_key="rotary_emb_base", partial_key="rotary_pct")
_FAIRSEQ: dict[str, Any] = {
    "attn": ("self_attn_layer_norm.", "self_attn."),
    "attn_out": ("self_attn.out_proj",),
    "mlp": ("final_layer_norm.", "fc1.", "fc2."),
    "mlp_out": ("fc2",),
    "tied": True,
}


def _falcon_shares_a_norm(config: Config) -> bool:
    """Return whether a Falcon's two branches, side by side, read the output of one norm."""
    if not config.get("parallel_attn", True):
        return False
    two = config.get("num_ln_in_parallel_attn") in (None, 2)
    return not (config.get("new_decoder_architecture", False) and two)


def _no_opt_scale(config: Config) -> str | None:
    """Return why OPT has no `scale`: 350M has its norms after the sums; one has no last norm."""
    if not config.get("do_layer_norm_before", True):
        return POST_SUM
    return "there is no norm before the head" if config.get("_remove_final_layer_norm") else None


def _no_bloom_scale(config: Config) -> str | None:
    if config.get("apply_residual_connection_post_layernorm"):
        return "a branch is added to what a norm made of the hidden state"
    return None


def _mpt_attention(config: Config) -> dict[str, Any]:
    """Return the entries of `attn_config` that change a layer's arithmetic."""
    settings = config.get("attn_config")
    settings = settings if isinstance(settings, Mapping) else {}
    return {key: settings.get(key) for key in ("clip_qkv", "softmax_scale")}


_SWITCH = "scale_attn_by_inverse_layer_idx"

_OWN_NAMES = (
    Family(
        ("gpt2", "gpt-sw3"),
        ("n_embd n_head activation_function layer_norm_epsilon scale_attn_weights",),
        (InPlace(_SWITCH, "attn", f"'{_SWITCH}' divides by a layer's own number", _SWITCH),),
        transposed=True, **_GPT,
    ),
    Family(
        ("gpt_bigcode",),
        ("n_embd n_head activation_function layer_norm_epsilon scale_attn_weights multi_query",),
        **_GPT,
    ),
    # The branches stand side by side.
    Family(
        ("gptj", "codegen"), ("n_embd n_head rotary_dim activation_function layer_norm_epsilon",),
        **(_GPT | {
            "embed": ("wte.weight",), "attn_out": ("attn.out_proj",), "mlp": ("mlp.",),
            "mlp_out": ("mlp.fc_out",), "tied": False,
        }),
        one_norm=lambda config: True,
    ),
    # The first GPT, whose norms stand after the sums.
    Family(
        ("openai-gpt",), ("n_embd n_head afn layer_norm_epsilon",),
        **(_GPT | {
            "embed": ("tokens_embed.weight", "positions_embed.weight"), "norm": (),
            "attn": ("attn.", "ln_1."), "mlp": ("mlp.", "ln_2."),
        }),
        no_scale=lambda config: POST_SUM, transposed=True,
    ),
    Family(
        ("ctrl",), ("n_embd n_head",),
        base="transformer.", stack="h.", count_key="n_layer",
        embed=("w.weight",), norm=("layernorm.weight", "layernorm.bias"),
        attn=("layernorm1.", "multi_head_attention."), attn_out=("multi_head_attention.dense",),
        mlp=("layernorm2.", "ffn."), mlp_out=("ffn.2",), roles=(("ffn.0", "mlp.up"),), tied=True,
    ),
    Family(
        ("gpt_neox",),
        (
            _NEOX_ROPE, "hidden_size num_attention_heads hidden_act layer_norm_eps",
            "attention_bias use_parallel_residual",
        ),
        base="gpt_neox.", attn_out=("attention.dense",), **_NEOX,
    ),
    Family(
        ("gpt_neox_japanese",),
        (_NEOX_ROPE, "hidden_size num_attention_heads hidden_act layer_norm_eps"),
        (AtEnd("dense_bias", "attn", "last", "the last layer alone has 'attention.dense_bias'"),),
        base="gpt_neox_japanese.", attn_out=("attention.dense", "attention.dense_bias"), tied=True,
        **_NEOX,
    ),
    Family(
        ("falcon",),
        (
            rope(), "hidden_size num_attention_heads num_kv_heads activation layer_norm_epsilon",
            "alibi bias multi_query new_decoder_architecture parallel_attn",
        ),
        base="transformer.", stack="h.",
        embed=("word_embeddings.weight",), norm=("ln_f.weight", "ln_f.bias"),
        attn=("input_layernorm.", "ln_attn.", "self_attention."),
        attn_out=("self_attention.dense",),
        mlp=("post_attention_layernorm.", "ln_mlp.", "mlp."), mlp_out=("mlp.dense_4h_to_h",),
        one_norm=_falcon_shares_a_norm, tied=True,
    ),
    Family(
        ("bloom",),
        ("hidden_size n_head layer_norm_epsilon apply_residual_connection_post_layernorm",),
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
        (ConfigKey("attn_config", _mpt_attention), "d_model n_heads layer_norm_epsilon"),
        base="transformer.", stack="blocks.", count_key="n_layers",
        embed=("wte.weight",), norm=("norm_f.weight", "norm_f.bias"),
        attn=("norm_1.", "attn."), attn_out=("attn.out_proj",),
        mlp=("norm_2.", "ffn."), mlp_out=("ffn.down_proj",), tied=True,
    ),
    Family(
        ("opt",),
        (
            "hidden_size num_attention_heads activation_function do_layer_norm_before enable_bias",
            "layer_norm_elementwise_affine",
        ),
        base="model.decoder.",
        embed=("embed_tokens.weight", "embed_positions.weight", "project_in.weight"),
        norm=("final_layer_norm.weight", "final_layer_norm.bias", "project_out.weight"),
        no_scale=_no_opt_scale, **_FAIRSEQ,
    ),
    Family(
        ("xglm",), ("d_model attention_heads activation_function scale_embedding",),
        count_key="num_layers", norm=("layer_norm.weight", "layer_norm.bias"), **_FAIRSEQ,
    ),
    Family(
        ("biogpt",), ("hidden_size num_attention_heads hidden_act scale_embedding",),
        base="biogpt.", embed=("embed_tokens.weight", "embed_positions.weight"),
        norm=("layer_norm.weight", "layer_norm.bias"), head=("output_projection.weight",),
        **_FAIRSEQ,
    ),
)  # fmt: skip

DENSE = (*_LIKE_LLAMA, *_OWN_NAMES)
