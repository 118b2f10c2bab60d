"""`gptailor shrink`: from a goal, such as 100 MB, to the plan that loses least on a text."""

__all__ = ["command", "shrink"]
__commands__ = {"shrink": ("Write", "Write a plan that makes a model smaller or faster.")}
