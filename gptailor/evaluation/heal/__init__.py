"""Layers that stay learn what the plan with nothing dropped predicts."""

__all__ = ["heal", "predictions_file", "process_group", "teach", "text", "train"]
