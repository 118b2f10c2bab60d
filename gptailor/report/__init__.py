"""What people look at: maps, tables, cards, progress."""

__all__ = ["block_map", "card", "difference", "plan_map", "progress", "scores"]
