"""A plan into one GGUF file for llama.cpp: `file` writes and verifies it.

`vocabulary` has the facts of a tokenizer, `values` the bytes.
They need transformers, torch and the package `gguf`, which load late.
"""

__all__ = ["file"]
