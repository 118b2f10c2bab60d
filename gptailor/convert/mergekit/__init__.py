"""mergekit's configurations as plans, and plans as these: `importer`, `exporter`."""

__all__ = ["exporter", "importer"]
