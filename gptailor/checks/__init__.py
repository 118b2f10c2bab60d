"""Rules that a plan must keep: one function a rule, tables of rules in stages."""

__all__ = ["bridges", "models", "plan", "texts"]
