"""How good a model is: live models, objectives, scores. torch, never jax."""

__all__ = ["bridge", "heal", "judge", "live", "outcome", "samples", "targets", "trial"]
