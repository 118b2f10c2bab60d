"""GGUF files, read as checkpoints; the table of architectures serves reading and writing.

`architectures` has a row for each of llama.cpp's architectures, `rotary` the scalings of rotary
embeddings, `kinds` the types of tensors, `splits` the ways to split a text. `build.gguf` writes by
them.
"""

__all__ = ["architectures", "header", "kinds", "reader", "rotary", "splits"]
