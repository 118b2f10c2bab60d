"""lm-evaluation-harness: its tasks as the objective `lm_eval`, and a plan as one of its models."""

__all__ = ["model", "objective", "spec"]
