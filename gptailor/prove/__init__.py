"""Families unknown to the release: drafted from transformers' classes, and proven."""

__all__ = ["adopt"]
