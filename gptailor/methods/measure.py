"""What a method must know of whole tensors before it combines them: `Inputs`, sums, thresholds.

Results are the same to the bit for any chunk size, any number of threads and any device. Sums run
over blocks that are aligned to the tensor's start; within a block values are added in pairs by
elementwise additions, which no thread or vector unit can reorder, and the blocks' sums are added
without error by `math.fsum`. Thresholds are found by counting, which is exact.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float32, Float64, Int32, Int64
from torch import Tensor

from gptailor.plan.faults import TailorError

_SUM_ENTRIES = 2**14
"""Entries of a block of a sum: a power of two, part of every result, never to be changed."""

_WAITING = 128  # entries of a row that waits, and how many rows' chunks wait
_MAGNITUDE = 0x7FFFFFFF  # a float32 without its sign; as integers these are ordered as the numbers
_COUNTED = 2**18  # numbers that are counted at once: clearing the counts costs as much as these
_HALF = 16
_TOP_BUCKETS = 2**15  # the sign bit is gone
_LOW_BUCKETS = 2**16


@final
@dataclass(frozen=True, slots=True)
class Chunk:
    """One stretch of θ_b and of every source, flattened, in float32, from entry `offset` on."""

    offset: int
    base: Float32[Tensor, " n"] | None
    sources: tuple[Float32[Tensor, " n"], ...]

    def task_vectors(self) -> list[Float32[Tensor, " n"]]:
        """τ_i = θ_i - θ_b, of each source in order."""
        return [source - self.origin for source in self.sources]

    @property
    def origin(self) -> Float32[Tensor, " n"]:
        """θ_b, of a method that needs it."""
        if self.base is None:
            raise ValueError("this method needs the base's tensor")
        return self.base


@final
@dataclass(frozen=True, slots=True)
class Inputs:
    """The tensors that are combined, as often as wanted and chunk by chunk.

    `read(start, end)` gives one stretch; a chunk is valid until the next one is read.
    """

    elements: int
    models: tuple[str, ...]
    place: str
    step: int
    read: Callable[[int, int], Chunk]

    def chunks(self, multiple: int = 1) -> Iterator[Chunk]:
        """The whole, in order, in steps of at least one and a multiple of `multiple` entries."""
        step = -(-max(1, self.step) // multiple) * multiple
        for start in range(0, self.elements, step):
            yield self.read(start, min(start + step, self.elements))


# -------------------------------------------------------------------------------------------- sums

Gram = list[list[float]]
"""The dot products of each vector with each other one; the diagonal holds the squared norms."""


def gram_of_sources(inputs: Inputs) -> Gram:
    """⟨θ_i, θ_j⟩ over the whole tensor, in float64."""
    return _gram(inputs, lambda chunk: [source.double() for source in chunk.sources])


def gram_of_task_vectors(inputs: Inputs) -> Gram:
    """⟨θ_i - θ_b, θ_j - θ_b⟩ over the whole tensor, in float64, the differences too."""
    return _gram(
        inputs, lambda chunk: [source.double() - chunk.origin.double() for source in chunk.sources]
    )


def _gram(inputs: Inputs, vectors: Callable[[Chunk], list[Float64[Tensor, " n"]]]) -> Gram:
    count = len(inputs.models)
    pairs = [(i, j) for i in range(count) for j in range(i, count)]
    sums = {pair: _Sum() for pair in pairs}
    for chunk in inputs.chunks(_SUM_ENTRIES):
        blocks = [_blocks(vector) for vector in vectors(chunk)]
        for i, j in pairs:
            sums[i, j].add(blocks[i] * blocks[j])
    totals = {pair: total.value() for pair, total in sums.items()}
    for i, model in enumerate(inputs.models):
        if not math.isfinite(totals[i, i]):
            raise TailorError(
                f"'{inputs.place}' of '{model}' or of the base holds infinity or NaN, "
                "so that its norm can't be measured"
            )
    return [[totals[min(i, j), max(i, j)] for j in range(count)] for i in range(count)]


def _blocks(vector: Float64[Tensor, " n"]) -> Float64[Tensor, "blocks width"]:
    """The vector in rows of a block, zeros at its end; a short one in one row, which sums alike."""
    entries = vector.shape[0]
    width = min(_SUM_ENTRIES, 1 << (entries - 1).bit_length())
    if entries % width:
        vector = torch.nn.functional.pad(vector, (0, -entries % width))
    return vector.view(-1, width)


@final
class _Sum:
    """The sum of many blocks. Rows wait half folded, so that short steps are done for many."""

    def __init__(self) -> None:
        self.waiting: list[Float64[Tensor, "blocks width"]] = []
        self.folded: list[float] = []

    def add(self, terms: Float64[Tensor, "blocks width"]) -> None:
        """Add the sum of each row."""
        self.waiting.append(_fold(terms, _WAITING))
        if len(self.waiting) == _WAITING:
            self._end()

    def value(self) -> float:
        """The sum so far; NaN or infinity where a row has that."""
        self._end()
        return math.fsum(self.folded) if all(map(math.isfinite, self.folded)) else math.nan

    def _end(self) -> None:
        widths = {rows.shape[1] for rows in self.waiting}
        for width in sorted(widths, reverse=True):
            rows = torch.cat([rows for rows in self.waiting if rows.shape[1] == width])
            self.folded += _fold(rows, 1)[:, 0].tolist()
        self.waiting.clear()


def _fold(terms: Float64[Tensor, "blocks width"], least: int) -> Float64[Tensor, "blocks least"]:
    """Rows of at most `least` entries: the second half is added to the first until they are."""
    while (half := terms.shape[1] // 2) >= least:
        terms = terms[:, :half] + terms[:, half:]
    return terms


# -------------------------------------------------------------------------------------- thresholds


def magnitude(vector: Float32[Tensor, " n"]) -> Int32[Tensor, " n"]:
    """|τ| as an integer of the same order: the float32's bits without its sign. NaN is largest."""
    return vector.view(torch.int32) & _MAGNITUDE


def thresholds(inputs: Inputs, ranks: Sequence[int]) -> tuple[tuple[int, ...], ...]:
    """For each source its ranks-th largest `magnitude` of τ, the largest being of rank 1.

    Radix selection in two passes: one counts the upper half of the bits, the next the lower half
    where the upper one is that of the wanted rank.
    """
    tops = [_Counts(_TOP_BUCKETS) for _ in inputs.models]
    for chunk in inputs.chunks():
        for top, vector in zip(tops, chunk.task_vectors(), strict=True):
            top.add(magnitude(vector) >> _HALF)
    found = [[_bucket(top.value(), rank) for rank in ranks] for top in tops]
    lows = [{bucket: _Counts(_LOW_BUCKETS) for bucket, _ in wanted} for wanted in found]
    for chunk in inputs.chunks():
        for low, vector in zip(lows, chunk.task_vectors(), strict=True):
            bits = magnitude(vector)
            high = bits >> _HALF
            for bucket, counts in low.items():
                counts.add(torch.masked_select(bits, high == bucket) & (_LOW_BUCKETS - 1))
    return tuple(
        tuple((bucket << _HALF) + _bucket(low[bucket].value(), rest)[0] for bucket, rest in wanted)
        for low, wanted in zip(lows, found, strict=True)
    )


@final
class _Counts:
    """How often each number below `buckets` comes. Numbers wait until there are many."""

    def __init__(self, buckets: int) -> None:
        self.buckets = buckets
        self.waiting: list[Int32[Tensor, " _"]] = []
        self.entries = 0
        self.counts: Int64[Tensor, " buckets"] = torch.zeros(buckets, dtype=torch.int64)

    def add(self, numbers: Int32[Tensor, " n"]) -> None:
        """Count these too."""
        self.waiting.append(numbers)
        self.entries += len(numbers)
        if self.entries >= _COUNTED:
            self._end()

    def value(self) -> Int64[Tensor, " buckets"]:
        """The counts so far."""
        self._end()
        return self.counts

    def _end(self) -> None:
        if self.waiting:
            numbers = torch.cat(self.waiting)
            self.counts += torch.bincount(numbers, minlength=self.buckets).cpu()
        self.waiting.clear()
        self.entries = 0


def _bucket(counts: Int64[Tensor, " buckets"], rank: int) -> tuple[int, int]:
    """The bucket that holds the rank-th largest, and its rank within that bucket."""
    largest_first = counts.flip(0).cumsum(0)
    index = int(torch.searchsorted(largest_first, rank))
    before = int(largest_first[index - 1]) if index else 0
    return len(counts) - 1 - index, rank - before
