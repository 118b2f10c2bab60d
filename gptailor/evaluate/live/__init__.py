"""Plans as live models, stitched in memory."""
