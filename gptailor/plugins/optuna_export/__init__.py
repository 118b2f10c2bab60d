"""`gptailor search --export`: a search's trials as an Optuna study."""

__all__ = ()
