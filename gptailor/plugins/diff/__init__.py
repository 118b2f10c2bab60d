"""`gptailor diff`: two plans side by side, as maps and in words."""

__all__ = ["command", "compare", "difference"]
__commands__ = {"diff": ("Look", "Show the differences between two plans.")}
