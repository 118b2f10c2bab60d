"""A plan into a folder or a GGUF file: compile, lock, verify. The same merges in memory.

The difference of two models as an adapter: extract.
"""

__all__ = [
    "compile",
    "extract",
    "gguf",
    "lock",
    "lock_recording",
    "output",
    "parents",
    "state_dicts",
    "tokenizer",
    "update",
    "verify",
]
