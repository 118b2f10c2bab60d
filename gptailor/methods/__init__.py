"""Merge methods: the formula, what it measures of whole tensors, and how it combines them."""
