"""A tiny model that continues each letter by one other letter."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from tests.support.tiny import VOCABULARY, tiny_model


def talker(folder: Path, after: Mapping[str, str], **config: Any) -> Path:
    """Write a model that puts a token after each token of `after`, and `<s>` after others."""
    tiny_model("llama", folder, layers=2, tie_word_embeddings=False, **config)
    file = folder / "model.safetensors"
    tensors = load_file(file)
    for name, tensor in tensors.items():
        if name.endswith(("o_proj.weight", "down_proj.weight", "lm_head.weight")):
            tensor.zero_()
        elif name == "model.norm.weight":
            tensor.fill_(1.0)
    embedded = torch.nn.functional.normalize(tensors["model.embed_tokens.weight"].float(), dim=1)
    for token, following in after.items():
        row = tensors["lm_head.weight"][VOCABULARY.index(following)]
        row += embedded[VOCABULARY.index(token)]
    save_file(tensors, file, metadata={"format": "pt"})
    return folder


AFTER = {
    **{"a": "b", "b": "c", "c": "</s>"},  # ends
    "x": "x",  # loops
    **{"m": "n", "n": "o", "o": "p", "p": "q", "q": "r", "r": "s", "s": "t", "t": "u"},  # neither
}
