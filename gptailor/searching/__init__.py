"""A search in a folder: an open plan's choices closed by trials. `run.search` is the verb."""
