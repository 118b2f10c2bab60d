"""The architectures that GGUF files are read of: what each one is, and what it says of itself."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from gptailor.checkpoint.formats.gguf_names import (
    CLASSIC_LAYERS,
    CLASSIC_REST,
    FALCON_40B_STEMS,
    LAYER_STEMS,
    MIXTRAL_STEMS,
)
from gptailor.checkpoint.formats.read_architecture import FileFacts, ReadArchitecture

_GELU = {"hidden_act": "gelu_pytorch_tanh", "hidden_activation": "gelu_pytorch_tanh"}
"""Gemma's activation, under the two keys that its configurations have it."""


_WINDOW = "attention.sliding_window"
_LOCAL_BASE = "rope.freq_base_swa"
_PATTERN = "attention.sliding_window_pattern"


def _gemma2(facts: FileFacts) -> dict[str, Any]:
    return {
        **_GELU,
        "attn_logit_softcapping": facts.real("attn_logit_softcapping"),
        "final_logit_softcapping": facts.real("final_logit_softcapping"),
        "layer_types": _layer_types(facts, 2),
        "query_pre_attn_scalar": _query_scalar(facts, 46),
        "sliding_window": facts.count(_WINDOW),
    }


def _gemma3(facts: FileFacts) -> dict[str, Any]:
    rope, local = facts.rope(), facts.real(_LOCAL_BASE, 10_000.0)
    older: dict[str, Any] = {"rope_theta": rope["rope_theta"], "rope_local_base_freq": local}
    if rope["rope_type"] != "default":
        older["rope_scaling"] = {key: rope[key] for key in rope if key != "rope_theta"}
    return {
        **_GELU,
        "query_pre_attn_scalar": _query_scalar(facts, 62),
        "sliding_window": facts.count(_WINDOW),
        "layer_types": _layer_types(facts, 6),
        "rope_parameters": {
            "full_attention": rope,
            "sliding_attention": {"rope_theta": local, "rope_type": "default"},
        },
        **older,
    }


def _layer_types(facts: FileFacts, period: int) -> list[str]:
    """Which layers slide: all but the last of each period, or those that the file lists."""
    said = facts.fact(_PATTERN)
    if not isinstance(said, tuple):
        period = facts.count(_PATTERN, period)
        slides = [(number + 1) % period != 0 for number in range(facts.layers)]
    elif len(said) == facts.layers and all(each in (0, 1) for each in said):
        slides = [bool(each) for each in said]
    else:
        facts.refuse(f"'{_PATTERN}' is no list of {facts.layers} yes or no")
    return ["sliding_attention" if each else "full_attention" for each in slides]


def _query_scalar(facts: FileFacts, layers_of_27b: int) -> int:
    """What queries are divided by the root of: files don't say, and llama.cpp knows by the size."""
    return facts.hidden // facts.heads if facts.layers == layers_of_27b else facts.head


_NO_TOKENS = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
"""In place of a class's own: tokens of the vocabulary of those who made its models."""


def _phi3(facts: FileFacts) -> dict[str, Any]:
    return {
        **_NO_TOKENS,
        # Phi 4, whose layers don't slide, says 0.
        "sliding_window": None if facts.fact(_WINDOW) == 0 else facts.count(_WINDOW),
    }


def _mixtral(facts: FileFacts) -> dict[str, Any]:
    return {
        "num_local_experts": facts.count("expert_count"),
        "num_experts_per_tok": facts.count("expert_used_count"),
        "sliding_window": None,
    }


def _qwen_moe(facts: FileFacts) -> dict[str, Any]:
    return {
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "moe_intermediate_size": facts.count("expert_feed_forward_length"),
        "num_experts": facts.count("expert_count"),
        "num_experts_per_tok": facts.count("expert_used_count"),
    }


def _qwen2moe(facts: FileFacts) -> dict[str, Any]:
    shared = facts.count("expert_shared_feed_forward_length")
    return _qwen_moe(facts) | {"norm_topk_prob": False, "shared_expert_intermediate_size": shared}


def _qwen3moe(facts: FileFacts) -> dict[str, Any]:
    return _qwen_moe(facts) | {"attention_bias": False, "norm_topk_prob": True}


def _biases(facts: FileFacts) -> dict[str, Any]:
    return {"attention_bias": facts.biased >= _ATTENTION, "mlp_bias": facts.biased >= _MLP}


def _granite(facts: FileFacts) -> dict[str, Any]:
    if facts.fact("rope.scaling.finetuned") is False:
        facts.refuse("says that nothing is rotated in it, as no model of 'granite' is")
    return {
        **_NO_TOKENS,
        **_biases(facts),
        # llama.cpp's where nothing is said.
        "attention_multiplier": facts.real("attention.scale", facts.head**-0.5),
        "embedding_multiplier": facts.real("embedding_scale", 1.0),
        "logits_scaling": facts.real("logit_scale"),
        "residual_multiplier": facts.real("residual_scale", 1.0),
    }


def _olmo3(facts: FileFacts) -> dict[str, Any]:
    rope = facts.rope()
    local = {"rope_type": "default", "rope_theta": facts.real(_LOCAL_BASE, rope["rope_theta"])}
    return {
        **_NO_TOKENS,
        "attention_bias": False,
        "layer_types": _layer_types(facts, 4),
        "rope_parameters": {"full_attention": rope, "sliding_attention": local},
        "sliding_window": facts.count(_WINDOW),
    }


def _cohere(facts: FileFacts) -> dict[str, Any]:
    return {
        **_NO_TOKENS,
        "attention_bias": False,
        "logit_scale": facts.real("logit_scale"),
        "tie_word_embeddings": True,
        "use_qk_norm": "attn_q_norm" in facts.stems,
    }


def _starcoder2(facts: FileFacts) -> dict[str, Any]:
    activation = {"hidden_act": "gelu_pytorch_tanh"}
    # llama.cpp has no window for it, and its converter writes none.
    return {**_NO_TOKENS, **activation, "sliding_window": None, "use_bias": True}


def _stablelm(facts: FileFacts) -> dict[str, Any]:
    rope, rotated = facts.rope(), facts.count("rope.dimension_count", facts.head)
    share = rotated / facts.head
    if int(facts.head * share) != rotated:
        facts.refuse(f"rotates {rotated} of {facts.head} in each head, which is no exact share")
    return {
        **_NO_TOKENS,
        "partial_rotary_factor": share,
        "rope_parameters": {**rope, "partial_rotary_factor": share},
        "qk_layernorm": "attn_q_norm" in facts.stems,
        # What is said of it is not what llama.cpp goes by: its converter makes it up.
        "use_parallel_residual": "ffn_norm" not in facts.stems,
        "use_qkv_bias": facts.biased == _QKV,
    }


def _gpt2(facts: FileFacts) -> dict[str, Any]:
    if facts.kv != facts.heads:
        facts.refuse(f"has {facts.heads} heads with {facts.kv} of keys, which 'gpt2' can't have")
    wide = None if facts.wide == 4 * facts.hidden else facts.wide
    return {**_NO_TOKENS, "activation_function": "gelu_new", "n_inner": wide}


def _falcon(facts: FileFacts) -> dict[str, Any]:
    if (layout := facts.fact("tensor_data_layout")) not in {None, "jploski"}:
        facts.refuse(f"lays out queries, keys and values by {layout!r}, which isn't read")
    two = "attn_norm_2" in facts.stems
    if not two and facts.kv > 1 and facts.fact("rope.freq_base") is None:
        # Converted by llama.cpp, whose files leave out what isn't 10 000 in Falcon 2.
        facts.refuse("is of Falcon 2's kind, and doesn't say the base of its rotary embeddings")
    new = two or facts.kv > 1
    return {
        **_NO_TOKENS,
        "activation": "gelu",
        "alibi": False,
        "bias": False,
        "multi_query": True,
        "new_decoder_architecture": new,
        "num_kv_heads": facts.kv if new else facts.heads,  # as one of keys isn't counted there
        "num_ln_in_parallel_attn": (2 if two else 1) if new else None,
        "parallel_attn": True,
    }


_QKV = frozenset({"attn_q", "attn_k", "attn_v"})
_ATTENTION = _QKV | {"attn_output"}
_MLP = frozenset({"ffn_gate", "ffn_up", "ffn_down"})
_LLAMA_BIASES = (frozenset[str](), _ATTENTION, _MLP, _ATTENTION | _MLP)
_HEAD_NORMS = frozenset({"attn_q_norm", "attn_k_norm"})
_GRANITE_SCALES = frozenset({"attention.scale", "embedding_scale", "logit_scale", "residual_scale"})
_MAMBA = frozenset({
    "ssm.conv_kernel", "ssm.state_size", "ssm.group_count", "ssm.inner_size",
    "ssm.time_step_rank",
})  # fmt: skip
"""What Granite 4 says of state-space layers, when it has none of them."""
_EXPERT_WIDTH = "expert_feed_forward_length"

ARCHITECTURES: Mapping[str, ReadArchitecture] = {
    "llama": ReadArchitecture(
        "llama",
        "LlamaForCausalLM",
        LAYER_STEMS["llama"],
        biased=_LLAMA_BIASES,
        permuted=True,
        settings=_biases,
    ),
    "qwen2": ReadArchitecture("qwen2", "Qwen2ForCausalLM", LAYER_STEMS["qwen2"], biased=(_QKV,)),
    "qwen3": ReadArchitecture(
        "qwen3",
        "Qwen3ForCausalLM",
        LAYER_STEMS["qwen3"],
        settings=lambda facts: {"attention_bias": False},
    ),
    "gemma": ReadArchitecture(
        "gemma",
        "GemmaForCausalLM",
        LAYER_STEMS["gemma"],
        shifted=True,
        settings=lambda facts: _GELU,
    ),
    "gemma2": ReadArchitecture(
        "gemma2",
        "Gemma2ForCausalLM",
        LAYER_STEMS["gemma2"],
        shifted=True,
        says=frozenset({"attn_logit_softcapping", "final_logit_softcapping", _WINDOW, _PATTERN}),
        settings=_gemma2,
    ),
    "gemma3": ReadArchitecture(
        "gemma3_text",
        "Gemma3ForCausalLM",
        LAYER_STEMS["gemma3"],
        shifted=True,
        says=frozenset({_WINDOW, _PATTERN, _LOCAL_BASE}),
        settings=_gemma3,
    ),
    "phi3": ReadArchitecture(
        "phi3",
        "Phi3ForCausalLM",
        LAYER_STEMS["phi3"],
        says=frozenset({_WINDOW}),
        settings=_phi3,
    ),
    "qwen2moe": ReadArchitecture(
        "qwen2_moe",
        "Qwen2MoeForCausalLM",
        LAYER_STEMS["qwen2moe"],
        biased=(_QKV,),
        says=frozenset({_EXPERT_WIDTH, "expert_shared_feed_forward_length"}),
        settings=_qwen2moe,
    ),
    "qwen3moe": ReadArchitecture(
        "qwen3_moe",
        "Qwen3MoeForCausalLM",
        LAYER_STEMS["qwen3moe"],
        says=frozenset({_EXPERT_WIDTH}),
        settings=_qwen3moe,
    ),
    "olmo2": ReadArchitecture(
        "olmo2",
        "Olmo2ForCausalLM",
        LAYER_STEMS["olmo2"],
        head_norms="flat",
        square=True,
        says=frozenset({_WINDOW}),
        settings=lambda facts: {**_NO_TOKENS, "attention_bias": False},
    ),
    "granite": ReadArchitecture(
        "granite",
        "GraniteForCausalLM",
        LAYER_STEMS["granite"],
        biased=_LLAMA_BIASES,
        square=True,
        permuted=True,
        says=_GRANITE_SCALES | _MAMBA,
        settings=_granite,
    ),
    "command-r": ReadArchitecture(
        "cohere",
        "CohereForCausalLM",
        LAYER_STEMS["command-r"],
        rest=CLASSIC_REST["command-r"],
        optional=(_HEAD_NORMS,),
        epsilon="layer_norm_eps",
        head_norms="each",
        square=True,
        says=frozenset({"logit_scale"}),
        settings=_cohere,
    ),
    "starcoder2": ReadArchitecture(
        "starcoder2",
        "Starcoder2ForCausalLM",
        LAYER_STEMS["starcoder2"],
        biased=(_ATTENTION | {"ffn_up", "ffn_down"},),
        norm_biases=True,
        epsilon="norm_epsilon",
        square=True,
        settings=_starcoder2,
    ),
    "stablelm": ReadArchitecture(
        "stablelm",
        "StableLmForCausalLM",
        LAYER_STEMS["stablelm"],
        optional=(frozenset({"ffn_norm"}), _HEAD_NORMS),
        biased=(frozenset(), _QKV),
        norm_biases=True,
        epsilon="layer_norm_eps",
        head_norms="each",
        square=True,
        rotated="some",
        says=frozenset({"use_parallel_residual"}),
        settings=_stablelm,
    ),
    "gpt2": ReadArchitecture(
        "gpt2",
        "GPT2LMHeadModel",
        CLASSIC_LAYERS["gpt2"],
        rest=CLASSIC_REST["gpt2"],
        prefix="transformer.h.",
        biased=(frozenset({"attn_qkv", "attn_output", "ffn_up", "ffn_down"}),),
        norm_biases=True,
        epsilon="layer_norm_epsilon",
        square=True,
        rotated="none",
        transposed=True,
        renamed={
            "attention_dropout": None, "hidden_act": None, "hidden_size": "n_embd",
            "intermediate_size": None, "max_position_embeddings": "n_positions",
            "num_attention_heads": "n_head", "num_hidden_layers": "n_layer",
            "num_key_value_heads": None,
        },
        settings=_gpt2,
    ),
    "falcon": ReadArchitecture(
        "falcon",
        "FalconForCausalLM",
        CLASSIC_LAYERS["falcon"],
        rest=CLASSIC_REST["falcon"],
        prefix="transformer.h.",
        norm_biases=True,
        epsilon="layer_norm_epsilon",
        square=True,
        grouped=True,
        says=frozenset({"tensor_data_layout"}),
        renamed={
            "hidden_act": None, "intermediate_size": "ffn_hidden_size",
            "num_key_value_heads": None,
        },
        settings=_falcon,
    ),
}  # fmt: skip
"""By GGUF's names. Mistral and SmolLM2 are `llama`."""

MIXTRAL = replace(
    ARCHITECTURES["llama"],
    model_type="mixtral",
    model_class="MixtralForCausalLM",
    stems=MIXTRAL_STEMS,
    biased=(frozenset(),),
    says=frozenset({_EXPERT_WIDTH}),
    settings=_mixtral,
)
"""A `llama` with experts."""

FALCON_40B = replace(ARCHITECTURES["falcon"], stems=FALCON_40B_STEMS)
"""A `falcon` whose attention has a norm of its own."""

OLMO_3 = replace(
    ARCHITECTURES["olmo2"],
    model_type="olmo3",
    model_class="Olmo3ForCausalLM",
    says=frozenset({_WINDOW, _PATTERN, _LOCAL_BASE}),
    settings=_olmo3,
)
"""An `olmo2` whose layers slide."""
