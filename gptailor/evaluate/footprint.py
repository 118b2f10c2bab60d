"""What a live model takes: its parameters, and its KV cache's bytes for each token."""

import torch
from transformers import PreTrainedModel

from gptailor.evaluate.tensors import size_of


def parameters(model: PreTrainedModel) -> int:
    """Entries of all parameters, a tied one counted once; those of hollow layers count too."""
    return sum(parameter.numel() for parameter in model.parameters())


@torch.no_grad()
def cache_bytes(model: PreTrainedModel) -> int:
    """Bytes that one token of one sequence takes in the KV cache, over all layers.

    Measured on a cache of one token, so that it is what the architecture's own attention keeps. A
    layer whose window is full takes no more.
    """
    token = torch.zeros((1, 1), dtype=torch.int64, device=model.device)
    made = model(input_ids=token, use_cache=True)
    cache = made[next(name for name in ("cache", "past_key_values") if name in made)]
    kept = [(layer.keys, layer.values) for layer in cache.layers]
    return size_of([tensor for pair in kept for tensor in pair])
