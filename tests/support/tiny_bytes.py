"""Tiny models with byte-level tokenizers, their rows long enough for GGUF's blocks."""

from pathlib import Path
from typing import Any

from tests.support.tiny import tiny_model
from tests.support.vocabularies import write_byte_level

SIZES = {
    "hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "num_key_value_heads": 2,
    "vocab_size": 384, "pad_token_id": None, "bos_token_id": 356, "eos_token_id": 358,
}  # fmt: skip
GEMMA = {"head_dim": 32, "query_pre_attn_scalar": 32, "sliding_window": 8}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"head_dim": 32, "attention_bias": True},
    "mistral": {"sliding_window": None},
    "qwen2": {},
    "qwen3": {"head_dim": 32},
    "gemma": {"head_dim": 32},
    "gemma2": GEMMA,
    "gemma3_text": GEMMA,
}


def model(folder: Path, family: str = "llama", *, layers: int = 3, **config: Any) -> Path:
    """A tiny model with a byte-level tokenizer."""
    settings = SIZES | FAMILIES[family] | config
    return write_byte_level(tiny_model(family, folder, layers=layers, **settings))
