"""The steps between a strategy and its trials: schedule, workers, study. Never torch."""

__all__ = [
    "asking",
    "budget",
    "comparison",
    "finalists",
    "incumbent",
    "journal",
    "origin",
    "records",
    "schedule",
    "scores",
    "study",
    "trials",
    "workers",
]
