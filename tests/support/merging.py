"""Tensors in memory merged by a method, as any plan would have them merged.

Each merge is computed by torch, by NumPy, and by the compiled library if there is one. All must
agree to the bit.
"""

from collections.abc import Sequence
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from torch import Tensor

from gptailor.checkpoint.tensor import TensorInfo, TensorSpec
from gptailor.methods import native
from gptailor.program.combine import Reader, combined
from gptailor.program.load import TORCH_DTYPES, combine_tensors
from gptailor.program.program import Arguments, Combine


def merge_tensors(  # noqa: PLR0913 (a merge has these eight sides)
    method: str,
    arguments: Arguments,
    base: Tensor | None,
    sources: Sequence[Tensor],
    models: Sequence[str],
    place: str,
    *,
    divisor: float = 1.0,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """The merge, of the base's dtype if no other is said, else of the first source's."""
    tensors = [*sources] if base is None else [base, *sources]
    names = {each: name for name, each in TORCH_DTYPES.items()}

    def spec(tensor: Tensor) -> TensorSpec:
        return TensorSpec(place, names[tensor.dtype], tuple(tensor.shape))

    infos = tuple(TensorInfo(spec(tensor), Path(), 0) for tensor in tensors)
    first = len(tensors) - len(sources)
    make = Combine(method, arguments, infos[:first], infos[first:], tuple(models), place, divisor)
    wanted = TensorSpec(place, names[dtype or tensors[0].dtype], tuple(tensors[0].shape))
    merged = combine_tensors(make, wanted, tensors)
    in_memory = merged.reshape(-1).view(torch.uint8).numpy().tobytes()
    assert in_memory == merged_arrays(make, wanted, tensors)
    with mock.patch.object(native, "library", return_value=None):
        assert in_memory == merged_arrays(make, wanted, tensors)
    return merged


def merged_arrays(make: Combine, wanted: TensorSpec, tensors: Sequence[Tensor]) -> bytes:
    """The bytes of the merge of NumPy's arrays, in chunks that aren't a multiple of anything."""

    def reader(tensor: Tensor) -> Reader:
        flat = tensor.detach().reshape(-1)
        if flat.dtype == torch.bfloat16:
            bits = flat.contiguous().view(torch.int16).numpy().view(np.uint16)
            return lambda start, end: bits[start:end]
        array = flat.numpy()
        return lambda start, end: array[start:end]

    parts = combined(make, wanted, [reader(tensor) for tensor in tensors], step=4099)
    return b"".join(part.tobytes() for part in parts)
