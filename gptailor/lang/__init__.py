"""The language: a text into a plan, a plan into its canonical text, and remedies of faults."""

__all__ = [
    "format",
    "lexicon",
    "names",
    "parse",
    "plan_of",
    "plan_text",
    "remedies",
    "split",
    "transform",
    "tree",
    "words",
]
