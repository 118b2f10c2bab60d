"""The types of a GGUF file's tensors: their blocks, and the types that are written."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

from gptailor.checkpoint.files import quoted
from gptailor.plan.faults import listed


@final
@dataclass(frozen=True, slots=True)
class TensorKind:
    """A type of tensors: the entries in a block, and the bytes of a block.

    `plain` is the dtype that the type equals. `file_type` is llama.cpp's number of a file whose
    matrices have the type; a type without a number is never written. A quantised block begins with
    `scales` bytes of float16 numbers: a scale, and for some types a minimum.
    """

    name: str
    block: int
    bytes: int
    plain: str | None = None
    file_type: int | None = None
    scales: int = 2


KIND_NUMBERS: Mapping[int, TensorKind] = {
    0: TensorKind("F32", 1, 4, "F32", file_type=0), 1: TensorKind("F16", 1, 2, "F16", file_type=1),
    2: TensorKind("Q4_0", 32, 18, file_type=2),
    3: TensorKind("Q4_1", 32, 20, file_type=3, scales=4),
    6: TensorKind("Q5_0", 32, 22, file_type=8),
    7: TensorKind("Q5_1", 32, 24, file_type=9, scales=4),
    8: TensorKind("Q8_0", 32, 34, file_type=7), 10: TensorKind("Q2_K", 256, 84),
    11: TensorKind("Q3_K", 256, 110), 12: TensorKind("Q4_K", 256, 144),
    13: TensorKind("Q5_K", 256, 176), 14: TensorKind("Q6_K", 256, 210),
    16: TensorKind("IQ2_XXS", 256, 66), 17: TensorKind("IQ2_XS", 256, 74),
    18: TensorKind("IQ3_XXS", 256, 98), 19: TensorKind("IQ1_S", 256, 50),
    20: TensorKind("IQ4_NL", 32, 18), 21: TensorKind("IQ3_S", 256, 110),
    22: TensorKind("IQ2_S", 256, 82), 23: TensorKind("IQ4_XS", 256, 136),
    28: TensorKind("F64", 1, 8, "F64"), 29: TensorKind("IQ1_M", 256, 56),
    30: TensorKind("BF16", 1, 2, "BF16", file_type=32), 34: TensorKind("TQ1_0", 256, 54),
    35: TensorKind("TQ2_0", 256, 66), 39: TensorKind("MXFP4", 32, 17),
}  # fmt: skip
"""The types that are read, by their numbers in the format."""

KINDS: Mapping[str, TensorKind] = {kind.name: kind for kind in KIND_NUMBERS.values()}

FILE_TYPES: Mapping[str, int] = dict(
    sorted(
        ((kind.name, kind.file_type) for kind in KINDS.values() if kind.file_type is not None),
        key=lambda entry: entry[1],
    )
)
"""The types that are written, with llama.cpp's number of a file whose matrices have the type."""


def quantised_kind(name: str | None) -> str | None:
    """Return GGUF's name of a type as people write it.

    Raises ValueError for a type that is not written.
    """
    kind = name.upper() if name is not None else None
    if name is None or kind is None or kind in FILE_TYPES:
        return kind
    kinds = f"those written are {listed([each.lower() for each in FILE_TYPES])}"
    if "_K" in kind or kind.startswith("IQ"):
        why = "the package 'gguf' can read it and not write it; let llama-quantize make it of f16"
        raise ValueError(f"{quoted(name)} can't be made: {why}, or choose another: {kinds}")
    if kind.startswith("TQ") or kind.endswith("FP4"):
        raise ValueError(f"{quoted(name)} is for models that were trained for it; {kinds}")
    raise ValueError(f"{quoted(name)} is no type of llama.cpp's; {kinds}")
