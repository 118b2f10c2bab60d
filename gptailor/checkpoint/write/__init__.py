"""Writing a checkpoint folder: whole or not at all, at the speed of the disk.

Others use `writer`, `tensors` (shards, threads), `digest` and `output_file` (single files).
"""

__all__ = ["digest", "output_file", "side_folder", "tensors", "writer"]
