"""Writing a checkpoint folder: whole or not at all, at the speed of the disk."""
