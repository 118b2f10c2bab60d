"""The types of a GGUF file's tensors with their blocks, and the types of files that are written."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

from gptailor.checkpoint.files import quoted
from gptailor.plan.faults import listed


@final
@dataclass(frozen=True, slots=True)
class TensorKind:
    """A type of tensors: the entries in a block, and the bytes of a block.

    `plain` is the dtype that the type equals. `scales` is the place of a written block's float16
    numbers, from its beginning or to its end: a scale, and for some types a minimum.
    """

    name: str
    block: int
    bytes: int
    plain: str | None = None
    scales: tuple[int, int | None] = (0, 2)

    @property
    def weighted(self) -> bool:
        """Return whether an importance matrix changes the blocks."""
        return self.plain is None and self.name != "Q8_0"


_PAIR = (0, 4)
_LAST = (-2, None)

KIND_NUMBERS: Mapping[int, TensorKind] = {
    0: TensorKind("F32", 1, 4, "F32"), 1: TensorKind("F16", 1, 2, "F16"),
    2: TensorKind("Q4_0", 32, 18), 3: TensorKind("Q4_1", 32, 20, scales=_PAIR),
    6: TensorKind("Q5_0", 32, 22), 7: TensorKind("Q5_1", 32, 24, scales=_PAIR),
    8: TensorKind("Q8_0", 32, 34), 10: TensorKind("Q2_K", 256, 84),
    11: TensorKind("Q3_K", 256, 110, scales=_LAST), 12: TensorKind("Q4_K", 256, 144, scales=_PAIR),
    13: TensorKind("Q5_K", 256, 176, scales=_PAIR), 14: TensorKind("Q6_K", 256, 210, scales=_LAST),
    16: TensorKind("IQ2_XXS", 256, 66), 17: TensorKind("IQ2_XS", 256, 74),
    18: TensorKind("IQ3_XXS", 256, 98), 19: TensorKind("IQ1_S", 256, 50),
    20: TensorKind("IQ4_NL", 32, 18), 21: TensorKind("IQ3_S", 256, 110),
    22: TensorKind("IQ2_S", 256, 82), 23: TensorKind("IQ4_XS", 256, 136),
    28: TensorKind("F64", 1, 8, "F64"), 29: TensorKind("IQ1_M", 256, 56),
    30: TensorKind("BF16", 1, 2, "BF16"), 34: TensorKind("TQ1_0", 256, 54),
    35: TensorKind("TQ2_0", 256, 66), 39: TensorKind("MXFP4", 32, 17),
}  # fmt: skip
"""The types that are read, by their numbers in the format."""

KINDS: Mapping[str, TensorKind] = {kind.name: kind for kind in KIND_NUMBERS.values()}


@final
@dataclass(frozen=True, slots=True)
class FileType:
    """A type of files: llama.cpp's number of it, and the type of most of its matrices."""

    number: int
    kind: str


FILE_TYPES: Mapping[str, FileType] = {
    "F32": FileType(0, "F32"), "F16": FileType(1, "F16"), "BF16": FileType(32, "BF16"),
    "Q8_0": FileType(7, "Q8_0"), "Q6_K": FileType(18, "Q6_K"), "Q5_K_M": FileType(17, "Q5_K"),
    "Q5_K_S": FileType(16, "Q5_K"), "Q5_1": FileType(9, "Q5_1"), "Q5_0": FileType(8, "Q5_0"),
    "Q4_K_M": FileType(15, "Q4_K"), "Q4_K_S": FileType(14, "Q4_K"),
    "IQ4_NL": FileType(25, "IQ4_NL"), "Q4_1": FileType(3, "Q4_1"), "Q4_0": FileType(2, "Q4_0"),
    "Q3_K_L": FileType(13, "Q3_K"), "Q3_K_M": FileType(12, "Q3_K"), "Q3_K_S": FileType(11, "Q3_K"),
}  # fmt: skip
"""The types of files that are written, the largest first."""


def is_weighted(file_type: str | None) -> bool:
    """Return whether an importance matrix changes a file of a type, such as `Q4_K_M`."""
    return file_type is not None and KINDS[FILE_TYPES[file_type].kind].weighted


def quantised_kind(name: str | None) -> str | None:
    """Return GGUF's name of a file's type, from the type as people write it.

    Raises ValueError for a type that is not written.
    """
    kind = name.upper() if name is not None else None
    if name is None or kind is None or kind in FILE_TYPES:
        return kind
    kinds, help_ = listed([each.lower() for each in FILE_TYPES], "or"), unwritten_type(name)
    got = "; ".join([quoted(name), help_] if help_ else [quoted(name)])
    raise ValueError(f"expected the GGUF type {kinds}, got {got}")


def unwritten_type(name: str) -> str:
    """Return help on a type that is not written, or an empty text."""
    kind = name.upper()
    spelt = {known.replace("_", ""): known.lower() for known in FILE_TYPES}
    if near := spelt.get(kind.replace("_", "").replace("-", "")):
        return f"did you mean '{near}'?"
    if "_K" in kind or kind.startswith("IQ"):
        return "make it from an f16 file with llama-quantize"
    is_trained = kind.startswith("TQ") or kind.endswith("FP4")
    return "it is only for models that were trained for it" if is_trained else ""
