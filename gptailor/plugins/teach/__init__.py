"""`gptailor teach`, and healing from its files of predictions and from a teacher's answers."""

__all__ = ["answers", "command", "predictions_file", "teach"]
__commands__ = {"teach": ("Measure", "Write a teacher's predictions of texts to a file.")}
