"""Writing a checkpoint folder: whole or not at all, at the speed of the disk.

Others use `writer`, `tensors` (shards), `digest`, `output_file` (single files) and `threads`.
"""
