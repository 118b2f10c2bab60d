"""Rules that a plan must keep: one function a rule, in stages."""

__all__ = ["fit_sizes", "models", "plan", "repairs", "texts"]
