"""The command line."""

__all__ = ["event_lines", "main", "options"]
