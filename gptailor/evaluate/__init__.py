"""How good a model is: live models, objectives, scores. torch, never jax."""

__all__ = [
    "answers",
    "bridge",
    "dtype",
    "heal",
    "judge",
    "live",
    "objectives",
    "outcome",
    "repair",
    "rivals",
    "samples",
    "targets",
    "trial",
]
