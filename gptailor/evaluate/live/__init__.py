"""Plans as live models, stitched in memory."""

__all__ = ["contents", "stitch", "template"]
