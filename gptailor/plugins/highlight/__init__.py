"""Colours of plans for Pygments."""

__all__ = ()
