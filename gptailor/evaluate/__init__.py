"""How good a plan is: live modules, objectives, scores. torch, never jax."""
