"""A search that closes an open plan's choices by trials; `search.py` is its loop."""

__all__ = [
    "folder",
    "pick",
    "results",
    "run",
    "run_files",
    "run_reading",
    "search",
    "search_text",
    "settings",
    "space",
    "strategies",
    "summary",
    "trial_evaluator",
]
