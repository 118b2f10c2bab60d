"""A program in GGUF's terms: configuration, tokenizer, tensors with their types. No value is read.

`architecture` and `vocabulary` need transformers, which loads late.
"""

__all__ = ["architecture", "faults", "tensors", "vocabulary"]
