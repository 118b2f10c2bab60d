"""What happens between a strategy and its trials: schedule, workers, study. Never torch."""

__all__ = [
    "asking",
    "incumbent",
    "per_sample",
    "ray_workers",
    "schedule",
    "study",
    "trials",
    "workers",
]
