"""Requests through live models, common beginnings once."""
