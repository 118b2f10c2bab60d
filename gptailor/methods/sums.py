"""Sums, norms and angles of whole tensors, rows and columns, the same for any chunks and device."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial

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
    """Return the Gram matrix over the whole tensor, in float64."""
    count, from_base = len(inputs.models), what == "task_vectors"
    pairs = [(i, j) for i in range(count) for j in range(i, count)]
    blocks: list[list[float]] = [[] for _ in pairs]

    def products(chunk: Chunk) -> Iterator[Float64[Array, " n"]]:
        rest = _add_whole_blocks(chunk, blocks, from_base=from_base)
        vectors = [double(source) for source in rest.sources]
        if from_base:
            origin = double(rest.origin)
            vectors = [vector - origin for vector in vectors]
        return (vectors[i] * vectors[j] for i, j in pairs)

    totals = dict(zip(pairs, sums(inputs, products, blocks), strict=True))
    return [[totals[min(i, j), max(i, j)] for j in range(count)] for i in range(count)]


def _add_whole_blocks(chunk: Chunk, totals: Sequence[list[float]], *, from_base: bool) -> Chunk:
    """Add the dot products of the blocks that the library takes; return the other entries."""
    base = chunk.stored_base if from_base else None
    whole = len(chunk.stored_sources[0]) // SUM_ENTRIES * SUM_ENTRIES
    given = chunk.stored_sources if base is None else (base, *chunk.stored_sources)
    if not whole or not native.takes(*given):
        return chunk
    blocks = [source[:whole] for source in chunk.stored_sources]
    products = native.gram(blocks, None if base is None else base[:whole], SUM_ENTRIES)
    for each, row in zip(totals, products, strict=True):
        each.extend(row.tolist())
    return chunk.after(whole)


def sums(
    inputs: Inputs,
    terms: Callable[[Chunk], Iterable[Float64[Array, " n"]]],
    blocks: Sequence[list[float]],
    width: int = SUM_ENTRIES,
) -> list[float]:
    """Return the sum of each of the vectors made from chunks, in blocks of `width`.

    `blocks` has a list for each vector, which gets the sum of each of its blocks. Raises
    NotFiniteFault for infinity or NaN, and OverflowFault where a difference becomes that.
    """
    for chunk in inputs.chunks(width):
        for total, vector in zip(blocks, terms(chunk), strict=True):
            even = width == SUM_ENTRIES
            for rows in _blocks(vector) if even else [_even(vector.reshape(-1, width))]:
                total.extend(_block_sums(rows))
    totals = list(map(_total, blocks))
    if not all(map(math.isfinite, totals)):
        refuse_infinite(inputs)
        for chunk in inputs.chunks():  # finite numbers with a difference that float32 can't hold
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
    """Yield the vector in rows of a block, then the remaining entries with zeros in one row.

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


def _block_sums(rows: _Blocks) -> list[float]:
    """Return the sum of each row: its stretches are added in order, then half is added to half."""
    xp, parts = namespace(rows), rows.reshape(rows.shape[0], -1, min(_ADDED, rows.shape[1]))
    if xp is np:
        added = np.einsum("nkw->nw", parts)
    else:
        added = xp.asarray(parts[:, 0], copy=True)
        for k in range(1, parts.shape[1]):
            added += parts[:, k]
    sums: list[float] = _row_totals(added).tolist()
    return sums


def _row_totals(rows: Float64[Array, "rows width ..."]) -> Float64[Array, "rows ..."]:
    """Return the sums along an axis with a power of two as its length, by adding half to half."""
    while half := rows.shape[1] // 2:
        rows = rows[:, :half] + rows[:, half:]
    return rows[:, 0]


def _total(numbers: Sequence[float]) -> float:
    """Return the sum of numbers, rounded once; NaN where one isn't finite."""
    return math.fsum(numbers) if all(map(math.isfinite, numbers)) else math.nan


# ------------------------------------------------------------------------------- rows and columns


def row_sums(rows: Float64[Array, "rows width"]) -> Float64[Array, " rows"]:
    """Return the sum of each row, the same for any number of rows."""
    return _row_totals(_even(rows))


COLUMN_ROWS = 128
"""Rows that are added up at once: a power of two, part of every result, never to be changed."""


def column_sums(
    inputs: Inputs, terms: Callable[[Chunk], Sequence[Float64[Array, " n"]]], width: int
) -> list[Float64[Array, " width"]]:
    """Return the sum of each column: the sums of blocks of rows, added in order."""
    columns: list[Float64[Array, " width"]] = []
    for chunk in inputs.chunks(COLUMN_ROWS * width):
        for n, vector in enumerate(terms(chunk)):
            rows = vector.reshape(-1, width)
            blocks = with_zeros(rows, -rows.shape[0] % COLUMN_ROWS)
            for block in _row_totals(blocks.reshape(-1, COLUMN_ROWS, width)):
                if n == len(columns):
                    columns.append(namespace(block).asarray(block, copy=True))
                else:
                    columns[n] += block
    return columns
