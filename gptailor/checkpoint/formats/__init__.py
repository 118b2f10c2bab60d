"""File formats of weights, read without a tensor library: safetensors, PyTorch, GGUF, LoRA.

`quantised` takes what formats of quantised weights pack, whatever file it is in.
`checkpoint.folder` and `checkpoint.models` read them. Other packages use `gguf`,
which also holds a tokenizer, and the names of files in `pytorch` and `lora_config`.
"""

__all__ = [
    "gguf",
    "lora",
    "lora_config",
    "pytorch",
    "quantised",
    "safetensors",
]
