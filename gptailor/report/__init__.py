"""What people look at: maps, tables, cards, progress."""

__all__ = ["card", "difference", "plan_map", "progress", "scores"]
