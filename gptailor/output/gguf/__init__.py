"""A plan into one GGUF file for llama.cpp: `file` writes and verifies it.

`values` has the bytes. It needs torch and the package `gguf`, which load late.
"""

__all__ = ["file"]
