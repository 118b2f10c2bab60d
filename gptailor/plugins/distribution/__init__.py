"""The search strategy `distribution`: steps of a distribution over plans, by Optax."""

__all__ = ()
