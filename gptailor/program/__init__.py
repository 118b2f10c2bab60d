"""A plan into a program, and a program into values.

`devices`, `load`, `dequantise` and `sketch` need torch;
`run` imports it for tensors that torch reads.
"""

__all__ = [
    "combine",
    "compile",
    "dequantise",
    "devices",
    "fits",
    "gguf",
    "load",
    "nested_models",
    "packages",
    "program",
    "run",
    "sketch",
    "sources",
]
