"""Tiny configurations of dense and classic models; `tiny.py` has the other families."""

from collections.abc import Mapping
from typing import Any

from tests.support.tiny_mixed import COMMON, HEADS, LLAMA

GPT = {"n_embd": 16, "n_head": 4, "n_positions": 128, "vocab_size": 64}
FAIRSEQ = {"ffn_dim": 24, "max_position_embeddings": 128, "vocab_size": 64}
LATENT = {
    **LLAMA,
    "num_key_value_heads": 4,
    "q_lora_rank": 8,
    "kv_lora_rank": 8,
    "qk_nope_head_dim": 4,
    "qk_rope_head_dim": 4,
    "v_head_dim": 4,
}

DENSE: Mapping[str, Mapping[str, Any]] = {
    "olmo3": {**LLAMA, "sliding_window": 4},
    "exaone4": {**LLAMA, "sliding_window": 4},
    "exaone": LLAMA,
    "internlm3": HEADS,
    "ministral": {**HEADS, "sliding_window": 4},
    "ministral3": HEADS,
    "cwm": {**HEADS, "sliding_window": 4},
    "glm": HEADS,
    "glm4": HEADS,
    "apertus": LLAMA,
    "apertus1p5_text": LLAMA,
    "arcee": HEADS,
    "bitnet": LLAMA,
    "ernie4_5": HEADS,
    "helium": HEADS,
    "hunyuan_v1_dense": HEADS,
    "iquestcoder": HEADS,
    "jais2": HEADS,
    "nemotron": LLAMA,
    "seed_oss": HEADS,
    "starcoder2": LLAMA,
    "phi": LLAMA,
    "persimmon": {**COMMON, "intermediate_size": 24, "max_position_embeddings": 128},
    "gpt-sw3": GPT,
    "gpt_neox_japanese": {**COMMON, "max_position_embeddings": 128},
    "gpt_bigcode": GPT,
    "gptj": {**GPT, "rotary_dim": 2},
    "codegen": {**GPT, "rotary_dim": 2},
    "gpt_neo": {
        "hidden_size": 16,
        "num_heads": 4,
        "vocab_size": 64,
        "window_size": 4,
        "max_position_embeddings": 128,
        "attention_types": [[["global", "local"], 3]],
    },
    "openai-gpt": GPT,
    "ctrl": {**GPT, "dff": 24},
    "bloom": {"hidden_size": 16, "n_head": 4, "vocab_size": 64},
    "mpt": {
        "d_model": 16,
        "n_heads": 4,
        "max_seq_len": 128,
        "vocab_size": 64,
        "expansion_ratio": 2,
    },
    "opt": {**FAIRSEQ, "hidden_size": 16, "num_attention_heads": 4, "word_embed_proj_dim": 16},
    "xglm": {**FAIRSEQ, "d_model": 16, "attention_heads": 4},
    "biogpt": {**COMMON, "intermediate_size": 24, "max_position_embeddings": 128},
    "nanochat": LLAMA,
    "doge": LLAMA,
    "diffllama": LLAMA,
    "vaultgemma": {**HEADS, "sliding_window": 4},
    "granite_swa": {**LLAMA, "sliding_window": 4, "residual_multiplier": 0.7},
    "hyperclovax": {**LLAMA, "residual_multiplier": 0.7},
    "minicpm3": {**LATENT, "dim_model_base": 8},
    "youtu": LATENT,
    "modernbert-decoder": {
        **COMMON,
        "intermediate_size": 24,
        "local_attention": 8,
        "max_position_embeddings": 128,
        "pad_token_id": 0,
    },
    "cohere_compass_text": {
        **LLAMA,
        "sliding_window": 4,
        "rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 50_000.0}},
    },
}
"""Everything else is the family's default."""
