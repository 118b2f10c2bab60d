"""An open plan's choices as genes, and the arrays that strategies work on. Never torch."""

__all__ = ["decode", "genome", "hash_random", "roles", "space", "table"]
