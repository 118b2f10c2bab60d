"""An open plan's choices closed by trials."""
