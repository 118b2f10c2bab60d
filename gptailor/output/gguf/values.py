"""The bytes of a GGUF file: its header by llama.cpp's own package, its tensors by conversion.

A tensor is converted some rows at a time, so that memory doesn't grow with it.
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from math import isfinite, prod
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, NoReturn

from gptailor.checkpoint.files import CheckpointError, quoted
from gptailor.checkpoint.formats.gguf.kinds import KINDS
from gptailor.checkpoint.tensor import DTYPE_BITS, TensorSpec
from gptailor.checkpoint.write.output_file import Payload, blocks_of, temporary_folder
from gptailor.evaluation.gguf_contents import GGUF_ALIGNMENT
from gptailor.plan.optional_packages import how_to_install
from gptailor.plan.registry import LARGEST_SINGLE
from gptailor.program.gguf.tensors import GgufTensorPlan

if TYPE_CHECKING:
    from torch import Tensor


_KINDS_OF_FACTS = {bool: "bool", int: "uint32", float: "float32", str: "string", list: "array"}
_ENDS: Mapping[type, tuple[float, float]] = {
    int: (0, 2**32 - 1),
    float: (-LARGEST_SINGLE, LARGEST_SINGLE),
}
"""The numbers that a GGUF file has room for."""

_LARGEST = 1e9
"""A size that no quantised type holds: beyond it llama.cpp's scales may be finite and wrong."""

_AT_ONCE = 2**20
"""Entries that are converted at once, if a row, or a head's rows, have no more."""


# ------------------------------------------------------------------------------------- the header


def gguf_package(target: Path) -> ModuleType:
    """Return the package that writes headers and quantises.

    Raises CheckpointError (C110) for a missing package.
    """
    try:
        import gguf
    except ImportError as error:
        raise CheckpointError(
            "C110",
            "writing GGUF needs the package 'gguf'",
            target,
            how_to_install("gguf"),
        ) from error
    return gguf


def header_bytes(
    architecture: str, facts: Mapping[str, Any], tensors: Sequence[TensorSpec], target: Path
) -> bytes:
    """Return all bytes of a GGUF file before its first tensor."""
    gguf = gguf_package(target)
    with temporary_folder(target) as folder:
        path = folder / "header"
        writer = gguf.GGUFWriter(path, architecture)
        for key, value in facts.items():
            ends = _ENDS.get(type(value))
            if ends is not None and not ends[0] <= value <= ends[1]:
                raise CheckpointError(
                    "C306",
                    f"{quoted(key)}: expected a number of at most 32 bits",
                    target,
                )
            if key != "general.architecture":  # which the writer adds itself
                getattr(writer, f"add_{_KINDS_OF_FACTS[type(value)]}")(key, value)
        for tensor in tensors:
            kind = gguf.GGMLQuantizationType[tensor.dtype]
            # A shape in entries, for the type of numbers isn't uint8.
            writer.add_tensor_info(tensor.name, tensor.shape, float, tensor.size, raw_dtype=kind)
        with closing(writer):
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_ti_data_to_file()
        raw = path.read_bytes()
    return raw + b"\0" * (-len(raw) % GGUF_ALIGNMENT)


# ------------------------------------------------------------------------------------ the tensors


def converted(
    tensor: GgufTensorPlan,
    raw: Payload,
    on_digest: Callable[[str], None] | None,
    target: Path,
    importance: "Tensor | None",
    zeros: Counter[str],
) -> Iterator[bytes]:
    """Yield a tensor's bytes in GGUF, from the program's bytes.

    `on_digest` receives the sha256 of the program's bytes. `zeros` counts by tensors the blocks
    that become 0 because their weights, not all 0, are too small for the type's scales.
    `importance` is the importance of a matrix's columns. Raises CheckpointError (C307) for numbers
    that the type can't hold, infinity and NaN among them.
    """
    from gptailor.program.devices import use_one_thread

    source = tensor.source
    row = prod(source.shape[1:]) if len(source.shape) > 1 else 1
    group = row * (source.shape[0] // tensor.heads if tensor.heads else 1)
    block = KINDS[tensor.spec.dtype].block if len(source.shape) == 1 else 1
    step = max(1, _AT_ONCE // group) * group * block * DTYPE_BITS[source.dtype] // 8
    held, digest = bytearray(), hashlib.sha256()
    with use_one_thread():
        for part in blocks_of(raw):
            if on_digest is not None:
                digest.update(part)
            held += memoryview(part).cast("B")
            while len(held) >= step:
                yield _convert(tensor, held[:step], target, importance, zeros)
                del held[:step]
        if on_digest is not None:
            on_digest(digest.hexdigest())
        if held:
            yield _convert(tensor, held, target, importance, zeros)


def _convert(
    tensor: GgufTensorPlan,
    raw: bytearray,
    target: Path,
    importance: "Tensor | None",
    zeros: Counter[str],
) -> bytes:
    """Return whole rows in the tensor's type; whole heads of an interleaved projection."""
    import torch

    from gptailor.methods.rounding import rounded
    from gptailor.program.load import TORCH_DTYPES

    source, kind = tensor.source, KINDS[tensor.spec.dtype]
    inner = source.shape[1:]
    values = torch.frombuffer(raw, dtype=TORCH_DTYPES[source.dtype]).reshape(-1, *inner)
    if tensor.heads:
        half = source.shape[0] // tensor.heads // 2
        values = values.reshape(-1, 2, half, *inner).swapaxes(1, 2).reshape(-1, *inner)
    if tensor.add_one:
        values = values.float() + 1.0

    def refuse(number: int) -> NoReturn:
        value = float(values.reshape(-1)[number])
        help_ = "choose a type with a larger range" if isfinite(value) else "repair the model"
        raise CheckpointError(
            "C307",
            f"{quoted(source.name)} contains {value:.9g}, which {kind.name} can't represent",
            target,
            help_,
        )

    plain: Tensor = rounded(values, kind.plain or "F32", refuse).contiguous()
    if kind.plain is not None:
        return plain.view(torch.uint8).numpy().tobytes()
    import numpy as np

    from gptailor.output.gguf.quantise import quantised

    blocks = quantised(plain.numpy(), kind, None if importance is None else importance.numpy())
    numbers = plain.reshape(-1, kind.block).numpy()
    scales = blocks[:, slice(*kind.scales)].copy().view(np.float16)
    wrong = (~np.isfinite(scales)).any(axis=1) | (np.abs(numbers).max(axis=1) > _LARGEST)
    if wrong.any():
        first = int(wrong.argmax())
        refuse(first * kind.block + int(np.abs(numbers[first]).argmax()))
    if count := int(numbers[~scales.any(axis=1)].any(axis=1).sum()):
        zeros[tensor.spec.name] += count
    return blocks.tobytes()
