"""The live view of `gptailor search` on a terminal."""

__all__ = ()
