"""`gptailor.merge`: tensors in memory, merged as `compile` merges those of files."""

__all__ = ["merge"]
