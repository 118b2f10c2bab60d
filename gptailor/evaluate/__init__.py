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
    "repair",
    "rival_scores",
    "samples",
    "scores",
    "session",
    "space_trials",
    "targets",
    "trial",
]
