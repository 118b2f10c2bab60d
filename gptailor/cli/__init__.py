"""The command line."""

__all__ = ["event_lines", "main", "memory", "options", "plans", "search_view"]
