"""A plan into a folder or a GGUF file: compile, lock, verify."""

__all__ = [
    "compile",
    "gguf",
    "inputs",
    "lock",
    "lock_recording",
    "output",
    "update",
    "verify",
]
