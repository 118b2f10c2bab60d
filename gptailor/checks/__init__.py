"""Rules that a plan must keep: one function a rule, in stages."""

__all__ = ["models", "plan", "repairs", "texts"]
