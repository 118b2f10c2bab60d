"""Requests through live models, common beginnings once."""

__all__ = ["evaluator", "prefix_cache", "recording", "requests"]
