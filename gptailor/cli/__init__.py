"""The command line."""

__all__ = ["event_lines", "main", "memory", "options", "search_view"]
