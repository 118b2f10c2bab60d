"""Gaps closed by least squares."""

__all__ = ["fit", "gaps", "states"]
