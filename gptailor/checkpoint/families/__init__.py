"""Architectures as data: tensors' names, and what a configuration says of each layer."""
