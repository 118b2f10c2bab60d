"""A language server for editors: it never imports torch or JAX."""

__all__ = ["server"]
