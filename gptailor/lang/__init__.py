"""The language: a text into a plan, and a plan into its canonical text."""

__all__ = [
    "format",
    "parse",
    "plan_of",
    "split",
    "tree",
    "words",
]
