"""A plan into a program, and a program into values.

`compile`, `nested`, `size`, `sources`, `unquantised` and `program` need no torch; `run`, `combine`,
`load` and `dequantise` do. The modules that write a GGUF file (`gguf_facts`, `gguf_vocabulary`,
`gguf_values`) need transformers and `gguf`.
"""

__all__ = [
    "combine",
    "compile",
    "dequantise",
    "gguf_facts",
    "gguf_tokenizer",
    "gguf_values",
    "gguf_vocabulary",
    "load",
    "low_rank",
    "nested",
    "program",
    "rows",
    "run",
    "size",
    "sources",
    "unquantised",
]
