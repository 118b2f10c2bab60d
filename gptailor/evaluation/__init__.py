"""How good a model is: live models, objectives, scores. torch, never jax."""

__all__ = [
    "answers",
    "bridge",
    "dtype",
    "evaluate",
    "expectations",
    "gguf_tokenizer",
    "heal",
    "live",
    "objectives",
    "repair",
    "repair_estimate",
    "result",
    "rival_scores",
    "samples",
    "score_table",
    "scores",
    "session",
    "space_trials",
    "targets",
    "trial",
]
