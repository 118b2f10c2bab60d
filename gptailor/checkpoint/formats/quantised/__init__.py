"""Quantised checkpoints as the unquantised ones that they stand for: one file a format.

Other packages use `dequantise`: a configuration and its tensors without the quantisation, from
headers alone. The arithmetic is in `gptailor.program.dequantise`.
"""

__all__ = ["dequantise"]
