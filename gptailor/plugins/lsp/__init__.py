"""A language server for editors: it never imports torch or JAX."""

__all__ = ["command"]
__commands__ = {"lsp": ("Set up", "Serve faults, completion and names to an editor.")}
