"""A plan into a folder: compile, lock, verify."""
