"""The names of tensors in GGUF files beside Hugging Face's, and the types that are written.

Files are read and written by one map. A name is a stem and `.weight` or `.bias`; in a layer GGUF's
stem is `blk.3.` and a key.
"""

from collections.abc import Mapping

from gptailor.checkpoint.files import quoted
from gptailor.plan.faults import listed

REST_STEMS: Mapping[str, str] = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
"""GGUF's stems outside the layers, and Hugging Face's."""

_ATTENTION_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
}  # fmt: skip
_HEAD_NORMS = {"attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm"}
_MLP_NAMES = {
    "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
}  # fmt: skip
_LLAMA_NAMES = {**_ATTENTION_NAMES, "ffn_norm": "post_attention_layernorm", **_MLP_NAMES}
_SANDWICHED = {
    **_ATTENTION_NAMES,
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    **_MLP_NAMES,
    "post_ffw_norm": "post_feedforward_layernorm",
}

_EXPERT_NAMES = {
    "ffn_gate_inp": "mlp.gate",
    "ffn_gate_exps": "mlp.experts.gate_proj", "ffn_up_exps": "mlp.experts.up_proj",
    "ffn_down_exps": "mlp.experts.down_proj",
}  # fmt: skip
_SHARED_EXPERT = {
    "ffn_gate_inp_shexp": "mlp.shared_expert_gate",
    "ffn_gate_shexp": "mlp.shared_expert.gate_proj", "ffn_up_shexp": "mlp.shared_expert.up_proj",
    "ffn_down_shexp": "mlp.shared_expert.down_proj",
}  # fmt: skip
_SPARSE = {**_ATTENTION_NAMES, "ffn_norm": "post_attention_layernorm", **_EXPERT_NAMES}

LAYER_STEMS: Mapping[str, Mapping[str, str]] = {
    "llama": _LLAMA_NAMES,
    "qwen2": _LLAMA_NAMES,
    "qwen3": {**_LLAMA_NAMES, **_HEAD_NORMS},
    "gemma": _LLAMA_NAMES,
    "gemma2": _SANDWICHED,
    "gemma3": {**_SANDWICHED, **_HEAD_NORMS},
    "phi3": {
        "attn_norm": "input_layernorm",
        "attn_qkv": "self_attn.qkv_proj",
        "attn_output": "self_attn.o_proj",
        "ffn_norm": "post_attention_layernorm",
        "ffn_up": "mlp.gate_up_proj",
        "ffn_down": "mlp.down_proj",
    },
    "qwen2moe": {**_SPARSE, **_SHARED_EXPERT},
    "qwen3moe": {**_SPARSE, **_HEAD_NORMS},
    "olmo2": {
        **{key: stem for key, stem in _ATTENTION_NAMES.items() if key != "attn_norm"},
        **_HEAD_NORMS,
        "post_attention_norm": "post_attention_layernorm",
        **_MLP_NAMES,
        "post_ffw_norm": "post_feedforward_layernorm",
    },
    "granite": _LLAMA_NAMES,
    "command-r": {**_ATTENTION_NAMES, **_HEAD_NORMS, **_MLP_NAMES},
    "starcoder2": {
        **_ATTENTION_NAMES,
        "ffn_norm": "post_attention_layernorm",
        "ffn_up": "mlp.c_fc",
        "ffn_down": "mlp.c_proj",
    },
    "stablelm": {
        **_LLAMA_NAMES,
        "attn_q_norm": "self_attn.q_layernorm",
        "attn_k_norm": "self_attn.k_layernorm",
    },
}
"""By GGUF's architecture: a layer's keys, and Hugging Face's stems within `model.layers.3.`.

All experts are one tensor of GGUF's; each is one of Hugging Face's, with its number after
`experts.`. So it is with the norms of StableLM's heads, after `layernorm.norms.`.
"""

CLASSIC_LAYERS: Mapping[str, Mapping[str, str]] = {
    "gpt2": {
        "attn_norm": "ln_1", "attn_qkv": "attn.c_attn", "attn_output": "attn.c_proj",
        "ffn_norm": "ln_2", "ffn_up": "mlp.c_fc", "ffn_down": "mlp.c_proj",
    },
    "falcon": {
        "attn_norm": "input_layernorm",
        "attn_qkv": "self_attention.query_key_value", "attn_output": "self_attention.dense",
        "ffn_up": "mlp.dense_h_to_4h", "ffn_down": "mlp.dense_4h_to_h",
    },
}  # fmt: skip
"""The same within `transformer.h.3.`."""

FALCON_40B_STEMS: Mapping[str, str] = {
    **CLASSIC_LAYERS["falcon"],
    "attn_norm": "ln_mlp",
    "attn_norm_2": "ln_attn",
}
"""The same of a `falcon` with two norms side by side."""

CLASSIC_REST: Mapping[str, Mapping[str, str]] = {
    "gpt2": {
        "token_embd": "transformer.wte", "position_embd": "transformer.wpe",
        "output_norm": "transformer.ln_f", "output": "lm_head",
    },
    "falcon": {
        "token_embd": "transformer.word_embeddings", "output_norm": "transformer.ln_f",
        "output": "lm_head",
    },
    "command-r": {key: stem for key, stem in REST_STEMS.items() if key != "output"},
}  # fmt: skip
"""Stems outside the layers, where they are others than most have."""

MIXTRAL_STEMS: Mapping[str, str] = {
    **_ATTENTION_NAMES,
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate_inp": "block_sparse_moe.gate",
    "ffn_gate_exps": "block_sparse_moe.experts.w1",
    "ffn_up_exps": "block_sparse_moe.experts.w3",
    "ffn_down_exps": "block_sparse_moe.experts.w2",
}
"""The same of a `llama` with experts, which is Mixtral."""

FREQUENCIES = "rope_freqs.weight"
"""What each rotary frequency is divided by, where a model's are stretched as Llama 3.1's."""

FILE_TYPES: Mapping[str, int] = {
    "F32": 0, "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q8_0": 7, "Q5_0": 8, "Q5_1": 9, "BF16": 32,
}  # fmt: skip
"""The types that are written, with llama.cpp's number of a file whose matrices are of one."""


def quantised_kind(name: str | None) -> str | None:
    """GGUF's name of a type as people write it. Raises ValueError for one that isn't written."""
    kind = name.upper() if name is not None else None
    if name is None or kind is None or kind in FILE_TYPES:
        return kind
    known = f"those written are {listed([each.lower() for each in FILE_TYPES])}"
    if "_K" in kind or kind.startswith("IQ"):
        why = "the package 'gguf' can read it and not write it; let llama-quantize make it of f16"
        raise ValueError(f"{quoted(name)} can't be made: {why}, or choose another: {known}")
    if kind.startswith("TQ") or kind.endswith("FP4"):
        raise ValueError(f"{quoted(name)} is for models that were trained for it; {known}")
    raise ValueError(f"{quoted(name)} is no type of llama.cpp's; {known}")
