"""The table of architectures: how each names its tensors, and what moves with its layers.

The truth is in transformers' `models/*/modeling_*.py` and in the checkpoints on the Hub;
`tests/checkpoint/test_families.py` compares each entry with it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from gptailor.checkpoint.families.compatibility import (
    ConfigKey,
    gated_window,
    gemma_activation,
    keys,
    rope,
    rope_by_type,
)
from gptailor.checkpoint.families.layer_config import (
    ROTATION,
    Config,
    LayerRule,
    after_full_ones,
    alternating,
    dense_first,
    derived,
    even_below_bound,
    in_place,
    keep_max_window_layers,
    sliding,
    sparse_steps,
    without_rotation,
)

How = Literal["divide", "multiply", "divide_offset"]


@dataclass(frozen=True, slots=True)
class Fold:
    """What becomes of a tensor in a layer whose incoming hidden state is 1/c of what it was.

    `divide` is w/c, `multiply` is w·c, and `divide_offset` is (1 + w)/c - 1, for a norm that
    multiplies by 1 + w. In the name, `*` stands for one part between dots.
    """

    tensor: str
    how: How


def never(config: Config) -> bool:
    """Of no configuration."""
    return False


def always(config: Config) -> bool:
    """Of every configuration."""
    return True


@dataclass(frozen=True)
class Family:
    """An architecture. Names within a layer start after its number and dot.

    `base` and `stack` make the prefix of a layer; `embed` and `norm` stand under `base`, `head`
    doesn't. `attn` and `mlp` are the prefixes of each part's tensors. `attn_out` and `mlp_out` are
    the projections whose output each part adds to the hidden state (`*`: one part between dots);
    `folds` is what `scale` does where it isn't dividing these.
    """

    model_types: tuple[str, ...]
    keys: tuple[ConfigKey, ...]
    rules: tuple[LayerRule, ...] = ()
    base: str = "model."
    stack: str = "layers."
    count_key: str = "num_hidden_layers"
    embed: tuple[str, ...] = ("embed_tokens.weight",)
    norm: tuple[str, ...] = ("norm.weight", "norm.bias")
    head: tuple[str, ...] = ("lm_head.weight", "lm_head.bias")
    attn: tuple[str, ...] = ("input_layernorm.", "self_attn.")
    mlp: tuple[str, ...] = ("post_attention_layernorm.", "mlp.")
    attn_out: tuple[str, ...] = ("self_attn.o_proj",)
    mlp_out: tuple[str, ...] = ("mlp.down_proj",)
    folds: tuple[Fold, ...] = ()
    no_bridge: str | None = None
    one_norm: Callable[[Config], bool] = never
    transposed: bool = False
    tied: bool = False


def llama_keys(
    rotary: ConfigKey,
    hidden_size: int,
    heads: int,
    kv: int | None,
    /,
    *others: ConfigKey,
    **more: Any,
) -> tuple[ConfigKey, ...]:
    """The keys of families that are built like Llama, and `more`, with what their absence means."""
    names: dict[str, Any] = {
        "hidden_size": hidden_size,
        "num_attention_heads": heads,
        "num_key_value_heads": kv,
        "head_dim": None,
        "hidden_act": "silu",
        "attention_bias": False,
    }
    return keys(rotary, *others, **{**names, **more})


def falcon_shares_a_norm(config: Config) -> bool:
    """Whether a Falcon's two branches, side by side, read the output of one norm."""
    if not config.get("parallel_attn", True):
        return False
    two = config.get("num_ln_in_parallel_attn") in {None, 2}
    return not (config.get("new_decoder_architecture", False) and two)


def stablelm_shares_a_norm(config: Config) -> bool:
    """Whether a StableLM's two branches, side by side, read the output of one norm."""
    return bool(config.get("use_parallel_residual", False))


POST_NORM = "the MLP branch passes a norm before it is added to the hidden state"

EXPERTS_OUT = (
    "mlp.down_proj",
    "mlp.experts.down_proj",
    "mlp.experts.*.down_proj",
    "mlp.shared_expert.down_proj",
    "mlp.shared_experts.down_proj",
)
"""Of a dense layer; of a sparse one, its experts in one tensor or apart."""

FOUR_NORMS: dict[str, Any] = {
    "attn": ("input_layernorm.", "self_attn.", "post_attention_layernorm."),
    "mlp": ("pre_feedforward_layernorm.", "mlp.", "post_feedforward_layernorm."),
    "folds": (
        Fold("post_attention_layernorm.weight", "divide_offset"),
        Fold("post_feedforward_layernorm.weight", "divide_offset"),
    ),
    "no_bridge": POST_NORM,
    "tied": True,
}
"""Gemma 2 and 3: a norm before and one after each branch."""

QWEN_WINDOWS = sliding(
    derived("layer_types", "attn", after_full_ones, keep=keep_max_window_layers), gated=True
)
PATTERN_KEYS = ("sliding_window_pattern", "_sliding_window_pattern")

LLAMA = Family(("llama",), llama_keys(rope(), 4096, 32, None, rms_norm_eps=1e-6, mlp_bias=False))

_TABLE = (
    LLAMA,
    Family(
        ("mistral",),
        llama_keys(rope(), 4096, 32, 8, rms_norm_eps=1e-6, sliding_window=4096),
    ),
    Family(
        ("mixtral",),
        llama_keys(
            rope(1_000_000.0),
            4096,
            32,
            8,
            rms_norm_eps=1e-5,
            sliding_window=None,
            num_local_experts=8,
            num_experts_per_tok=2,
        ),
        mlp=("post_attention_layernorm.", "block_sparse_moe.", "mlp."),
        mlp_out=("block_sparse_moe.experts.*.w2", "mlp.experts.*.w2", "mlp.experts.down_proj"),
    ),
    Family(("qwen2",), llama_keys(rope(), 4096, 32, 32, rms_norm_eps=1e-6), QWEN_WINDOWS),
    Family(
        ("qwen2_moe",),
        llama_keys(
            rope(),
            2048,
            16,
            16,
            rms_norm_eps=1e-6,
            qkv_bias=True,
            num_experts=60,
            num_experts_per_tok=4,
            norm_topk_prob=False,
        ),
        (*sliding(derived("layer_types", "attn", even_below_bound), gated=True), sparse_steps(60)),
        mlp_out=EXPERTS_OUT,
    ),
    Family(
        ("qwen3",), llama_keys(rope(), 4096, 32, 32, head_dim=128, rms_norm_eps=1e-6), QWEN_WINDOWS
    ),
    Family(
        ("qwen3_moe",),
        llama_keys(
            rope(),
            2048,
            32,
            4,
            gated_window(4096),
            rms_norm_eps=1e-6,
            num_experts=128,
            num_experts_per_tok=8,
            norm_topk_prob=False,
        ),
        (sparse_steps(128),),
        mlp_out=EXPERTS_OUT,
    ),
    Family(
        ("gemma",),
        keys(
            rope(),
            ConfigKey("hidden_act", gemma_activation),
            hidden_size=3072,
            num_attention_heads=16,
            num_key_value_heads=16,
            head_dim=256,
            rms_norm_eps=1e-6,
            attention_bias=False,
            use_bidirectional_attention=None,
        ),
        tied=True,
    ),
    Family(
        ("gemma2",),
        keys(
            rope(),
            hidden_size=2304,
            num_attention_heads=8,
            num_key_value_heads=4,
            head_dim=256,
            hidden_activation="gelu_pytorch_tanh",
            rms_norm_eps=1e-6,
            attention_bias=False,
            query_pre_attn_scalar=256,
            attn_logit_softcapping=50.0,
            final_logit_softcapping=30.0,
            use_bidirectional_attention=None,
        ),
        sliding(derived("layer_types", "attn", alternating(2))),
        **FOUR_NORMS,
    ),
    Family(
        ("gemma3_text",),
        keys(
            rope_by_type(local=10_000.0, wide=1_000_000.0),
            hidden_size=2304,
            num_attention_heads=8,
            num_key_value_heads=4,
            head_dim=256,
            hidden_activation="gelu_pytorch_tanh",
            rms_norm_eps=1e-6,
            attention_bias=False,
            query_pre_attn_scalar=256,
            attn_logit_softcapping=None,
            final_logit_softcapping=None,
            use_bidirectional_attention=False,
        ),
        sliding(
            derived("layer_types", "attn", alternating(6, PATTERN_KEYS[0]), replaces=PATTERN_KEYS)
        ),
        **FOUR_NORMS,
    ),
    Family(
        ("phi3",),
        llama_keys(
            rope(renamed={"su": "longrope", "yarn": "longrope"}),
            3072,
            32,
            None,
            rms_norm_eps=1e-5,
            sliding_window=None,
        ),
    ),
    Family(
        ("smollm3",),
        llama_keys(rope(2_000_000.0), 2048, 16, 4, rms_norm_eps=1e-6, mlp_bias=False),
        (
            ROTATION,
            *sliding(derived("layer_types", "attn", without_rotation), gated=True, default=None),
        ),
        tied=True,
    ),
    Family(("olmo",), llama_keys(rope(), 4096, 32, None, clip_qkv=None)),  # norms without tensors
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
    Family(
        ("granite",),
        llama_keys(
            rope(),
            4096,
            32,
            None,
            rms_norm_eps=1e-6,
            mlp_bias=False,
            attention_multiplier=1.0,
            residual_multiplier=1.0,
            embedding_multiplier=1.0,
            logits_scaling=1.0,
        ),
    ),
    Family(
        ("stablelm",),
        keys(
            rope(partial=0.25),
            hidden_size=2560,
            num_attention_heads=32,
            num_key_value_heads=32,
            hidden_act="silu",
            layer_norm_eps=1e-5,
            use_qkv_bias=False,
            qk_layernorm=False,
            use_parallel_residual=False,
        ),
        one_norm=stablelm_shares_a_norm,
    ),
    Family(
        ("cohere",),
        llama_keys(
            rope(500_000.0),
            8192,
            64,
            None,
            layer_norm_eps=1e-5,
            use_qk_norm=False,
            logit_scale=0.0625,
        ),
        one_norm=always,
        tied=True,
    ),
    Family(
        ("cohere2",),
        llama_keys(rope(), 8192, 64, None, layer_norm_eps=1e-5, logit_scale=0.0625),
        sliding(
            derived("layer_types", "attn", alternating(4, PATTERN_KEYS[0]), replaces=PATTERN_KEYS)
        ),
        one_norm=always,
        tied=True,
    ),
    Family(
        ("gpt2",),
        keys(
            n_embd=768,
            n_head=12,
            activation_function="gelu_new",
            layer_norm_epsilon=1e-5,
            scale_attn_weights=True,
        ),
        (in_place("scale_attn_by_inverse_layer_idx", "divides by a layer's own number"),),
        base="transformer.",
        stack="h.",
        count_key="n_layer",
        embed=("wte.weight", "wpe.weight"),
        norm=("ln_f.weight", "ln_f.bias"),
        attn=("ln_1.", "attn."),
        mlp=("ln_2.", "mlp."),
        attn_out=("attn.c_proj",),
        mlp_out=("mlp.c_proj",),
        transposed=True,
        tied=True,
    ),
    Family(
        ("gpt_neox",),
        keys(
            rope(partial=0.25, theta_key="rotary_emb_base", partial_key="rotary_pct"),
            hidden_size=6144,
            num_attention_heads=64,
            hidden_act="gelu",
            layer_norm_eps=1e-5,
            attention_bias=True,
            use_parallel_residual=True,
        ),
        base="gpt_neox.",
        embed=("embed_in.weight",),
        norm=("final_layer_norm.weight", "final_layer_norm.bias"),
        head=("embed_out.weight", "lm_head.weight"),
        attn=("input_layernorm.", "attention."),
        attn_out=("attention.dense",),
        mlp_out=("mlp.dense_4h_to_h",),
    ),
    Family(
        ("falcon",),
        keys(
            rope(),
            hidden_size=4544,
            num_attention_heads=71,
            num_kv_heads=None,
            activation="gelu",
            layer_norm_epsilon=1e-5,
            alibi=False,
            bias=False,
            multi_query=True,
            new_decoder_architecture=False,
            parallel_attn=True,
        ),
        base="transformer.",
        stack="h.",
        embed=("word_embeddings.weight",),
        norm=("ln_f.weight", "ln_f.bias"),
        attn=("input_layernorm.", "ln_attn.", "self_attention."),
        mlp=("post_attention_layernorm.", "ln_mlp.", "mlp."),
        attn_out=("self_attention.dense",),
        mlp_out=("mlp.dense_4h_to_h",),
        one_norm=falcon_shares_a_norm,
        tied=True,
    ),
    Family(
        ("deepseek_v2",),
        keys(
            rope(),
            hidden_size=4096,
            num_attention_heads=32,
            hidden_act="silu",
            rms_norm_eps=1e-6,
            attention_bias=False,
            mlp_bias=False,
            q_lora_rank=1536,
            kv_lora_rank=512,
            qk_nope_head_dim=128,
            qk_rope_head_dim=64,
            v_head_dim=128,
            n_routed_experts=64,
            n_shared_experts=2,
            num_experts_per_tok=None,
            n_group=None,
            topk_group=None,
            topk_method="greedy",
            norm_topk_prob=False,
            routed_scaling_factor=1.0,
        ),
        (dense_first(0),),
        mlp_out=EXPERTS_OUT,
    ),
    Family(
        ("deepseek_v3",),
        keys(
            rope(),
            hidden_size=7168,
            num_attention_heads=128,
            hidden_act="silu",
            rms_norm_eps=1e-6,
            attention_bias=False,
            q_lora_rank=1536,
            kv_lora_rank=512,
            qk_nope_head_dim=128,
            qk_rope_head_dim=64,
            v_head_dim=128,
            n_routed_experts=256,
            n_shared_experts=1,
            num_experts_per_tok=8,
            n_group=8,
            topk_group=4,
            norm_topk_prob=True,
            routed_scaling_factor=2.5,
            rope_interleave=True,
        ),
        (dense_first(3),),
        mlp_out=EXPERTS_OUT,
    ),
)

FAMILIES: dict[str, Family] = {name: family for family in _TABLE for name in family.model_types}
