"""File formats of weights, read without a tensor library: safetensors, PyTorch, GGUF, LoRA."""
