"""`gptailor completion`: the shell completes commands, options and file names."""

__all__ = ["command"]
__commands__ = {"completion": ("Set up", "Print or install a shell's completion script.")}
