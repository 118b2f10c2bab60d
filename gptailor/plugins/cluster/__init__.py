"""Several machines and processes: a Ray cluster, RUN and models at URLs, torchrun."""

__all__ = ()
