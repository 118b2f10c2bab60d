"""How good a model is: live models, objectives, scores. torch, never jax."""

__all__ = [
    "chat_text",
    "evaluate",
    "fits",
    "forward",
    "generate",
    "gguf_contents",
    "gguf_tokenizer",
    "live",
    "meter",
    "objectives",
    "result",
    "scores",
    "space_trials",
    "speed",
    "targets",
    "tokenizer_files",
    "trial",
]
