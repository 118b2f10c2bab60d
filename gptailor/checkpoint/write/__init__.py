"""Writing a checkpoint folder: whole or not at all, at the speed of the disk.

Others use `writer`, `tensors` (shards, threads), `digest`, `output_file` (single files) and `kept`
(results that can be computed again).
"""

__all__ = ["digest", "kept", "output_file", "side_folder", "tensors", "writer"]
