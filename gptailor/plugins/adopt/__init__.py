"""Families unknown to the release: drafted from transformers' classes, and proven."""

__all__ = ["adopt", "command"]
__commands__ = {"family": ("Set up", "Learn a new architecture from transformers, and prove it.")}
