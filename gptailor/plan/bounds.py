"""The largest plan that is read: a larger one is a slip, and would take time and memory."""

MOST_BYTES = 4_000_000
"""Bytes of a plan's file."""
MOST_STATEMENTS = 10_000
"""Statements of a text; entries of each list of a plan that isn't one of layers."""
MOST_ENTRIES = 200_000
"""Layers that a plan names, and the models and numbers that it names for each of them."""
MOST_LISTED = 1_000
"""Entries of one list: sources, numbers, knots of a curve, options of a choice, objectives."""
MOST_WINDOWS = 200_000
"""Windows of a plan's choices. Each is an option of a search."""
MOST_FAULTS = 1_000
"""Errors of one plan that are looked for."""
MOST_COMPARED = 200
"""Known names that a misspelt one is compared with."""
LARGEST_LAYER = 9_999
"""Layer numbers end here: no model has more."""
MOST_LAYERS = LARGEST_LAYER + 1
"""Layers of an output."""
DEEPEST = 40
"""Models, and instructions of a program, that lie in one another."""
