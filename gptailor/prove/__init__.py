"""Families that the release doesn't know: drafted from transformers' classes, and proven."""

__all__ = ["adopt"]
