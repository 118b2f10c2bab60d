"""Requests through live models, common beginnings once."""

__all__ = ["evaluator", "recording", "requests"]
