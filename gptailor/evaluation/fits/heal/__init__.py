"""Layers that stay learn what the plan with nothing dropped predicts."""

__all__ = [
    "heal",
    "kept",
    "learning",
    "process_group",
    "sources",
    "teacher",
    "text",
    "train",
]
