"""How a model talks: the objectives `loops` and `ends`, and the trial of `compile --try`."""

__all__ = ["objectives", "spec", "trial"]
