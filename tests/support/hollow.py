"""Checkpoints of any size that take no room: true headers before weights that are holes."""

import json
import math
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from gptailor.checkpoint.tensor import DTYPE_BITS

Shapes = Mapping[str, tuple[int, ...]]

SMALL = {
    "num_hidden_layers": 6,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 64,
}
LLAMA_2_70B = {
    "num_hidden_layers": 80,
    "hidden_size": 8192,
    "intermediate_size": 28672,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "vocab_size": 32000,
}
LLAMA_3_70B = {**LLAMA_2_70B, "vocab_size": 128256, "rope_theta": 500000.0}
QWEN_3_30B = {
    "num_hidden_layers": 48,
    "hidden_size": 2048,
    "intermediate_size": 6144,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "head_dim": 128,
    "vocab_size": 151936,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "moe_intermediate_size": 768,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
}


def llama(**sizes: Any) -> tuple[dict[str, Any], dict[str, tuple[int, ...]]]:
    """The configuration of a Llama and the shapes of its tensors."""
    config = {"model_type": "llama", "rms_norm_eps": 1e-5, "tie_word_embeddings": False, **sizes}
    return config, dict(_shapes(config))


def qwen3_moe(**sizes: Any) -> tuple[dict[str, Any], dict[str, tuple[int, ...]]]:
    """The same of a Qwen 3 with experts; each expert has tensors of its own."""
    config = {"model_type": "qwen3_moe", "rms_norm_eps": 1e-6, "tie_word_embeddings": False}
    config |= sizes
    return config, dict(_shapes(config))


def _shapes(config: Mapping[str, Any]) -> Iterator[tuple[str, tuple[int, ...]]]:
    hidden, vocabulary = config["hidden_size"], config["vocab_size"]
    yield "model.embed_tokens.weight", (vocabulary, hidden)
    for layer in range(config["num_hidden_layers"]):
        for name, shape in _layer(config):
            yield f"model.layers.{layer}.{name}.weight", shape
    yield "model.norm.weight", (hidden,)
    yield "lm_head.weight", (vocabulary, hidden)


def _layer(config: Mapping[str, Any]) -> Iterator[tuple[str, tuple[int, ...]]]:
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    width = config.get("head_dim", hidden // heads)
    yield "input_layernorm", (hidden,)
    yield "post_attention_layernorm", (hidden,)
    yield "self_attn.q_proj", (heads * width, hidden)
    yield "self_attn.k_proj", (config["num_key_value_heads"] * width, hidden)
    yield "self_attn.v_proj", (config["num_key_value_heads"] * width, hidden)
    yield "self_attn.o_proj", (hidden, heads * width)
    if "num_experts" not in config:
        yield from _mlp("mlp", hidden, config["intermediate_size"])
        return
    yield "self_attn.q_norm", (width,)
    yield "self_attn.k_norm", (width,)
    yield "mlp.gate", (config["num_experts"], hidden)
    for expert in range(config["num_experts"]):
        yield from _mlp(f"mlp.experts.{expert}", hidden, config["moe_intermediate_size"])


def _mlp(name: str, hidden: int, inner: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield f"{name}.gate_proj", (inner, hidden)
    yield f"{name}.up_proj", (inner, hidden)
    yield f"{name}.down_proj", (hidden, inner)


def write_hollow(
    folder: Path,
    config: Mapping[str, Any],
    shapes: Shapes,
    shards: int = 1,
    dtype: str = "BF16",
) -> int:
    """Write a checkpoint with holes as weights; return the bytes of all its headers."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    names, each = iter(shapes), math.ceil(len(shapes) / shards)
    headers = 0
    places: dict[str, str] = {}
    for number in range(1, shards + 1):
        file = f"model-{number:05d}-of-{shards:05d}.safetensors"
        inside = list(islice(names, each))
        places |= dict.fromkeys(inside, file)
        headers += _write_shard(folder / file, {name: shapes[name] for name in inside}, dtype)
    index = json.dumps({"metadata": {}, "weight_map": places})
    (folder / "model.safetensors.index.json").write_text(index)
    return headers + len(index)


def _write_shard(path: Path, shapes: Shapes, dtype: str) -> int:
    described: dict[str, Any] = {}
    end = 0
    for name, shape in shapes.items():
        begin, end = end, end + math.prod(shape) * DTYPE_BITS[dtype] // 8
        described[name] = {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(described).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
    return 8 + len(text)
