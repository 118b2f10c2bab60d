"""`gptailor.merge`: tensors in memory, merged as `compile` merges tensors of files."""

__all__ = ["merge"]
