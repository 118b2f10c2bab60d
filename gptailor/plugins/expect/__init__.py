"""`gptailor test`: the expectations that plans state, measured and compared with their bounds."""

__all__ = ["command", "expectations", "results"]
__commands__ = {"test": ("Measure", "Evaluate the expectations of plans.")}
