"""Tensors on disk: name, dtype, shape, and the form of their values. Data, no loading.

A `TensorInfo` without a form is a stretch of bytes that can be copied. One with a form is loaded
whole, by `gptailor.program.load`.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from math import prod
from pathlib import Path
from typing import Literal, final

from gptailor.checkpoint.formats.gguf.kinds import KINDS

DTYPE_BITS: dict[str, int] = {
    "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
    "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8,
    "U16": 16, "I16": 16, "F16": 16, "BF16": 16,
    "U32": 32, "I32": 32, "F32": 32,
    "U64": 64, "I64": 64, "F64": 64, "C64": 64,
}  # fmt: skip

FLOATS = ("F64", "F32", "F16", "BF16")
"""The dtypes of arithmetic."""


def resized(shape: tuple[int, ...], axis: int, size: int) -> tuple[int, ...]:
    """Return a shape with another size of one axis."""
    return (*shape[:axis], size, *shape[axis + 1 :])


@final
@dataclass(frozen=True, slots=True)
class TensorSpec:
    """The name, dtype and shape of a tensor.

    `dtype` is its name in safetensors (`BF16`), or GGUF's of a type with blocks (`Q8_0`).
    """

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def elements(self) -> int:
        """Return the number of entries."""
        return prod(self.shape)

    @property
    def size(self) -> int:
        """Return the number of bytes."""
        if (kind := KINDS.get(self.dtype)) is not None:
            return self.elements // kind.block * kind.bytes
        return self.elements * DTYPE_BITS[self.dtype] // 8


@final
@dataclass(frozen=True, slots=True)
class TensorInfo:
    """A tensor on disk: its spec, and the file and offset of its first byte.

    With a `form` its values are not just the bytes from there on, and it can't be copied as such.
    """

    spec: TensorSpec
    file: Path
    offset: int
    form: "Form | None" = None

    def with_rows(self, pieces: "Sequence[RowRange]") -> "TensorInfo":
        """Return a tensor like this one, of rows that may be other tensors'."""
        rows = sum(piece.count for piece in pieces)
        spec = replace(self.spec, shape=(rows, *self.spec.shape[1:]))
        return TensorInfo(spec, self.file, self.offset, Aligned(tuple(pieces)))


@final
@dataclass(frozen=True, slots=True)
class ByteRange:
    """A stretch of a file, to be copied unchanged."""

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

    `kind` is GGUF's name of its type (`Q4_1`). If llama.cpp has permuted a projection's rows for
    its rotary embeddings, `heads` is the number of its heads, otherwise 0. `shift` is added to the
    numbers: -1 for a norm that multiplies by 1 + w, which is stored as that. `sorted` are the
    numbers of heads of queries and of keys, where the rows of a fused projection are all queries,
    keys and values, which in the model come by groups; `transposed` says that the model has the
    matrix transposed.
    """

    kind: str
    heads: int = 0
    shift: float = 0.0
    sorted: tuple[int, int] | None = None
    transposed: bool = False


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
    """Rows that replace the rows at `at`: an adapter's trainable tokens."""

    tensor: "TensorInfo"
    at: tuple[int, ...]


Delta = LowRank | Shift | NewRows


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


def row_ranges(rows: Iterable[tuple[TensorInfo, int]]) -> list[RowRange]:
    """Return rows, each a tensor and a number in it; consecutive rows are a range."""
    starts: list[tuple[TensorInfo, int]] = []
    counts: list[int] = []
    for tensor, row in rows:
        if starts and tensor is starts[-1][0] and row == starts[-1][1] + counts[-1]:
            counts[-1] += 1
        else:
            starts.append((tensor, row))
            counts.append(1)
    return [RowRange(*start, count) for start, count in zip(starts, counts, strict=True)]


@final
@dataclass(frozen=True, slots=True)
class Aligned:
    """Rows of several tensors one after another, as another vocabulary wants them."""

    pieces: tuple[RowRange, ...]


@final
@dataclass(frozen=True, slots=True)
class Mean:
    """The mean of tensors of one shape, entry by entry."""

    of: tuple["TensorInfo", ...]


@final
@dataclass(frozen=True, slots=True)
class Scaled:
    """A quantised matrix: (values - zeros) · scales · factor.

    Each block of the last two axes has a scale, and a zero if there are `zeros`. A block has
    `block` rows and columns, fewer at the ends. Scales of dtype U8 are exponents of 2, 127 too
    large.
    """

    values: "TensorInfo"
    scales: "TensorInfo"
    block: tuple[int, int]
    zeros: "TensorInfo | None" = None
    factor: float = 1.0


@final
@dataclass(frozen=True, slots=True)
class PackedIntegers:
    """A quantised matrix, (values - zeros) · scales, of whole numbers packed in 32-bit words.

    `kind` says how. `gptq`: values along the rows of the transposed matrix, zeros along columns, in
    the order of their bits; zeros are 1 too small. `gptq_v2`: the same, with zeros as they are.
    `awq`: both along columns of the transposed matrix, eight of a word in AWQ's order.
    `compressed`: values along rows, zeros along columns; each 2^(bits-1) too large.
    A scale is for `group` columns; with `groups` that says for each column which scale is its.
    """

    kind: Literal["gptq", "gptq_v2", "awq", "compressed"]
    bits: int
    group: int
    values: "TensorInfo"
    scales: "TensorInfo"
    zeros: "TensorInfo | None" = None
    groups: "TensorInfo | None" = None


@final
@dataclass(frozen=True, slots=True)
class Microscaled:
    """Matrices in MXFP4, each transposed: 32 numbers of 4 bits have an exponent of 2.

    `values` are [matrices, columns, blocks, 16], two in a byte, the lower bits first; `scales` are
    [matrices, columns, blocks], 127 too large.
    """

    values: "TensorInfo"
    scales: "TensorInfo"


@final
@dataclass(frozen=True, slots=True)
class Blockwise:
    """bitsandbytes' 4-bit matrix: table[value] · maximum, with a maximum for `block` entries.

    Two values are in a byte, the upper bits first. `maxima` are float32; or, with `nested`, whole
    numbers that are entries of its table, times its own maxima, plus its offset.
    """

    values: "TensorInfo"
    table: "TensorInfo"
    maxima: "TensorInfo"
    block: int
    nested: "NestedMaxima | None" = None


@final
@dataclass(frozen=True, slots=True)
class NestedMaxima:
    """The quantisation of a `Blockwise` matrix's maxima."""

    table: "TensorInfo"
    maxima: "TensorInfo"
    block: int
    offset: float


class Computation(ABC):
    """A tensor that no file has: computed of other tensors in float32, and rounded at the end."""

    @property
    @abstractmethod
    def tensors(self) -> tuple[TensorInfo, ...]:
        """Return all tensors that are read."""


Quantised = Scaled | PackedIntegers | Microscaled | Blockwise
"""A quantised weight with its scales, as one unquantised tensor."""


def tensors_in(part: object) -> Iterator[TensorInfo]:
    """Yield the tensors that a form is made of, in the order that they are read."""
    match part:
        case TensorInfo():
            yield part
        case Computation():
            yield from part.tensors
        case Aligned(pieces):
            yield from (piece.tensor for piece in pieces)
        case tuple():
            for each in part:
                yield from tensors_in(each)
        case _ if is_dataclass(part):
            for field in fields(part):
                yield from tensors_in(getattr(part, field.name))


Form = Pickled | Dequantised | Adapted | Aligned | Mean | Quantised | Computation
