"""Quantisers: float32 numbers to the blocks of llama.cpp's types.

The package `gguf` lacks those of the K-quants and of IQ4_NL, and all with an importance matrix.
Here they follow the functions in llama.cpp's `ggml-quants.c` (MIT licence, copyright 2023-2026 The
ggml authors): the same float32 operations in the same order, over many blocks at once. So the bytes
are equal to those of llama.cpp, with and without an importance matrix.

A group is a run of entries with one scale. It is a column of an array, so that a sum over the rows
adds its entries one by one, as llama.cpp does. `levels` are whole numbers from 0. `weights` are
those of the entries' square errors, from an importance matrix; None without one.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
from gguf.constants import GGMLQuantizationType
from gguf.quants import quantize
from numpy.typing import NDArray

from gptailor.checkpoint.formats.gguf.kinds import TensorKind

_Array = NDArray[Any]
Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]

_AT_ONCE = 2**17
"""Entries that are quantised at once, so that the arrays fit a core's cache."""

_SINGLE = np.float32
_ZERO = _SINGLE(0)
_LEAST = _SINGLE(1e-15)
"""A group whose entries are all below this in size is zero."""

_IQ4_VALUES = np.array(
    [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.float32
)
"""The numbers of IQ4_NL's sixteen levels."""

_REACH = 300
_IQ4_LEVELS = np.searchsorted(
    _IQ4_VALUES[:-1] + _IQ4_VALUES[1:], np.arange(-_REACH, _REACH), side="right"
).astype(np.uint8)
"""The level nearest to a number, by floor(2 · number) + `_REACH`, because midpoints are halves."""
_IQ4_NEAREST = _IQ4_VALUES[_IQ4_LEVELS]


def quantised(values: Floats, kind: TensorKind, importance: Floats | None = None) -> Bytes:
    """Return finite numbers as a type's blocks: an array with the bytes of a block in each row.

    The type's block divides the count of the numbers. A block with a number that the type can't
    hold has a scale that isn't finite, unless the number has no importance or exceeds 1e19.
    `importance` has that of each column of a matrix, [columns], finite and not negative; the
    numbers are then whole rows of the matrix. Plain types and Q8_0 ignore it.
    """
    blocks = values.reshape(-1, kind.block)
    with np.errstate(all="ignore"):
        if kind.name not in _QUANTISERS or (importance is None and kind.name in _BY_ROW):
            blocks_of_gguf: _Array = quantize(blocks, GGMLQuantizationType[kind.name])
            return blocks_of_gguf.view(np.uint8)
        weights = None
        if importance is not None:
            weights = _weights(values.reshape(-1, len(importance)), kind, importance)
            weights = weights.reshape(blocks.shape)
        step = _AT_ONCE // kind.block
        parts = [slice(i, i + step) for i in range(0, len(blocks), step)]
        make = _QUANTISERS[kind.name]
        return np.concatenate(
            [make(blocks[part], None if weights is None else weights[part]) for part in parts]
        )


_BY_ROW = frozenset({"Q4_0", "Q4_1", "Q5_0", "Q5_1"})
"""The types that weigh an entry by the mean square of its row; other types by twice its block's."""


def _weights(rows: _Array, kind: TensorKind, importance: Floats) -> _Array:
    """Return the weight of each entry's square error, [rows, columns]: importance · √(σ² + x²)."""
    if kind.name == "Q6_K":
        return np.broadcast_to(importance, rows.shape)
    squares = rows * rows
    parts = squares if kind.name in _BY_ROW else squares.reshape(-1, kind.block)
    count = parts.shape[1] if kind.name in _BY_ROW else kind.block // 2
    mean = parts.cumsum(axis=1)[:, -1:] / _SINGLE(count)  # cumsum adds one by one
    weights: _Array = importance * np.sqrt(mean + parts).reshape(rows.shape)
    return weights


# ------------------------------------------------------------------------------- layouts of blocks


def _q3_k(blocks: _Array, weights: _Array | None) -> _Array:
    x = _columns(blocks, 16)
    if weights is None:
        scales, levels = _scales_by_changes(x, 4)
        scales = scales.reshape(-1, 16)
        largest = _largest(scales.T)[:, None]
        inverse = -32 / largest
        six = np.where(largest != 0, np.clip(_nearest(inverse * scales), -32, 31) + 32, 0)
        d = np.where(largest != 0, 1 / inverse, _ZERO).astype(np.float16)
    else:
        weight = _columns(weights, 16)
        scales, levels = _scales_by_trials(x, 4, weight)
        scale, of_scales = _scales_by_trials(_columns(scales, 16), 32, _columns(_sum(weight), 16))
        six, d = of_scales.T, scale.astype(np.float16)[:, None]
    step = (d.astype(np.float32) * (six - 32).astype(np.float32)).reshape(-1)
    q = _rows(np.where(step != 0, np.clip(_nearest(x / step), -4, 3) + 4, levels), blocks)
    high = _packed(q.reshape(-1, 8, 32) >> 2, 1)
    low = _packed(q.reshape(-1, 2, 4, 32) & 3, 2)
    s = six.astype(np.uint8)
    nibbles = _packed(s.reshape(-1, 2, 8) & 15, 4)
    rest = _packed(s.reshape(-1, 4, 4) >> 4, 2)
    return _joined(high, low, nibbles, rest, d)


def _q4_k(blocks: _Array, weights: _Array | None) -> _Array:
    head, q = _with_minimum(blocks, weights, 15, (-1.0, 0.1, 20))
    return _joined(head, _packed(q.reshape(-1, 4, 2, 32), 4))


def _q5_k(blocks: _Array, weights: _Array | None) -> _Array:
    head, q = _with_minimum(blocks, weights, 31, (-0.5, 0.1, 15))
    high = _packed(q.reshape(-1, 8, 32) >> 4, 1)
    return _joined(head, high, _packed(q.reshape(-1, 4, 2, 32) & 15, 4))


def _q6_k(blocks: _Array, weights: _Array | None) -> _Array:
    x = _columns(blocks, 16)
    scales, levels = _scales_by_trials(x, 32, x * x if weights is None else _columns(weights, 16))
    scales = scales.reshape(-1, 16)
    largest = _largest(scales.T)[:, None]
    zero = np.abs(largest) < _LEAST
    inverse = -128 / largest
    eight = np.where(zero, 0, np.minimum(_nearest(inverse * scales), 127)).astype(np.int8)
    d = np.where(zero, _ZERO, 1 / inverse).astype(np.float16)
    step = (d.astype(np.float32) * eight.astype(np.float32)).reshape(-1)
    q = _rows(np.where(step != 0, np.clip(_nearest(x / step), -32, 31) + 32, levels), blocks)
    q = np.where(zero, 0, q).astype(np.uint8).reshape(-1, 2, 4, 32)
    low = q[:, :, :2] & 15 | q[:, :, 2:] << 4
    return _joined(low, _packed(q >> 4, 2), eight, d)


def _iq4_nl(blocks: _Array, weights: _Array | None) -> _Array:
    x = _columns(blocks, 32)
    scale = _scales_of_iq4(x, x * x if weights is None else _columns(weights, 32))
    inverse = np.where(scale != 0, 1 / scale, _ZERO)
    q = _rows(_near_iq4(_IQ4_LEVELS, inverse * x), blocks)
    return _joined(scale.astype(np.float16), _halved(q))


def _q4_0(blocks: _Array, weights: _Array) -> _Array:
    scale, levels = _scales_by_trials(_columns(blocks, 32), 8, _columns(weights, 32))
    return _joined(scale.astype(np.float16), _halved(_rows(levels, blocks)))


def _q5_0(blocks: _Array, weights: _Array) -> _Array:
    scale, levels = _scales_by_trials(_columns(blocks, 32), 16, _columns(weights, 32))
    q = _rows(levels, blocks)
    return _joined(scale.astype(np.float16), _fifth_bits(q), _halved(q))


def _q4_1(blocks: _Array, weights: _Array) -> _Array:
    head, q = _with_minimum_alone(blocks, weights, 15)
    return _joined(*head, _halved(q))


def _q5_1(blocks: _Array, weights: _Array) -> _Array:
    head, q = _with_minimum_alone(blocks, weights, 31)
    return _joined(*head, _fifth_bits(q), _halved(q))


def _with_minimum_alone(
    blocks: _Array, weights: _Array, most: int
) -> tuple[tuple[_Array, _Array], _Array]:
    """Return scales and minima of Q4_1 or Q5_1, and levels, a row a block."""
    x, weight = _columns(blocks, 32), _columns(weights, 32)
    scale, minimum, levels = _scales_and_minima(x, weight, most, _WEIGHTED_TRIALS)
    return (scale.astype(np.float16), (-minimum).astype(np.float16)), _rows(levels, blocks)


def _with_minimum(
    blocks: _Array, weights: _Array | None, most: int, trials: tuple[float, float, int]
) -> tuple[_Array, _Array]:
    """Return scales and minima of Q4_K or Q5_K as 16 bytes a block, and levels, a row a block.

    `trials` are those without weights.
    """
    x = _columns(blocks, 32)
    if weights is None:
        weight = np.sqrt(_sum(x * x) / _SINGLE(x.shape[0])) + np.abs(x)
    else:
        weight, trials = _columns(weights, 32), _WEIGHTED_TRIALS
    scales, minima, levels = _scales_and_minima(x, weight, most, trials)

    def in_six_bits(numbers: _Array) -> tuple[_Array, _Array]:
        if weights is not None:
            scale, eight = _positive_scales(_columns(numbers, 8), 63, of_groups)
            return eight.T, scale.astype(np.float16)[:, None]
        numbers = numbers.reshape(-1, 8)
        largest = np.maximum(numbers.max(axis=1, keepdims=True), _ZERO)
        inverse = np.where(largest > 0, 63 / largest, _ZERO)
        six = np.minimum(_nearest(inverse * numbers).astype(np.uint8), 63)
        return six, (largest / _SINGLE(63)).astype(np.float16)

    of_groups = _columns(_sum(weight), 8)
    s, d = in_six_bits(scales)
    m, d_minimum = in_six_bits(minima)
    if most > 15:
        s, m = np.minimum(s, 63), np.minimum(m, 63)
    low = [n[:, :4] | n[:, 4:] >> 4 << 6 for n in (s, m)]
    high = s[:, 4:] & 15 | m[:, 4:] << 4
    step, minimum = (
        (of_all.astype(np.float32) * np.hstack([first & 63, last | first >> 6 << 4])).reshape(-1)
        for of_all, first, last in ((d, low[0], high & 15), (d_minimum, low[1], high >> 4))
    )
    requantised = np.clip(_nearest((x + minimum) / step), 0, most)
    q = _rows(np.where(step != 0, requantised, levels), blocks)
    return _joined(d, d_minimum, *low, high), q


def _columns(blocks: _Array, group: int) -> _Array:
    """Return groups of entries as columns."""
    return np.ascontiguousarray(blocks.reshape(-1, group).T)


def _rows(levels: _Array, blocks: _Array) -> _Array:
    """Return the levels of groups in columns as bytes, in the shape of the blocks."""
    return levels.T.reshape(blocks.shape).astype(np.uint8)


def _packed(levels: _Array, bits: int) -> _Array:
    """Return bytes of several levels, those along the last axis but one, the first lowest."""
    packed: _Array = levels[..., 0, :]
    for i in range(1, levels.shape[-2]):
        packed = packed | levels[..., i, :] << bits * i
    return packed


def _halved(levels: _Array) -> _Array:
    """Return bytes with the lower four bits of the levels of a block's two halves."""
    return _packed(levels.reshape(-1, 2, 16) & 15, 4)


def _fifth_bits(levels: _Array) -> _Array:
    """Return four bytes of a block with the fifth bit of each level."""
    return np.packbits(levels >> 4, axis=1, bitorder="little")


def _joined(*parts: _Array) -> _Array:
    """Return the bytes of fields of each block, in their order."""
    fields = [np.ascontiguousarray(p).reshape(len(parts[-1]), -1).view(np.uint8) for p in parts]
    return np.hstack(fields)


# ------------------------------------------------------------------------------- scales of groups


_WEIGHTED_TRIALS = (-0.9, 0.05, 36)
"""The trials of `_scales_and_minima` with an importance matrix."""


def _scales_and_minima(
    x: _Array, weight: _Array, most: int, trials: tuple[float, float, int]
) -> tuple[_Array, _Array, _Array]:
    """Return scales, negated minima and levels with a small weighted square error.

    llama.cpp's `make_qkx2_quants` and `make_qkx3_quants`: level · scale − minimum approximates an
    entry. With the `trials` (first, each, last) the levels for the width of a group are `most` +
    first + each · i, i = 0 to last.
    """
    first, each, last = trials
    a, b = np.empty_like(x), np.empty_like(x)
    sum_w, sum_x = _sum(weight), _sum(weight * x)
    high, low = x.max(axis=0), np.minimum(x.min(axis=0), _ZERO)

    def levels(inverse: _Array, low: _Array) -> _Array:
        """Put the levels into `a`; a group without width has zeros."""
        np.multiply(np.subtract(x, low, out=a), _finite(inverse), out=a)
        return np.clip(_nearest(a), 0, most, out=a, casting="unsafe")

    def error(scale: _Array, low: _Array) -> _Array:
        """Return the error of the levels in `a`, which it overwrites."""
        np.subtract(np.add(np.multiply(a, scale, out=a), low, out=a), x, out=a)
        return _sum(np.multiply(np.multiply(a, a, out=a), weight, out=a))

    inverse = _SINGLE(most) / (high - low)
    scale, minimum = 1 / inverse, low
    best_inverse, best_low = inverse, low
    levels(inverse, low)
    best = error(scale, low)
    for trial in range(last + 1):
        inverse = (_SINGLE(first) + _SINGLE(each) * trial + most) / (high - minimum)
        levels(inverse, minimum)
        sum_l = _sum(np.multiply(weight, a, out=b))
        sum_lx = _sum(b * x)
        sum_l2 = _sum(np.multiply(b, a, out=b))
        determinant = sum_w * sum_l2 - sum_l * sum_l
        new_scale = (sum_w * sum_lx - sum_x * sum_l) / determinant
        new_minimum = (sum_l2 * sum_x - sum_l * sum_lx) / determinant
        above_zero = new_minimum > 0
        new_scale = np.where(above_zero, sum_lx / sum_l2, new_scale)
        new_minimum = np.where(above_zero, _ZERO, new_minimum)
        new = error(new_scale, new_minimum)
        better = (determinant > 0) & (new < best)
        best_inverse = np.where(better, inverse, best_inverse)
        best_low = np.where(better, minimum, best_low)
        best = np.where(better, new, best)
        scale = np.where(better, new_scale, scale)
        minimum = np.where(better, new_minimum, minimum)
    return scale, -minimum, levels(best_inverse, best_low)


def _scales_by_trials(x: _Array, half: int, weight: _Array) -> tuple[_Array, _Array]:
    """Return scales with a small weighted square error, and levels.

    llama.cpp's `make_qx_quants`: (level − `half`) · scale approximates an entry. The trials are
    `half` − 0.9 to `half` + 0.9 levels for the largest entry.
    """
    a, b = np.empty_like(x), np.empty_like(x)
    weight_x = weight * x
    largest = _largest(x)

    def levels(inverse: _Array) -> _Array:
        np.rint(np.multiply(x, inverse, out=a), out=a)
        return np.clip(a, -half, half - 1, out=a)

    def sums(inverse: _Array) -> tuple[_Array, _Array]:
        levels(inverse)
        to_x = _sum(np.multiply(weight_x, a, out=b))
        np.multiply(np.multiply(weight, a, out=b), a, out=b)
        return to_x, _sum(b)

    best_inverse = _SINGLE(-half) / largest
    to_x, to_square = sums(best_inverse)
    scale = np.where(to_square != 0, to_x / to_square, _ZERO)
    best = scale * to_x
    for trial in (*range(-9, 0), *range(1, 10)):
        inverse = -(half + _SINGLE(0.1) * trial) / largest
        to_x, to_square = sums(inverse)
        better = (to_square > 0) & (to_x * to_x > best * to_square)
        scale = np.where(better, to_x / to_square, scale)
        best = np.where(better, scale * to_x, best)
        best_inverse = np.where(better, inverse, best_inverse)
    zero = np.abs(largest) < _LEAST
    return np.where(zero, _ZERO, scale), np.where(zero, _ZERO, levels(best_inverse) + half)


def _scales_by_changes(x: _Array, half: int) -> tuple[_Array, _Array]:
    """Return scales with a small square error weighted by squares, and levels.

    llama.cpp's `make_q3_quants`: (level − `half`) · scale approximates an entry.
    """
    largest = _largest(x)
    levels = np.clip(np.rint(x * (_SINGLE(-half) / largest)), -half, half - 1)
    scale, levels = _with_changes(x, x * x, levels, -half, half - 1)
    zero = np.abs(largest) < _LEAST
    return np.where(zero, _ZERO, scale), np.where(zero, _ZERO, levels + half)


def _positive_scales(x: _Array, most: int, weight: _Array) -> tuple[_Array, _Array]:
    """Return scales of numbers that aren't negative with a small weighted square error, and levels.

    llama.cpp's `make_qp_quants`: level · scale approximates an entry. The trials are `most` − 0.4
    to `most` + 0.4 levels for the largest entry.
    """
    largest = np.maximum(x.max(axis=0), _ZERO)

    def error(inverse: _Array, levels: _Array) -> _Array:
        difference = x - (1 / inverse) * levels
        return _sum(weight * difference * difference)

    best_inverse = _SINGLE(most) / largest
    best = error(best_inverse, _in_a_byte(_nearest(best_inverse * x)))
    for trial in (*range(-4, 0), *range(1, 5)):
        inverse = (_SINGLE(0.1) * trial + most) / largest
        new = error(inverse, np.minimum(_nearest(inverse * x), most).astype(np.float32))
        best_inverse = np.where(new < best, inverse, best_inverse)
        best = np.where(new < best, new, best)
    levels = np.minimum(_nearest(best_inverse * x), most).astype(np.float32)
    scale, levels = _with_changes(x, weight, levels, None, most)
    zero = largest < _LEAST
    return np.where(zero, _ZERO, scale), np.where(zero, 0, levels).astype(np.uint8)


def _with_changes(
    x: _Array, weight: _Array, levels: _Array, least: int | None, most: int
) -> tuple[_Array, _Array]:
    """Change levels one by one while that lowers the weighted square error; return scales, levels.

    Without `least` a level is a byte, in which a negative number is another, as in llama.cpp.
    """
    weight_x = weight * x
    to_x, to_square = _sum(weight_x * levels), _sum(weight * levels * levels)
    as_stored = _in_a_byte if least is None else np.asarray
    levels = as_stored(levels)
    for _ in range(5):
        changed = False
        for i, entry in enumerate(x):
            others_x = to_x - weight_x[i] * levels[i]
            others_square = to_square - weight[i] * levels[i] * levels[i]
            level = np.clip(_nearest(entry * others_square / others_x), least, most)
            level = level.astype(np.float32)
            new_x = others_x + weight_x[i] * level
            new_square = others_square + weight[i] * level * level
            better = (others_x > 0) & (level != levels[i]) & (new_square > 0)
            better &= new_x * new_x * to_square > to_x * to_x * new_square
            if least is None:
                better &= others_square > 0
            if better.any():
                changed = True
                levels[i] = np.where(better, as_stored(level), levels[i])
                to_x = np.where(better, new_x, to_x)
                to_square = np.where(better, new_square, to_square)
        if not changed:
            break
    return np.where(to_square > 0, to_x / to_square, _ZERO), levels


def _in_a_byte(levels: _Array) -> _Array:
    """Return whole numbers as a byte holds them, from 0 to 255."""
    return (levels.astype(np.int32) & 255).astype(np.float32)


def _scales_of_iq4(x: _Array, weight: _Array) -> _Array:
    """Return scales of IQ4_NL with a small weighted square error.

    The trials are −120 to −134 for the largest entry.
    """
    largest = _largest(x)

    def sums(inverse: _Array) -> tuple[_Array, _Array]:
        q = _near_iq4(_IQ4_NEAREST, inverse * x)
        weight_q = weight * q
        return _sum(weight_q * x), _sum(weight_q * q)

    to_x, to_square = sums(1 / (-largest / _IQ4_VALUES[0]))
    scale = np.where(to_square > 0, to_x / to_square, _ZERO)
    best = scale * to_x
    for trial in range(-7, 8):
        to_x, to_square = sums((trial + _IQ4_VALUES[0]) / largest)
        better = (to_square > 0) & (to_x * to_x > best * to_square)
        scale = np.where(better, to_x / to_square, scale)
        best = np.where(better, scale * to_x, best)
    return np.where(np.abs(largest) < _LEAST, _ZERO, scale)


# ------------------------------------------------------------------------------------- arithmetic


def _sum(rows: Iterable[_Array]) -> _Array:
    """Return the sum of rows, added one by one to zero."""
    first, *rest = rows
    total = first + _ZERO
    for row in rest:
        total += row
    return total


def _largest(x: _Array) -> _Array:
    """Return the first entry of the largest size in each column."""
    largest: _Array = np.take_along_axis(x, np.abs(x).argmax(axis=0)[None], axis=0)[0]
    return largest


def _finite(inverse: _Array) -> _Array:
    """Return the inverses of widths, and 0 where the width is zero or nearly so."""
    return np.where(np.isinf(inverse), _ZERO, inverse)


def _nearest(x: _Array) -> _Array:
    """Return the nearest whole numbers, ties to even, by llama.cpp's `nearest_int`.

    The bits of a float32 give a number's integer. Beyond 2²² they give another, as in llama.cpp.
    """
    return ((x + _SINGLE(1.5 * 2**23)).view(np.int32) & 0x7FFFFF) - 0x400000


def _near_iq4(table: _Array, x: _Array) -> _Array:
    """Return the entries of a table of IQ4_NL for numbers; for NaN, any entry."""
    places = np.clip(np.floor(x + x), -_REACH, _REACH - 1).astype(np.int32) + _REACH
    near: _Array = table.take(places, mode="clip")
    return near


_QUANTISERS: Mapping[str, Callable[[_Array, Any], Bytes]] = {
    "Q3_K": _q3_k, "Q4_K": _q4_k, "Q5_K": _q5_k, "Q6_K": _q6_k, "IQ4_NL": _iq4_nl,
    "Q4_0": _q4_0, "Q4_1": _q4_1, "Q5_0": _q5_0, "Q5_1": _q5_1,
}  # fmt: skip
"""Functions of the blocks and their weights. Those of `_BY_ROW` need weights: the package `gguf`
quantises without."""
