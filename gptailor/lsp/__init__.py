"""A language server for editors: it never imports torch or JAX.

`edits` and `plan_text` don't need the protocol's packages.
"""

__all__ = ["edits", "plan_text", "server"]
