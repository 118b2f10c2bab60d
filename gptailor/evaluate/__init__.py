"""How good a model is: live models, objectives, scores. torch, never jax."""
