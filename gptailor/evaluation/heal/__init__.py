"""Layers that stay learn what the plan with nothing dropped predicts."""

__all__ = ["heal", "teach", "text", "train"]
