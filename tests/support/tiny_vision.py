"""Tiny vision-language models of every type, with random weights, and an image for each."""

import json
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForImageTextToText

from tests.support.tiny import randomise, write_tokenizer
from tests.support.tiny_mixed import DELTA, EXPERTS, LLAMA, MIXED

IMAGE = 60
"""The token that stands for an image's features."""
QWEN_TOKENS = {
    "image_token_id": IMAGE,
    "video_token_id": 61,
    "vision_start_token_id": 62,
    "vision_end_token_id": 63,
}
TEXT = {**LLAMA, "hidden_size": 32, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": None}
MROPE = {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": [2, 1, 1]}
QWEN_3_5_MROPE = {**MROPE, "partial_rotary_factor": 0.5, "mrope_section": [1, 1, 0]}
QWEN_TOWER = {
    "depth": 2,
    "hidden_size": 16,
    "num_heads": 2,
    "intermediate_size": 16,
    "patch_size": 4,
    "temporal_patch_size": 1,
    "spatial_merge_size": 2,
    "out_hidden_size": 32,
}
TOWER = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "image_size": 8,
    "patch_size": 4,
}
CLIP = {**TOWER, "model_type": "clip_vision_model", "projection_dim": 16}
SIGLIP = {**TOWER, "model_type": "siglip_vision_model", "vision_use_head": False}
DEEPSTACK = {**QWEN_TOWER, "num_position_embeddings": 16, "deepstack_visual_indexes": [0, 1]}
GEMMA = {**TEXT, "head_dim": 8, "query_pre_attn_scalar": 5, "sliding_window": 4}

VISION: Mapping[str, Mapping[str, Any]] = {
    "qwen2_vl": {
        "text_config": {**TEXT, "rope_parameters": MROPE},
        "vision_config": {**QWEN_TOWER, "embed_dim": 16, "hidden_size": 32, "mlp_ratio": 1},
        **QWEN_TOKENS,
    },
    "qwen2_5_vl": {
        "text_config": {**TEXT, "rope_parameters": MROPE},
        "vision_config": {**QWEN_TOWER, "window_size": 8, "fullatt_block_indexes": [1]},
        **QWEN_TOKENS,
    },
    "qwen3_vl": {
        "text_config": {**TEXT, "head_dim": 8, "rope_parameters": MROPE},
        "vision_config": DEEPSTACK,
        **QWEN_TOKENS,
    },
    "qwen3_vl_moe": {
        "text_config": {
            **TEXT,
            "head_dim": 8,
            "rope_parameters": MROPE,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 12,
        },
        "vision_config": DEEPSTACK,
        **QWEN_TOKENS,
    },
    "qwen3_5": {
        "text_config": {**TEXT, **DELTA, "rope_parameters": QWEN_3_5_MROPE},
        "vision_config": {**QWEN_TOWER, "num_position_embeddings": 16},
        **QWEN_TOKENS,
    },
    "qwen3_5_moe": {
        "text_config": {
            **TEXT,
            **EXPERTS,
            **DELTA,
            "shared_expert_intermediate_size": 12,
            "rope_parameters": QWEN_3_5_MROPE,
        },
        "vision_config": {**QWEN_TOWER, "num_position_embeddings": 16},
        **QWEN_TOKENS,
    },
    "llama4": {
        "text_config": {**TEXT, **MIXED["llama4_text"], "hidden_size": 32},
        "vision_config": {
            **TOWER,
            "intermediate_size": 64,
            "projector_input_dim": 16,
            "projector_output_dim": 16,
            "vision_output_dim": 16,
        },
        "image_token_index": IMAGE,
        "boi_token_index": 61,
        "eoi_token_index": 62,
    },
    "gemma4": {
        "text_config": {
            **TEXT,
            **MIXED["gemma4_text"],
            "hidden_size": 32,
            "pad_token_id": 0,
        },
        "vision_config": {
            **TOWER,
            "num_key_value_heads": 2,
            "head_dim": 8,
            "pooling_kernel_size": 2,
            "position_embedding_size": 16,
        },
        "audio_config": None,
        "image_token_id": IMAGE,
        "boi_token_id": 61,
        "eoi_token_id": 62,
    },
    "gemma3": {
        "text_config": {**GEMMA, "sliding_window_pattern": 3},
        "vision_config": SIGLIP,
        "mm_tokens_per_image": 4,
        "image_token_index": IMAGE,
        "boi_token_index": 61,
        "eoi_token_index": 62,
    },
    "mistral3": {
        "text_config": {**TEXT, "head_dim": 8, "model_type": "mistral", "sliding_window": None},
        "vision_config": {**TOWER, "model_type": "pixtral", "head_dim": 8},
        "image_token_index": IMAGE,
        "spatial_merge_size": 1,
        "tie_word_embeddings": False,
    },
    "llava": {
        "text_config": {**TEXT, "model_type": "llama"},
        "vision_config": CLIP,
        "image_token_index": IMAGE,
        "vision_feature_layer": -1,
    },
    "llava_next": {
        "text_config": {**TEXT, "model_type": "mistral"},
        "vision_config": CLIP,
        "image_token_index": IMAGE,
        "vision_feature_layer": -1,
        "image_grid_pinpoints": [[8, 8]],
    },
    "llava_onevision": {
        "text_config": {**TEXT, "model_type": "qwen2"},
        "vision_config": SIGLIP,
        "image_token_index": IMAGE,
        "video_token_index": 61,
        "image_grid_pinpoints": [[8, 8]],
    },
    "internvl": {
        "text_config": {**TEXT, "model_type": "qwen2"},
        "vision_config": {**TOWER, "image_size": [8, 8], "patch_size": [4, 4]},
        "image_token_id": IMAGE,
        "tie_word_embeddings": False,
    },
    "idefics3": {
        "text_config": {**TEXT, "model_type": "llama"},
        "vision_config": TOWER,
        "image_token_id": IMAGE,
    },
    "smolvlm": {
        "text_config": {**TEXT, "model_type": "llama"},
        "vision_config": TOWER,
        "image_token_id": IMAGE,
    },
    "paligemma": {
        "text_config": {**TEXT, "model_type": "gemma", "head_dim": 8},
        "vision_config": SIGLIP,
        "image_token_index": IMAGE,
        "projection_dim": 32,
        "hidden_size": 32,
    },
}
"""The settings that make each type tiny."""

_TOKENS = {
    "llama4": 1,
    "internvl": 1,
    "idefics3": 1,
    "smolvlm": 1,
    "llava_next": 10,
    "llava_onevision": 10,
}
"""How many tokens an image has; elsewhere it has four."""


def tiny_vision(
    kind: str,
    folder: Path,
    *,
    seed: int = 0,
    layers: int = 6,
    text: Mapping[str, Any] = {},
    **more: Any,
) -> Path:
    """Write a checkpoint of the type with a tokenizer and a processor's configuration."""
    given = {**VISION[kind], **more}
    given["text_config"] = {**given["text_config"], "num_hidden_layers": layers, **text}
    with torch.random.fork_rng(devices=[]):  # some draw their steps of time, which stay
        torch.manual_seed(seed)
        model = AutoModelForImageTextToText.from_config(AutoConfig.for_model(kind, **given))
    randomise(model, seed)
    model.save_pretrained(folder)
    write_tokenizer(folder)
    settings = {"image_processor_type": "Qwen2VLImageProcessor", "patch_size": 4}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    return folder


def image_inputs(kind: str) -> dict[str, Any]:
    """A text with an image in it."""
    count = _TOKENS.get(kind, 4)
    ids = [1, 20, *([62] if kind.startswith("qwen") else []), *([IMAGE] * count), 31, 9, 14, 27]
    results: dict[str, Any] = {"input_ids": torch.tensor([ids])}
    results["attention_mask"] = torch.ones_like(results["input_ids"])
    pixels = torch.linspace(-1, 1, 3 * 8 * 8).sin().reshape(1, 3, 8, 8)
    here = (results["input_ids"] == IMAGE).int()
    if kind.startswith("qwen"):
        results["pixel_values"] = torch.linspace(-1, 1, 16 * 48).mul(9).sin().reshape(16, 48)
        results["image_grid_thw"] = torch.tensor([[1, 4, 4]])
        results["mm_token_type_ids"] = here
        return results
    if kind == "gemma4":
        results["pixel_values"] = torch.linspace(0, 9, 16 * 48).sin().reshape(1, 16, 48)
        at = torch.arange(16)
        results["image_position_ids"] = torch.stack([at % 4, at // 4], dim=-1)[None]
        results["mm_token_type_ids"] = here
        return results
    if kind in {"gemma3", "paligemma"}:
        results["token_type_ids"] = here
    if kind in {"llava_next", "llava_onevision"}:
        pixels = torch.cat([pixels, -pixels])[None]
    if kind in {"idefics3", "smolvlm"}:
        pixels = pixels[None]
    if kind in {"mistral3", "llava_next", "llava_onevision"}:
        results["image_sizes"] = torch.tensor([[8, 8]])
    return {**results, "pixel_values": pixels}


VisionMaker = Callable[..., Path]
"""Gives the folder of a type and a seed."""


def vision_maker(folders: pytest.TempPathFactory) -> VisionMaker:
    """A maker of folders of types and seeds; each folder is made once."""

    @cache
    def make(kind: str, seed: int = 0) -> Path:
        return tiny_vision(kind, folders.mktemp(f"{kind}-{seed}"), seed=seed)

    return make
