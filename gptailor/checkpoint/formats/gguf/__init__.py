"""GGUF files, read as checkpoints; the table of architectures serves reading and writing.

`architectures` has a row for each of llama.cpp's architectures, `file_facts` a file's
metadata with its rotary embeddings, `kinds` the types of tensors, `reader` also the ways to split a
text. `output.gguf` writes by them.
"""

__all__ = ["architectures", "file_facts", "header", "kinds", "reader"]
