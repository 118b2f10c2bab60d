"""What people look at: maps, tables, cards, progress."""

__all__ = [
    "block_map",
    "card",
    "difference",
    "evaluation",
    "found",
    "plan_map",
    "progress",
    "scores",
]
