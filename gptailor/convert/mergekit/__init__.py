"""mergekit's configurations to plans, and plans to configurations: `importer`, `exporter`."""

__all__ = ["exporter", "importer"]
