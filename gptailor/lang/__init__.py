"""The language: a text into a plan, and a plan into its canonical text."""

__all__ = [
    "format",
    "importers",
    "lower",
    "parse",
    "plan_of",
    "split",
    "syntax_errors",
    "tree",
    "words",
]
