"""A plan into a program, and a program into values: others use all of these modules.

`compile` and `program` need no torch; `run` and `load` do.
"""

__all__ = ["compile", "gguf_tokenizer", "load", "program", "run"]
