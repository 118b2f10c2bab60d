"""What a tensor on disk is: name, dtype, shape, and how its values lie there. Data, no loading.

A `TensorInfo` without a form is a stretch of bytes that can be copied. One with a form is loaded
whole, by `gptailor.program.load`.
"""

from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import final

DTYPE_BITS: dict[str, int] = {
    "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
    "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8,
    "U16": 16, "I16": 16, "F16": 16, "BF16": 16,
    "U32": 32, "I32": 32, "F32": 32,
    "U64": 64, "I64": 64, "F64": 64, "C64": 64,
}  # fmt: skip

FLOATS = ("F64", "F32", "F16", "BF16")
"""The dtypes that arithmetic is done on."""


@final
@dataclass(frozen=True, slots=True)
class TensorSpec:
    """What a tensor is, without its bytes. `dtype` is safetensors' name of it (`BF16`)."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def elements(self) -> int:
        """The number of entries."""
        return prod(self.shape)

    @property
    def size(self) -> int:
        """The number of bytes."""
        return self.elements * DTYPE_BITS[self.dtype] // 8


@final
@dataclass(frozen=True, slots=True)
class TensorInfo:
    """A tensor on disk: what it is, and the file and offset of its first byte.

    With a `form` its values are not just the bytes from there on, and it can't be copied as such.
    """

    spec: TensorSpec
    file: Path
    offset: int
    form: "Form | None" = None


@final
@dataclass(frozen=True, slots=True)
class ByteRange:
    """A stretch of a file, to be copied as it is."""

    file: Path
    offset: int
    size: int


@final
@dataclass(frozen=True, slots=True)
class Pickled:
    """A tensor of a PyTorch `.bin` file, read by `torch.load(…, weights_only=True)` only."""

    key: str


@final
@dataclass(frozen=True, slots=True)
class Dequantised:
    """A tensor of a GGUF file, dequantised.

    `kind` is GGUF's name of its type (`Q4_1`). `heads` is above 0 for a projection whose rows
    llama.cpp has permuted for its rotary embeddings, and is then the number of its heads.
    """

    kind: str
    heads: int = 0


@final
@dataclass(frozen=True, slots=True)
class LowRank:
    """One LoRA delta: scale · b @ a, or its transpose; with a `magnitude`, DoRA's."""

    a: "TensorInfo"
    b: "TensorInfo"
    scale: float
    transposed: bool = False
    magnitude: "TensorInfo | None" = None


@final
@dataclass(frozen=True, slots=True)
class Shift:
    """A tensor of the same shape, added scale times: the bias of a LoRA's `b`."""

    tensor: "TensorInfo"
    scale: float


@final
@dataclass(frozen=True, slots=True)
class NewRows:
    """Rows in the place of those at `at`: an adapter's trainable tokens."""

    tensor: "TensorInfo"
    at: tuple[int, ...]


Delta = LowRank | Shift | NewRows


def read_of(delta: Delta) -> tuple[TensorInfo, ...]:
    """The adapter's tensors that a delta is made of."""
    if not isinstance(delta, LowRank):
        return (delta.tensor,)
    return (delta.a, delta.b) if delta.magnitude is None else (delta.a, delta.b, delta.magnitude)


@final
@dataclass(frozen=True, slots=True)
class Adapted:
    """A tensor with deltas added to it, one after another; without any it is only cast."""

    base: "TensorInfo"
    deltas: tuple[Delta, ...]


@final
@dataclass(frozen=True, slots=True)
class RowRange:
    """A stretch of a tensor's rows."""

    tensor: "TensorInfo"
    first: int
    count: int


@final
@dataclass(frozen=True, slots=True)
class Aligned:
    """Rows of several tensors one after another, as another vocabulary wants them."""

    pieces: tuple[RowRange, ...]


Form = Pickled | Dequantised | Adapted | Aligned
