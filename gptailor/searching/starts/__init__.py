"""Starting plans: the plans that people make without a search. Never torch."""

__all__ = ["compositions", "cuts", "recipes", "stages"]
