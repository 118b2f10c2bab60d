"""Views of plans, models and searches, for the command line and Python: map, difference, page."""

__all__ = ["known_layers", "report", "sections", "show"]
