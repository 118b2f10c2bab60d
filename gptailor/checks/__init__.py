"""What must hold of a plan: one function a rule, a tuple of rules a file."""

__all__ = ["besides", "bridges", "heal", "models", "nested", "plan"]
