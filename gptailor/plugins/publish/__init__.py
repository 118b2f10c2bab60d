"""`gptailor publish`: a compiled folder as a repository of the Hub."""

__all__ = ["command", "publish"]
__commands__ = {"publish": ("Share", "Upload a compiled folder to the Hub.")}
