"""A plan into a folder: compile, lock, verify."""

__all__ = ["compile", "lock", "output", "record", "verify"]
