"""Tensors by torch: loaded whole or stretch by stretch, and combined in memory."""

from collections.abc import Sequence
from dataclasses import replace
from math import prod
from typing import assert_never

import numpy as np
import torch
from jaxtyping import Float, Float32, Shaped
from numpy.typing import NDArray
from torch import Tensor

from gptailor.checkpoint import tensor as forms
from gptailor.checkpoint.files import CheckpointError, open_regular, quoted, read_into
from gptailor.checkpoint.formats.gguf.kinds import KINDS
from gptailor.methods.arrays import Array
from gptailor.methods.rounding import NotFiniteFault, OverflowFault, index_of, rounded
from gptailor.plan.faults import TailorError
from gptailor.plan.optional_packages import how_to_install
from gptailor.program.combine import Reader, combined
from gptailor.program.dequantise import ReadRows, rows_of
from gptailor.program.devices import CPU
from gptailor.program.program import Combine

TORCH_DTYPES: dict[str, torch.dtype] = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8,
    "U64": torch.uint64, "U32": torch.uint32, "U16": torch.uint16, "U8": torch.uint8,
    "BOOL": torch.bool, "C64": torch.complex64,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz, "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
    "F8_E8M0": torch.float8_e8m0fnu,
}  # fmt: skip
"""Dtypes by their names in safetensors."""
FLOAT_DTYPES = {name: TORCH_DTYPES[name] for name in forms.FLOATS}
"""Dtypes that can be merged."""

_MEMORY_STEP = 2**22
"""Entries that are combined at once."""
_DELTA_ENTRIES = 2**21
"""Entries that a low-rank delta is added to at once, in float64."""


def load_tensor(tensor: forms.TensorInfo) -> Shaped[Tensor, "..."]:
    """Return the tensor in its own shape and memory; of its spec's dtype, or float32 where exact.

    Raises CheckpointError where the file differs from its header.
    """
    match tensor.form:
        case None:
            loaded = _plain(tensor)
        case forms.Pickled():
            loaded = _pickled(tensor, tensor.form)
        case forms.Dequantised():
            loaded = _dequantised(tensor, tensor.form)
        case forms.Adapted():
            loaded = _adapted(tensor, tensor.form)
        case forms.Aligned():
            loaded = _aligned(tensor.form).reshape(tensor.spec.shape)
        case forms.Mean():
            loaded = _mean(tensor.form).reshape(tensor.spec.shape)
        case Combine():
            inner = [load_tensor(each) for each in tensor.form.tensors]
            loaded = combine_tensors(tensor.form, replace(tensor.spec, dtype="F32"), inner)
        case _:
            assert not isinstance(tensor.form, forms.Computation), "there is no other kind of it"
            loaded = rows_of(tensor, tensor.form, load_tensor)(0, tensor.spec.shape[0])
    return loaded


def _plain(tensor: forms.TensorInfo) -> Shaped[Tensor, "..."]:
    spec = tensor.spec
    if (dtype := TORCH_DTYPES.get(spec.dtype)) is None:
        raise TailorError(f"'{spec.name}' in '{tensor.file}' is {spec.dtype}, which torch lacks")
    if not spec.size:
        return torch.empty(spec.shape, dtype=dtype)
    return torch.frombuffer(_bytes_from(tensor, spec.size), dtype=dtype).reshape(spec.shape)


def _pickled(tensor: forms.TensorInfo, form: forms.Pickled) -> Shaped[Tensor, "..."]:
    from pickle import UnpicklingError

    try:
        archive = torch.load(tensor.file, map_location="cpu", weights_only=True, mmap=True)
        value = archive[form.key]
    except (UnpicklingError, RuntimeError, KeyError, OSError, ValueError) as error:
        message = f"{quoted(form.key)} can't be loaded: {str(error).splitlines()[0]}"
        raise CheckpointError("C108", message, tensor.file) from error
    spec = tensor.spec
    same = isinstance(value, Tensor) and tuple(value.shape) == spec.shape
    if not same or value.dtype != TORCH_DTYPES.get(spec.dtype):
        message = f"{quoted(form.key)} changed since the file was opened"
        raise CheckpointError("C304", message, tensor.file)
    result: Tensor = value.detach().clone(memory_format=torch.contiguous_format)
    return result


# --------------------------------------------------------------------------------------- in memory


def combine_tensors(
    make: Combine, spec: forms.TensorSpec, tensors: Sequence[Shaped[Tensor, "..."]]
) -> Float[Tensor, "..."]:
    """Return a merged tensor of tensors in memory, with exactly the bytes of `chunks`.

    `tensors` are the loaded `make.tensors`, on one device. Raises OverflowFault and NotFiniteFault,
    and TailorError for whole numbers.
    """
    for tensor, info in zip(tensors, make.tensors, strict=True):
        if tensor.dtype not in FLOAT_DTYPES.values():
            kind = str(tensor.dtype).removeprefix("torch.")
            raise TailorError(f"'{info.spec.name}' is {kind}, which can't be merged")
        if tensor.shape != spec.shape:
            raise ValueError(f"'{spec.name}': {[*tensor.shape]} and {[*spec.shape]} differ")
    device = tensors[0].device
    readers = [_memory_reader(tensor, device) for tensor in tensors]
    out = torch.empty(spec.elements, dtype=FLOAT_DTYPES[spec.dtype], device=device)
    offset = 0
    for part in combined(make, spec, readers, _MEMORY_STEP):
        out[offset : offset + len(part)] = part
        offset += len(part)
    return out.view(spec.shape)


def _memory_reader(tensor: Shaped[Tensor, "..."], device: torch.device) -> Reader:
    """Return a reader of a tensor in memory that brings it to the device stretch by stretch."""
    flat = tensor.detach().reshape(-1)
    return lambda start, end: flat[start:end].to(device)


# ------------------------------------------------------------------------------ stretch by stretch


def loaded_reader(tensor: forms.TensorInfo, device: torch.device | None) -> Reader:
    """Return a reader of a tensor that isn't stored as plain numbers.

    Without a device the reader returns arrays of NumPy's.
    """
    place = device or CPU
    if isinstance(tensor.form, forms.Quantised):
        reader = _rows_reader(rows_of(tensor, tensor.form, load_tensor), tensor.spec, place)
    else:
        reader = _memory_reader(load_tensor(tensor), place)
    if device is not None:
        return reader

    def read(start: int, end: int) -> Float[Array, " n"]:
        values = reader(start, end)
        return (values.float() if values.dtype == torch.bfloat16 else values).numpy()

    return read


def bytes_for(device: torch.device, size: int) -> NDArray[np.uint8]:
    """Return memory of the host for fast copies to a device: pinned for CUDA."""
    pinned = torch.empty(size, dtype=torch.uint8, pin_memory=device.type == "cuda")
    return pinned.numpy()


def on_device(raw: NDArray[np.uint8], dtype: str, device: torch.device) -> Float[Tensor, " n"]:
    """Return the numbers in these bytes of the host on a device."""
    return torch.from_numpy(raw).view(TORCH_DTYPES[dtype]).to(device)


def _rows_reader(read_rows: ReadRows, spec: forms.TensorSpec, device: torch.device) -> Reader:
    """Return a reader of a quantised tensor, some rows at a time, which keeps the last ones."""
    width = prod(spec.shape[1:])
    kept, rows = range(0), torch.empty(0)

    def read(start: int, end: int) -> Float[Tensor, " n"]:
        nonlocal kept, rows
        needed = range(start // width, -(-end // width))
        if not (kept.start <= needed.start and needed.stop <= kept.stop):
            kept, rows = needed, read_rows(needed.start, needed.stop).reshape(-1)
        before = kept.start * width
        return rows[start - before : end - before].to(device)

    return read


# -------------------------------------------------------------------------------------------- GGUF


def _dequantised(tensor: forms.TensorInfo, form: forms.Dequantised) -> Float[Tensor, "..."]:
    """Return a tensor of a GGUF file in float32, or a plain float's dtype.

    Its axes, rows and heads are ordered as Hugging Face has them.
    """
    kind = KINDS[form.kind]
    shape = tensor.spec.shape[::-1] if form.transposed else tensor.spec.shape
    buffer = _bytes_from(tensor, kind.bytes * (prod(shape) // kind.block))
    if kind.plain is not None:
        values = torch.frombuffer(buffer, dtype=TORCH_DTYPES[kind.plain]).reshape(shape)
    else:
        values = _unpacked(buffer, tensor, form.kind, shape)
    if form.shift:
        values = values.float() + form.shift
    if form.transposed:
        values = values.t().contiguous()
    if form.sorted is not None:
        values = _grouped(values, *form.sorted)
    if not form.heads:
        return values
    # llama.cpp rotates neighbouring rows of a head, Hugging Face its two halves.
    halves = values.reshape(form.heads, shape[0] // form.heads // 2, 2, *shape[1:])
    return halves.swapaxes(1, 2).reshape(shape)


def _grouped(values: Float[Tensor, "m n"], heads: int, kv: int) -> Float[Tensor, "m n"]:
    """Return rows of all queries, keys and values as groups: queries, then their key and value."""
    each = values.reshape(heads + 2 * kv, -1, values.shape[1])
    q, k, v = each[:heads], each[heads : heads + kv], each[heads + kv :]
    groups = [q.reshape(kv, heads // kv, *q.shape[1:]), k[:, None], v[:, None]]
    return torch.cat(groups, dim=1).reshape(values.shape)


def _unpacked(
    buffer: bytearray, tensor: forms.TensorInfo, kind: str, shape: tuple[int, ...]
) -> Float[Tensor, "..."]:
    try:
        from gguf.constants import GGMLQuantizationType
        from gguf.quants import dequantize
    except ImportError as error:
        message = f"{quoted(tensor.spec.name)} is {kind}, which needs the package 'gguf'"
        raise CheckpointError("C110", message, tensor.file, how_to_install("gguf")) from error
    rows = np.frombuffer(buffer, dtype=np.uint8).reshape((*shape[:-1], -1))
    with np.errstate(all="ignore"):  # a merge or a cast refuses NaN and infinity
        values = dequantize(rows, GGMLQuantizationType[kind])
    return torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32))


# -------------------------------------------------------------------------- made of other tensors


def _adapted(tensor: forms.TensorInfo, form: forms.Adapted) -> Float32[Tensor, "..."]:
    """Return the tensor with all its deltas, in their order, in float32.

    Each is computed in float64 and rounded once to float32, as PEFT's `merge_and_unload` does in
    float32; blocks have a fixed size, so that the number of threads changes no bit. Raises
    OverflowFault or NotFiniteFault for a delta that makes infinity or NaN.
    """
    values = _single(form.base, load_tensor(form.base)).reshape(tensor.spec.shape)
    for delta in form.deltas:
        match delta:
            case forms.LowRank():
                _add_low_rank(values, delta, form.base)
            case forms.Shift(shift, scale):
                added = load_tensor(shift).double()
                by = f"{scale:.9g} times '{shift.spec.name}' is added"
                total = values.double() + added * scale
                values = _rounded(total, [form.base, shift], by=by, help=_ADAPTED)
            case forms.NewRows(rows, at):
                values[torch.tensor(at, dtype=torch.int64)] = _single(rows, load_tensor(rows))
            case _:
                assert_never(delta)
    return values


def _add_low_rank(
    matrix: Float32[Tensor, "m n"], delta: forms.LowRank, base: forms.TensorInfo
) -> None:
    """Add ΔW = scale · b @ a to W in place; with a magnitude m, scale each row w to m · w / ‖w‖.

    DoRA: arXiv 2402.09353; a row of zeros has no direction, and is refused.
    """
    values = matrix.t() if delta.transposed else matrix
    a, b = load_tensor(delta.a).double(), load_tensor(delta.b).double()
    read = [base, delta.a, delta.b]
    by = f"{delta.scale:.9g} times '{delta.b.spec.name}' @ '{delta.a.spec.name}' is added"
    magnitude = None
    if delta.magnitude is not None:
        magnitude = load_tensor(delta.magnitude).double()
        read.append(delta.magnitude)
        by += f", and '{delta.magnitude.spec.name}' divided by the length of that"
    step = max(1, _DELTA_ENTRIES // max(1, values.shape[1]))
    for start in range(0, values.shape[0], step):
        rows = slice(start, start + step)
        block = torch.addmm(values[rows].double(), b[rows], a, alpha=delta.scale)
        if magnitude is not None:
            block *= (magnitude[rows] / torch.linalg.vector_norm(block, dim=1))[:, None]
        values[rows] = _rounded(
            block, read, start, by=by, help=_ADAPTED, transposed=delta.transposed
        )


def _aligned(form: forms.Aligned) -> Shaped[Tensor, "..."]:
    """Return the pieces' rows, one after another; each tensor is loaded once."""
    loaded = {t: load_tensor(t) for t in dict.fromkeys(piece.tensor for piece in form.pieces)}
    rows = [loaded[p.tensor][p.first : p.first + p.count] for p in form.pieces]
    if len({row.dtype for row in rows}) > 1:
        rows = [_single(p.tensor, row) for p, row in zip(form.pieces, rows, strict=True)]
    return torch.cat(rows)


def _mean(form: forms.Mean) -> Float32[Tensor, "..."]:
    """Return Σ t / n, summed in float64 in the tensors' order."""
    first, *tensors = (load_tensor(tensor) for tensor in form.of)
    total = first.to(torch.float64, copy=True)
    for each in tensors:
        total += each.double()
    return _rounded(total / len(form.of), form.of, help=_IN_FLOAT32)


_ADAPTED = "the adapter is for another model, or its 'lora_alpha' is too large"
_IN_FLOAT32 = "correct the number in the model; gptailor computes in float32"


def _single(info: forms.TensorInfo, values: Float[Tensor, "..."]) -> Float32[Tensor, "..."]:
    """Return a tensor in float32; refuse a finite number beyond it."""
    if values.dtype != torch.float64:
        return values.to(torch.float32)
    return _rounded(values, [info], help=_IN_FLOAT32)


def _rounded(
    values: Float[Tensor, "*axes"],
    read: Sequence[forms.TensorInfo],
    row: int = 0,
    *,
    by: str = "",
    help: str,
    transposed: bool = False,
) -> Float32[Tensor, "*axes"]:
    """Return values of float64 in float32, all of them finite.

    The first row is number `row` of the result. `read` are the tensors that the values are computed
    from, the first of the same name; `by` is the computation, for messages.
    """

    def refuse(number: int) -> None:
        for info in read:
            tensor = load_tensor(info)
            if len(wild := (~torch.isfinite(tensor)).reshape(-1).nonzero()):
                index = index_of(int(wild[0, 0]), tensor.shape)
                owner = f"{info.file.parent.name}/{info.file.name}"
                raise NotFiniteFault(info.spec.name, index, float(tensor[index]), owner)
        index = index_of(number, values.shape)
        index = (row + index[0], *index[1:]) if row else index
        index = index[::-1] if transposed else index
        value, name = float(values.reshape(-1)[number]), read[0].spec.name
        raise OverflowFault(name, index, value, "F32", by, help)

    result: Float32[Tensor, "*axes"] = rounded(values, "F32", refuse)
    return result


# ------------------------------------------------------------------------------------------- bytes


def _bytes_from(tensor: forms.TensorInfo, size: int) -> bytearray:
    """Return `size` bytes of the tensor's file, from its first on."""
    buffer = bytearray(size)
    with open_regular(tensor.file) as file:
        read_into(memoryview(buffer), file.fileno(), tensor.offset, tensor.file)
    return buffer
