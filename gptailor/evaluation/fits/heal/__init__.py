"""The remaining layers learn the predictions of the plan with nothing dropped."""

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
