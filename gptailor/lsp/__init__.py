"""What editors are told of plans, over the Language Server Protocol: never torch, never JAX."""

__all__ = ["server"]
