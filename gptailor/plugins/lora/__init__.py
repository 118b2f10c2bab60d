"""The difference of two models as a LoRA adapter."""

__all__ = ["command", "extract"]
__commands__ = {"extract-lora": ("Write", "Make a LoRA adapter from the difference of two models.")}
