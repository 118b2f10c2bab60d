"""Plans as live models, stitched in memory."""

__all__ = ["content_keys", "language", "stitch", "template"]
