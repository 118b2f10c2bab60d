"""LoRA adapters of the tiny models: PEFT's two files, with a test's changes."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

Q = "model.layers.0.self_attn.q_proj"
HIDDEN = 16
CONFIG: dict[str, Any] = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ".*"}


def pair(module: str, out: int = HIDDEN, into: int = HIDDEN, rank: int = 4) -> dict[str, Tensor]:
    return {
        f"base_model.model.{module}.lora_A.weight": torch.zeros(rank, into),
        f"base_model.model.{module}.lora_B.weight": torch.zeros(out, rank),
    }


def adapter(folder: Path, tensors: dict[str, Tensor] | None = None, **config: Any) -> Path:
    """An adapter on `base`, with these settings in place of the usual ones."""
    folder.mkdir(exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps(CONFIG | config))
    save_file(pair(Q) if tensors is None else tensors, folder / "adapter_model.safetensors")
    return folder
