"""Layers that stay learn what the plan with nothing dropped predicts."""

__all__ = ["chats", "heal", "kept", "process_group", "sources", "teacher", "text", "train"]
