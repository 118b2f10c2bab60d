"""Gaps closed by least squares."""
