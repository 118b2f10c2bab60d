"""Layers that stay learn what the plan with nothing dropped predicts."""

__all__ = [
    "fit",
    "heal",
    "kept",
    "process_group",
    "sources",
    "teacher",
    "teacher_chats",
    "text",
    "train",
]
