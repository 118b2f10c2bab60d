"""Searches over several machines: workers of a Ray cluster, and RUN and models at URLs."""

__all__ = ()
