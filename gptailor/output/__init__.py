"""A plan into a folder or a GGUF file: compile, lock, verify. The same merges in memory."""

__all__ = [
    "compile",
    "gguf",
    "inputs",
    "lock",
    "lock_recording",
    "output",
    "parents",
    "state_dicts",
    "tokenizer",
    "update",
    "used_plan",
    "verify",
]
