"""A program in GGUF's terms: its configuration, and its tensors with their types. No value is read.

`architecture` needs transformers, which loads late.
"""

__all__ = ["architecture", "tensors"]
