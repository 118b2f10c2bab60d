"""A plan into a program, and a program into values.

`compile`, `nested_models`, `size`, `sources`, `unquantised` and `program` need no torch; `run`,
`combine`, `load`, `dequantise` and `low_rank` do.
"""

__all__ = [
    "combine",
    "compile",
    "dequantise",
    "load",
    "low_rank",
    "nested_models",
    "program",
    "run",
    "size",
    "sources",
    "unquantised",
    "vocabulary_rows",
]
