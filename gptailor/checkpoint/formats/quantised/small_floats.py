"""`fp8` and `mxfp4`: floats of eight and of four bits, with scales.

`fp8`, as DeepSeek and Qwen have it, has a scale for each block of a matrix, or for all of it.
`mxfp4` is the format of gpt-oss: experts' matrices of 4 bits, 32 of them with an exponent.
"""

from gptailor.checkpoint.files import quoted
from gptailor.checkpoint.formats.quantised.pieces import QuantisedTensors
from gptailor.checkpoint.tensor import FLOATS, Microscaled, Scaled, TensorInfo

FP8 = ("F8_E4M3", "F8_E5M2")
"""The dtypes of numbers with eight bits that are scaled."""

_SCALE_DTYPES = (*FLOATS, "F8_E8M0", "U8")
"""Dtypes of scales; the last two are exponents of 2."""


def read_fp8(pieces: QuantisedTensors) -> None:
    """Read each `X` in FP8, and multiply it by `X_scale_inv`."""
    size = pieces.settings.get("weight_block_size")
    block = None if size is None else pieces.sides("weight_block_size", size)
    for name, tensor in list(pieces.left.items()):
        if tensor.spec.dtype not in FP8:
            continue
        values = pieces.take(name, name, FP8)
        scales = pieces.take(f"{name}_scale_inv", name, _SCALE_DTYPES)
        # Settings of activations, which are quantised while the model runs.
        pieces.find(f"{name.removesuffix('weight')}activation_scale")
        pieces.find(f"{name.removesuffix('.weight')}_activation_scale")
        pieces.add(name, tensor.spec.shape, block_scaled(pieces, values, scales, block))


def block_scaled(
    pieces: QuantisedTensors,
    values: TensorInfo,
    scales: TensorInfo,
    block: tuple[int, int] | None,
    zeros: TensorInfo | None = None,
) -> Scaled:
    """Return a matrix, or a stack of them, with a scale per block; None is the whole matrix."""
    shape = values.spec.shape
    if len(shape) < 2 or not values.spec.elements:
        pieces.refuse(f"{quoted(values.spec.name)} has the shape {list(shape)}, expected a matrix")
    *stack, rows, columns = shape
    height, width = block or (rows, columns)
    block = (min(height, rows), min(width, columns))
    grid = (*stack, -(-rows // block[0]), -(-columns // block[1]))
    # One number may be written without its axes, and one for each row without the last.
    short = {grid} if grid[-1] != 1 else {grid, grid[:-1]}
    if set(grid) == {1}:
        short |= {(), (1,)}
    for tensor in (scales, zeros) if zeros is not None else (scales,):
        pieces.check_shape(tensor, grid, *sorted(short))
    return Scaled(values, scales, block, zeros)


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
            pieces.refuse(f"{message}, expected four axes, the last of {_BYTES} bytes")
        pieces.check_shape(scales, shape[:-1])
        experts, columns, blocks, size = shape
        pieces.add(stem, (experts, blocks * 2 * size, columns), Microscaled(values, scales))
