"""A Modelfile for Ollama beside each GGUF file of a model with a chat template."""

__all__ = ["modelfile", "template"]
