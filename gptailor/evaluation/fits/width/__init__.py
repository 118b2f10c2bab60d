"""Narrower MLPs: the neurons that stay, and the output projection refitted for them."""

__all__ = ["fit", "neurons"]
