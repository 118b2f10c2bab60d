"""A plan into a folder or a GGUF file: compile, lock, verify. Tensors in memory merged alike."""

__all__ = ["compile", "gguf", "lock", "output", "record", "state_dicts", "verify"]
