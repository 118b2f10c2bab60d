"""Sums, norms and angles of whole tensors, rows and columns, the same for any chunks and device."""

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import final

import numpy as np

from gptailor.methods import native
from gptailor.methods.arithmetic import Chunk, Inputs, Vector
from gptailor.methods.arrays import Array, double, finite, namespace, with_zeros
from gptailor.methods.rounding import NotFiniteFault, OverflowFault, first_true, index_of
from gptailor.methods.shapes import Float64
from gptailor.plan.faults import PlanError

SUM_ENTRIES = 2**14
"""Entries of a block of a sum: a power of two, part of every result, never to be changed."""
_ADDED = 2**10
"""Entries of a block that are added to the same number of entries after them; as above."""
_WAITING = 128  # entries of a row that waits, and how many rows' chunks wait

_Blocks = Float64[Array, "blocks width"]
Gram = list[list[float]]
"""The dot products of each vector with each other one; the diagonal holds the squared norms."""


def cosine(gram: Gram, i: int, j: int) -> float:
    """Return the cosine of the angle between two vectors; 0 for a vector of length 0."""
    norms = math.sqrt(gram[i][i]) * math.sqrt(gram[j][j])
    return clamped(gram[i][j] / norms) if norms > 0.0 else 0.0


def clamped(number: float) -> float:
    """Return a cosine within [-1, 1], after rounding."""
    return max(-1.0, min(1.0, number))


def gram_of(inputs: Inputs, what: str) -> Gram:
    """Return the Gram matrix over the whole tensor, in float64: of the sources ("weights"), or of
    their "task_vectors", whose differences are float64 too.
    """
    count, from_base = len(inputs.models), what == "task_vectors"
    pairs = [(i, j) for i in range(count) for j in range(i, count)]
    sums = {pair: _Sum() for pair in pairs}
    for chunk in inputs.chunks(SUM_ENTRIES):
        rest = _add_whole_blocks(chunk, list(sums.values()), from_base=from_base)
        if not len(rest.stored_sources[0]):
            continue
        vectors = [double(source) for source in rest.sources]
        if from_base:
            origin = double(rest.origin)
            vectors = [vector - origin for vector in vectors]
        dots = _products if from_base else _dots
        for blocks in zip(*map(_blocks, vectors), strict=True):
            for i, j in pairs:
                sums[i, j].add(dots(blocks[i], blocks[j]))
    totals = {pair: each.value() for pair, each in sums.items()}
    if not all(map(math.isfinite, totals.values())):
        refuse_infinite(inputs)
    return [[totals[min(i, j), max(i, j)] for j in range(count)] for i in range(count)]


def _add_whole_blocks(chunk: Chunk, sums: Sequence["_Sum"], *, from_base: bool) -> Chunk:
    """Add the dot products of the blocks that the library takes; return the other entries."""
    base = chunk.stored_base if from_base else None
    whole = len(chunk.stored_sources[0]) // SUM_ENTRIES * SUM_ENTRIES
    given = chunk.stored_sources if base is None else (base, *chunk.stored_sources)
    if not whole or not native.takes(*given):
        return chunk
    blocks = [source[:whole] for source in chunk.stored_sources]
    products = native.gram(blocks, None if base is None else base[:whole], SUM_ENTRIES)
    for each, row in zip(sums, products, strict=True):
        each.folded += row.tolist()
    return chunk.after(whole)


def sums(
    inputs: Inputs,
    terms: Callable[[Chunk], Sequence[Float64[Array, " n"]]],
    *,
    count: int,
    width: int = SUM_ENTRIES,
) -> list[float]:
    """Return the sum of each of `count` vectors made from chunks, in blocks of `width`.

    Raises NotFiniteFault for infinity or NaN, and OverflowFault where a difference becomes that.
    """
    running = [_Sum() for _ in range(count)]
    for chunk in inputs.chunks(width):
        for total, vector in zip(running, terms(chunk), strict=True):
            even = width == SUM_ENTRIES
            for rows in _blocks(vector) if even else [_even(vector.reshape(-1, width))]:
                total.add(_added(rows))
    totals = [total.value() for total in running]
    if not all(map(math.isfinite, totals)):
        refuse_infinite(inputs)
        for chunk in inputs.chunks():  # finite numbers whose difference float32 can't hold
            for model, vector in zip(inputs.models, chunk.task_vectors(), strict=True):
                by = f"the difference of '{model}' and the base"
                fault = partial(
                    OverflowFault,
                    inputs.place,
                    dtype="F32",
                    by=by,
                    help="merge without task vectors",
                )
                _refuse(inputs, chunk, vector, fault)
    return totals


def refuse_infinite(inputs: Inputs) -> None:
    """Raise NotFiniteFault for infinity or NaN, which norms and angles can't use."""
    for chunk in inputs.chunks():
        named = [*zip(inputs.models, chunk.sources, strict=True)]
        for model, vector in named if chunk.base is None else [("base", chunk.base), *named]:
            _refuse(inputs, chunk, vector, partial(NotFiniteFault, inputs.place, owner=model))


def _refuse(inputs: Inputs, chunk: Chunk, vector: Vector, fault: Callable[..., PlanError]) -> None:
    """Raise the fault of the first entry that isn't finite, if there is one."""
    if (number := first_true(~finite(vector))) is not None:
        raise fault(index_of(chunk.offset + number, inputs.shape), float(vector[number]))


def _blocks(vector: Float64[Array, " n"]) -> Iterator[_Blocks]:
    """Yield the vector in rows of a block, then the entries that fill none, with zeros, in one row.

    A short row has the same sum as a block.
    """
    entries = vector.shape[0]
    whole = entries - entries % SUM_ENTRIES
    if whole:
        yield vector[:whole].reshape(-1, SUM_ENTRIES)
    if rest := entries - whole:
        yield with_zeros(vector[whole:], (1 << (rest - 1).bit_length()) - rest).reshape(1, -1)


def _even(rows: Float64[Array, "rows width"]) -> Float64[Array, "rows even"]:
    """Return rows with zeros at their ends, so that halves can be added to halves."""
    return with_zeros(rows, (1 << (rows.shape[1] - 1).bit_length()) - rows.shape[1], axis=1)


def _added(rows: _Blocks) -> Float64[Array, "blocks fewer"]:
    """Return rows of at most `_ADDED` entries: the stretches of a row, added in order."""
    xp, parts = namespace(rows), rows.reshape(rows.shape[0], -1, min(_ADDED, rows.shape[1]))
    if xp is np:
        return np.einsum("nkw->nw", parts)
    total = xp.asarray(parts[:, 0], copy=True)
    for k in range(1, parts.shape[1]):
        total += parts[:, k]
    return total


def _products(a: _Blocks, b: _Blocks) -> Float64[Array, "blocks fewer"]:
    """Return `_added(a * b)`, each product rounded before it is added."""
    return _added(a * b)


def _dots(a: _Blocks, b: _Blocks) -> Float64[Array, "blocks fewer"]:
    """Return `_added(a * b)` of numbers that float32 holds.

    Their products are exact, so it doesn't matter whether `einsum` rounds them before it adds.
    """
    if namespace(a, b) is not np:
        return _added(a * b)
    left, right = (each.reshape(len(each), -1, min(_ADDED, each.shape[1])) for each in (a, b))
    return np.einsum("nkw,nkw->nw", left, right)


@final
class _Sum:
    """The sum of many blocks. Rows wait half folded, so that short steps are done for many."""

    def __init__(self) -> None:
        self.waiting: list[Float64[Array, "blocks width"]] = []
        self.folded: list[float] = []

    def add(self, terms: _Blocks) -> None:
        """Add the sum of each row."""
        self.waiting.append(_fold(terms, _WAITING))
        if len(self.waiting) == _WAITING:
            self._end()

    def value(self) -> float:
        """Return the sum so far; NaN or infinity where a row has that."""
        self._end()
        return math.fsum(self.folded) if all(map(math.isfinite, self.folded)) else math.nan

    def _end(self) -> None:
        for width in sorted({rows.shape[1] for rows in self.waiting}, reverse=True):
            same = [rows for rows in self.waiting if rows.shape[1] == width]
            rows = namespace(*same).concat(same)
            self.folded += _fold(rows, 1)[:, 0].tolist()
        self.waiting.clear()


def _fold(terms: Float64[Array, "blocks width"], least: int) -> Float64[Array, "blocks least"]:
    """Return rows of at most `least` entries, by adding the second half to the first."""
    while (half := terms.shape[1] // 2) >= least:
        terms = terms[:, :half] + terms[:, half:]
    return terms


# ------------------------------------------------------------------------------- rows and columns


def row_sums(rows: Float64[Array, "rows width"]) -> Float64[Array, " rows"]:
    """Return the sum of each row, the same for any number of rows."""
    return _fold(_even(rows), 1)[:, 0]


COLUMN_ROWS = 128
"""Rows that are added up at once: a power of two, part of every result, never to be changed."""


def column_sums(
    inputs: Inputs, terms: Callable[[Chunk], Sequence[Float64[Array, " n"]]], width: int
) -> list[Float64[Array, " width"]]:
    """Return the sum of each column, in blocks of rows, whose sums are added in order."""
    columns: list[Float64[Array, " width"]] = []
    for chunk in inputs.chunks(COLUMN_ROWS * width):
        for n, vector in enumerate(terms(chunk)):
            rows = vector.reshape(-1, width)
            blocks = with_zeros(rows, -rows.shape[0] % COLUMN_ROWS)
            blocks = blocks.reshape(-1, COLUMN_ROWS, width)
            while (half := blocks.shape[1] // 2) >= 1:
                blocks = blocks[:, :half] + blocks[:, half:]
            for block in blocks[:, 0]:
                if n == len(columns):
                    columns.append(namespace(block).asarray(block, copy=True))
                else:
                    columns[n] += block
    return columns
