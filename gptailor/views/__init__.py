"""Views of plans and models, for the command line and Python: map, difference."""

__all__ = ["known_layers", "show"]
