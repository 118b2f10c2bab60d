"""A plan into a program, and a program into values: others use all of these modules.

`compile`, `unquantised` and `program` need no torch; `run`, `load` and `dequantise` do.
"""

__all__ = ["compile", "dequantise", "gguf_tokenizer", "load", "program", "run", "unquantised"]
