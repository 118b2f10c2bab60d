"""Numbers of quantised weights, in float32: `rows_of`, some rows at a time.

Each is computed in float32 by the formula of its format. Packed numbers are read once, so memory is
bounded by these and by the requested rows.
"""

from collections.abc import Callable
from math import prod

import torch
from jaxtyping import Float32, Int, Int32, Shaped, UInt8
from torch import Tensor

from gptailor.checkpoint import tensor as forms
from gptailor.checkpoint.files import CheckpointError, quoted

Load = Callable[[forms.TensorInfo], Shaped[Tensor, "..."]]
"""Loads a tensor in its form on disk."""
ReadRows = Callable[[int, int], Float32[Tensor, "..."]]
"""Returns the rows of a weight, along its first axis, from a number to another."""

_E8M0_BIAS = 127
_FP4 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
"""Numbers of 4 bits, E2M1, without their sign."""
_AWQ_ORDER = (0, 4, 1, 5, 2, 6, 3, 7)
"""The place of each column in a word of AWQ's."""
_WORD = 32


def rows_of(tensor: forms.TensorInfo, form: forms.Quantised, load: Load) -> ReadRows:
    """Return a reader of a quantised weight's rows. Raises as `load` does."""
    match form:
        case forms.Scaled():
            return _scaled(tensor.spec, form, load)
        case forms.PackedIntegers():
            return _unpacked(tensor.spec, form, load)
        case forms.Microscaled():
            return _microscaled(form, load)
        case forms.Blockwise():
            return _blockwise(tensor.spec, form, load)


# --------------------------------------------------------------------------- a scale for each block


def _scaled(spec: forms.TensorSpec, form: forms.Scaled, load: Load) -> ReadRows:
    *stack, rows, columns = spec.shape
    height, width = form.block
    grid = (prod(stack), -(-rows // height), -(-columns // width))
    values = load(form.values).reshape(-1, columns)
    scales = _exponents(load(form.scales)).reshape(grid)
    zeros = None if form.zeros is None else load(form.zeros).float().reshape(grid)
    inner = prod(spec.shape[1:-1])

    def read(first: int, end: int) -> Float32[Tensor, "..."]:
        first, end = first * inner, end * inner
        number = torch.arange(first, end)
        at = (number // rows, number % rows // height)
        part = values[first:end].float()
        if zeros is not None:
            part -= _spread(zeros[at], width, columns)
        part *= _spread(scales[at], width, columns)
        if form.factor != 1.0:
            part *= form.factor
        return part.reshape(-1, *spec.shape[1:])

    return read


def _exponents(scales: Shaped[Tensor, "..."]) -> Float32[Tensor, "..."]:
    """Return scales as factors: bytes are exponents of 2."""
    if scales.dtype == torch.uint8:
        return torch.ldexp(torch.ones(scales.shape), scales.int() - _E8M0_BIAS)
    return scales.float()


def _spread(
    each: Float32[Tensor, "rows groups"], width: int, columns: int
) -> Float32[Tensor, "rows columns"]:
    """Repeat each group's number for all of its columns."""
    return each.repeat_interleave(width, dim=1)[:, :columns]


# --------------------------------------------------------------------------------- packed in words


def _unpacked(spec: forms.TensorSpec, form: forms.PackedIntegers, load: Load) -> ReadRows:
    rows, columns = spec.shape
    values, scales = load(form.values), load(form.scales).float()
    scales = scales if form.kind == "compressed" else scales.t()
    zeros = None if form.zeros is None else _zeros(load(form.zeros), rows, form).float()
    group = torch.arange(columns) // form.group
    if form.groups is not None:
        group = load(form.groups).long()
        if not 0 <= int(group.min()) <= int(group.max()) < scales.shape[1]:
            message = f"{quoted(form.groups.spec.name)} names a group without a scale"
            raise CheckpointError("M213", message, form.groups.file)

    def read(first: int, end: int) -> Float32[Tensor, "rows columns"]:
        part = _values(values, first, end, columns, form).float()
        if zeros is not None:
            part -= zeros[first:end, group]
        return part * scales[first:end, group]

    return read


def _values(
    words: Int32[Tensor, "m n"], first: int, end: int, columns: int, form: forms.PackedIntegers
) -> Int[Tensor, "rows columns"]:
    """Return the whole numbers of some rows."""
    match form.kind:
        case "compressed":
            return _fields(words[first:end], form.bits, columns) - (1 << (form.bits - 1))
        case "awq":
            each = len(_AWQ_ORDER)
            start = first // each
            ordered = _in_order(words[:, start : -(-end // each)], form.bits)
            return ordered[:, first - start * each : end - start * each].t()
        case _:
            return _fields(words[:, first:end].t(), form.bits, columns)


def _zeros(
    words: Int32[Tensor, "m n"], rows: int, form: forms.PackedIntegers
) -> Int[Tensor, "rows groups"]:
    """Return the zero of each row and group."""
    match form.kind:
        case "compressed":
            return (_fields(words.t(), form.bits, rows) - (1 << (form.bits - 1))).t()
        case "awq":
            return _in_order(words, form.bits)[:, :rows].t()
        case _:
            zeros = _fields(words, form.bits, rows).t()
    if form.kind == "gptq_v2":
        return zeros
    if bool((zeros == (1 << form.bits) - 1).any()):
        # Some write it for a zero of 0, some for one of 2^bits; their neighbours differ too.
        name = quoted(form.zeros.spec.name if form.zeros is not None else "")
        message = f"{name} has a zero point beyond its bits, which can't be read reliably"
        raise CheckpointError(
            "M213", message, form.values.file, "use a checkpoint in the format 'gptq_v2'"
        )
    return zeros + 1


def _fields(words: Int32[Tensor, "m n"], bits: int, count: int) -> Int[Tensor, "m count"]:
    """Return the first `count` numbers of `bits` bits in each row of words, low bits first."""
    padded = torch.nn.functional.pad(words.long() & 0xFFFFFFFF, (0, 1))
    start = torch.arange(count) * bits
    at = start // _WORD
    both = padded[:, at] | (padded[:, at + 1] << _WORD)
    return (both >> start % _WORD) & ((1 << bits) - 1)


def _in_order(words: Int32[Tensor, "m n"], bits: int) -> Int[Tensor, "m count"]:
    """Return the numbers of each row of AWQ's words."""
    fields = _fields(words, bits, words.shape[1] * len(_AWQ_ORDER))
    stored = fields.reshape(words.shape[0], words.shape[1], len(_AWQ_ORDER))
    return stored[:, :, list(_AWQ_ORDER)].reshape(words.shape[0], -1)


# ---------------------------------------------------------------------------- numbers of four bits


def _microscaled(form: forms.Microscaled, load: Load) -> ReadRows:
    values, scales = load(form.values), load(form.scales).view(torch.uint8)
    table = torch.tensor([*_FP4, *(-number for number in _FP4)])

    def read(first: int, end: int) -> Float32[Tensor, "matrices inputs outputs"]:
        part = _halves(values[first:end], low_first=True)  # [matrices, outputs, blocks, 32]
        exponents = scales[first:end, :, :, None].int() - _E8M0_BIAS
        numbers = torch.ldexp(table[part.int()], exponents)
        return numbers.flatten(2).transpose(1, 2)

    return read


def _blockwise(spec: forms.TensorSpec, form: forms.Blockwise, load: Load) -> ReadRows:
    packed = load(form.values).contiguous().view(torch.uint8).reshape(-1)
    table, maxima = load(form.table), load(form.maxima)
    if (nested := form.nested) is not None:
        inner, outer = load(nested.table), load(nested.maxima)
        each = torch.arange(len(maxima)) // nested.block
        maxima = inner[maxima.int()] * outer[each] + nested.offset
    width = prod(spec.shape[1:])

    def read(first: int, end: int) -> Float32[Tensor, "..."]:
        start, stop = first * width, end * width
        halves = _halves(packed[start // 2 : -(-stop // 2)], low_first=False).reshape(-1)
        numbers = table[halves[start % 2 :][: stop - start].int()]
        numbers *= maxima[torch.arange(start, stop) // form.block]
        return numbers.reshape(-1, *spec.shape[1:])

    return read


def _halves(packed: UInt8[Tensor, "*axes n"], *, low_first: bool) -> UInt8[Tensor, "*axes m"]:
    """Return the two numbers of each byte."""
    low, high = packed & 0xF, packed >> 4
    both = (low, high) if low_first else (high, low)
    return torch.stack(both, dim=-1).flatten(-2)
