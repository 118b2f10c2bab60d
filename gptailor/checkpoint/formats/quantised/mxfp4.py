"""`mxfp4`, the format of gpt-oss: experts' matrices of 4 bits, 32 of them with an exponent."""

from gptailor.checkpoint.files import quoted
from gptailor.checkpoint.formats.quantised.pieces import QuantisedTensors
from gptailor.checkpoint.tensor import Microscaled

_BYTES = 16
"""Bytes of a block of 32 numbers."""


def read_mxfp4(pieces: QuantisedTensors) -> None:
    """Read each `X_blocks` with `X_scales`: `X` is the experts' matrices, inputs by outputs."""
    for stem in pieces.stems("_blocks"):
        values = pieces.take(f"{stem}_blocks", stem, ("U8",))
        scales = pieces.take(f"{stem}_scales", stem, ("U8", "F8_E8M0"))
        shape = values.spec.shape
        if len(shape) != 4 or shape[-1] != _BYTES or not values.spec.elements:
            message = f"{quoted(values.spec.name)} has the shape {list(shape)}"
            pieces.refuse(f"{message}, and should have four axes, the last of {_BYTES} bytes")
        pieces.check_shape(scales, shape[:-1])
        experts, columns, blocks, size = shape
        pieces.add(stem, (experts, blocks * 2 * size, columns), Microscaled(values, scales))
