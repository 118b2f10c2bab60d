"""How good a model is: live models, objectives, scores. torch, never jax."""

__all__ = [
    "answers",
    "bridge",
    "dtype",
    "gguf_tokenizer",
    "heal",
    "judge",
    "live",
    "objectives",
    "outcome",
    "repair",
    "rivals",
    "samples",
    "session",
    "space_trials",
    "targets",
    "trial",
]
