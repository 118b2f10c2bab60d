"""The names of tensors in GGUF files beside Hugging Face's: files are read and written by one map.

A name is a stem and `.weight` or `.bias`; in a layer GGUF's stem is `blk.3.` and a key.
"""

from collections.abc import Mapping

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

LAYER_STEMS: Mapping[str, Mapping[str, str]] = {
    "llama": _LLAMA_NAMES,
    "qwen2": _LLAMA_NAMES,
    "qwen3": {**_LLAMA_NAMES, **_HEAD_NORMS},
    "gemma": _LLAMA_NAMES,
    "gemma2": _SANDWICHED,
    "gemma3": {**_SANDWICHED, **_HEAD_NORMS},
}
"""By GGUF's architecture: a layer's keys, and Hugging Face's stems within `model.layers.3.`."""

FREQUENCIES = "rope_freqs.weight"
"""What each rotary frequency is divided by, where a model's are stretched as Llama 3.1's."""
