"""`gptailor import` and `export`: mergekit's configurations to plans, and back."""

__all__ = ["command", "exporter", "importer"]
__commands__ = {"export": ("Share", "Convert a plan to another tool's format.")}
