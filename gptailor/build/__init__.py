"""A plan into a folder or a GGUF file: compile, lock, verify. Tensors in memory merged alike.

What a model has over another as an adapter: extract.
"""

__all__ = [
    "compile",
    "extract",
    "gguf",
    "lock",
    "lock_recording",
    "output",
    "state_dicts",
    "verify",
]
