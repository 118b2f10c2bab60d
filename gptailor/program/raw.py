"""Plain bytes of a file into memory: a stretch into a buffer, or a whole tensor."""

import os
from contextlib import suppress
from pathlib import Path

import torch
from jaxtyping import Shaped
from torch import Tensor

from gptailor.checkpoint.error import CheckpointError, reason
from gptailor.checkpoint.header import TensorInfo
from gptailor.checkpoint.regular import open_regular
from gptailor.diagnostics import TailorError

TORCH: dict[str, torch.dtype] = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8,
    "U64": torch.uint64, "U32": torch.uint32, "U16": torch.uint16, "U8": torch.uint8,
    "BOOL": torch.bool, "C64": torch.complex64,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz, "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
    "F8_E8M0": torch.float8_e8m0fnu,
}  # fmt: skip
"""Dtypes by their names in safetensors."""


def load_raw(tensor: TensorInfo) -> Shaped[Tensor, "..."]:
    """A tensor whose bytes lie in a row, in memory of its own."""
    spec = tensor.spec
    if (dtype := TORCH.get(spec.dtype)) is None:
        raise TailorError(f"'{spec.name}' in '{tensor.file}' is {spec.dtype}, which torch has not")
    if not spec.size:
        return torch.empty(spec.shape, dtype=dtype)
    buffer = bytearray(spec.size)
    with open_regular(tensor.file) as file:
        read_into(memoryview(buffer), file.fileno(), tensor.offset, tensor.file)
    return torch.frombuffer(buffer, dtype=dtype).reshape(spec.shape)


def foresee(file: int, offset: int, size: int) -> None:
    """Tell the system that these bytes will be read: it reads ahead while others are worked on."""
    with suppress(OSError, AttributeError):  # a wish: where it can't be said the bytes come later
        os.posix_fadvise(file, offset, size, os.POSIX_FADV_WILLNEED)


def read_into(view: memoryview, file: int, offset: int, path: Path) -> None:
    """Read exactly the view's bytes."""
    while view:
        try:
            count = os.preadv(file, [view], offset)
        except OSError as error:
            message = f"cannot be read: {reason(error)}"
            raise CheckpointError("C201", message, path, offset=offset) from error
        if not count:
            message = f"ends here, {len(view)} bytes before the end of a tensor's chunk"
            raise CheckpointError("C304", message, path, offset=offset)
        offset += count
        view = view[count:]
