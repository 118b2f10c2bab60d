"""Plans as live models, stitched in memory."""

__all__ = ["contents", "language", "stitch", "template"]
