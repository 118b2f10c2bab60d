"""Arithmetic that merge methods share, the same to the bit for any chunks, threads and device.

Each entry is computed by single additions, subtractions, multiplications and divisions, each
rounded to float32. A coefficient is a float64 that is rounded to float32 where it meets a tensor. A
source with the coefficient 0 is left out, also where it holds infinity or NaN. Where nothing is
added to θ_b, it keeps its bytes.

Sums (`sums.py`) run over blocks that are aligned to the tensor's start. Within a block stretches
are added to one another entry by entry, which no thread or vector unit can reorder, and the blocks'
sums are added without error by `math.fsum`. Thresholds are computed by counting, which is exact.
Draws depend on a key and an entry's number alone.
"""

import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, reduce
from operator import add
from typing import Any, ClassVar, final

import numpy as np

from gptailor.methods import native
from gptailor.methods.arrays import Array, host, masked, namespace, widened
from gptailor.methods.rounding import single
from gptailor.methods.shapes import Bool, Float32, Int32, Int64, Shaped

ByName = Mapping[str, Any]
"""A method's arguments by name, complete: one number, a word, or a number for each source."""
Vector = Float32[Array, " n"]
"""One stretch of a tensor, flattened: an array of NumPy's or of torch's (`arrays.py`)."""
Stored = Shaped[Array, " n"]
"""The same, or its bits in bfloat16 as NumPy's uint16, which have not been widened yet."""
Measured = tuple[float | int, ...]
"""A few numbers that a method measures of whole tensors."""


@final
@dataclass(frozen=True)
class Chunk:
    """One stretch of θ_b and of every source, flattened, from entry `offset` on."""

    offset: int
    stored_base: Stored | None
    stored_sources: tuple[Stored, ...]

    @cached_property
    def base(self) -> Vector | None:
        """Return θ_b in float32, if there is one."""
        return None if self.stored_base is None else widened(self.stored_base)

    @cached_property
    def sources(self) -> tuple[Vector, ...]:
        """Return the sources in float32."""
        return tuple(map(widened, self.stored_sources))

    def after(self, entries: int) -> "Chunk":
        """Return the stretch without its first entries."""
        base, sources = self.stored_base, self.stored_sources
        rest = None if base is None else base[entries:]
        return Chunk(self.offset + entries, rest, tuple(source[entries:] for source in sources))

    def task_vectors(self) -> list[Vector]:
        """Return τ_i = θ_i - θ_b, of each source in order."""
        return [self.task_vector(i) for i in range(len(self.stored_sources))]

    def task_vector(self, number: int) -> Vector:
        """Return τ_i of one source, by its number."""
        source, base = self.stored_sources[number], self.stored_base
        if not native.takes(source, base):
            return self.sources[number] - self.origin
        return native.weighted_sum([source], [1.0], base, differences=True, moved=False)

    @property
    def origin(self) -> Vector:
        """Return θ_b, for a method that needs it."""
        if self.base is None:
            raise ValueError("this method needs the base's tensor")
        return self.base


@final
@dataclass(frozen=True, slots=True)
class Inputs:
    """Tensors to combine, read chunk by chunk as often as needed.

    `read(start, end)` returns one stretch; a chunk is valid until the next one is read.
    """

    elements: int
    models: tuple[str, ...]
    place: str
    step: int
    read: Callable[[int, int], Chunk]
    shape: tuple[int, ...] = ()

    @property
    def width(self) -> int:
        """Return the entries of a row, along the last axis; a vector is one row."""
        return self.shape[-1] if self.shape else 1

    def chunks(self, multiple: int = 1) -> Iterator[Chunk]:
        """Yield all entries in order, in steps of a multiple of `multiple` entries."""
        step = -(-max(1, self.step) // multiple) * multiple
        for start in range(0, self.elements, step):
            yield self.read(start, min(start + step, self.elements))


class Kernel(ABC):
    """The computation of a merge method, which the registry specifies under the same name.

    Whole tensors are first measured and then combined, chunk by chunk.
    """

    name: ClassVar[str]

    def measure(self, inputs: Inputs, arguments: ByName) -> Measured:
        """Return the method's numbers of the whole tensors; most methods have no such numbers."""
        return ()

    def unit(self, inputs: Inputs, arguments: ByName) -> int:
        """Return the number of entries that are combined together; a chunk is a multiple of it."""
        return 1

    @abstractmethod
    def combine(self, chunk: Chunk, arguments: ByName, measured: Measured) -> Vector:
        """Return the merge of one chunk, with the measured numbers."""


# --------------------------------------------------------------------------------- entry by entry


def combination(
    vectors: Sequence[Stored], coefficients: Sequence[float | int], chunk: Chunk
) -> Vector:
    """Return Σ c_i v_i in order, without vectors with the coefficient 0."""
    kept, numbers = _terms(vectors, coefficients)
    if not kept:
        like = chunk.sources[0]
        return namespace(like).zeros_like(like)
    if native.takes(*kept):
        return native.weighted_sum(kept, numbers)
    return total(map(multiplied, map(widened, kept), numbers))


def combined_sources(chunk: Chunk, coefficients: Sequence[float | int]) -> Vector:
    """Return Σ c_i θ_i in order, without sources with the coefficient 0."""
    return combination(chunk.stored_sources, coefficients, chunk)


def _terms(
    vectors: Sequence[Stored], coefficients: Sequence[float | int]
) -> tuple[list[Stored], list[float]]:
    """Return the coefficients that aren't 0, and their vectors. Raises CoefficientError."""
    each = zip(vectors, coefficients, strict=True)
    terms = [(vector, single(number)) for vector, number in each if number != 0]
    return [vector for vector, _ in terms], [number for _, number in terms]


def multiplied(vector: Vector, number: float) -> Vector:
    """Return the vector times a coefficient; itself for 1. Raises CoefficientError."""
    return vector if number == 1 else vector * single(number)


def total(terms: Iterable[Vector]) -> Vector:
    """Return Σ v_i in order; a single term itself."""
    return reduce(add, terms)


def base_moved(
    chunk: Chunk, vectors: Sequence[Vector], coefficients: Sequence[float | int]
) -> Vector:
    """Return θ_b + Σ λ_i v_i; θ_b's own bits where that sum is 0, a negative zero among them."""
    if native.takes(chunk.stored_base, *vectors):
        return native.weighted_sum(*_terms(vectors, coefficients), chunk.stored_base)
    change = combination(vectors, coefficients, chunk)
    return chunk.origin - (0.0 - change)  # θ_b + change would make +0 of a negative zero


def base_moved_by_task_vectors(chunk: Chunk, coefficients: Sequence[float | int]) -> Vector:
    """Return θ_b + Σ λ_i τ_i, as `base_moved`."""
    stored = chunk.stored_base, *chunk.stored_sources
    if not native.takes(*stored):
        return base_moved(chunk, chunk.task_vectors(), coefficients)
    terms = _terms(chunk.stored_sources, coefficients)
    return native.weighted_sum(*terms, chunk.stored_base, differences=True)


def number_beside(vector: Vector, number: float) -> Float32[Array, " one"]:
    """Return a number as an array on a vector's device. Raises CoefficientError.

    CUDA would multiply by the reciprocal of a Python number.
    """
    xp = namespace(vector)
    return xp.full((1,), single(number), dtype=xp.float32, device=vector.device)


# -------------------------------------------------------------------------------------- thresholds

_MAGNITUDE = 0x7FFFFFFF  # a float32 without its sign; as integers these are ordered as the numbers
_HALF = 16
_TOP_BUCKETS = 2**15  # the sign bit is gone
_LOW_BUCKETS = 2**16
_Counts = Int64[np.ndarray, " buckets"]


def magnitude(vector: Vector) -> Int32[Array, " n"]:
    """Return |τ| as an integer of the same order: the float32's bits without its sign.

    NaN is largest.
    """
    return vector.view(namespace(vector).int32) & _MAGNITUDE


def within(vector: Vector, least: int, most: int = _MAGNITUDE) -> Vector:
    """Return the vector, 0 where its `magnitude` is less than `least` or more than `most`.

    Without `most` NaN stays.
    """
    if native.takes(vector):
        return native.with_zeros_beyond(vector, least, most)
    size = magnitude(vector)
    return masked(vector, (size >= least) & (size <= most))


def thresholds(inputs: Inputs, ranks: Sequence[Sequence[int]]) -> tuple[tuple[int, ...], ...]:
    """Return for each source its ranks-th largest `magnitude` of τ, the largest being of rank 1.

    A source without ranks is not read. See `selected`.
    """
    wanted = [i for i, some in enumerate(ranks) if some]
    if not wanted:
        return tuple(() for _ in ranks)

    def vectors(chunk: Chunk) -> list[Vector]:
        return [chunk.task_vector(i) for i in wanted]

    selection = iter(selected(inputs, vectors, lambda n: ranks[wanted[n]]))
    return tuple(next(selection) if some else () for some in ranks)


def selected(
    inputs: Inputs,
    vectors: Callable[[Chunk], Sequence[Vector]],
    ranks: Callable[[int], Sequence[int]],
    unit: int = 1,
) -> list[tuple[int, ...]]:
    """Return the ranks-th largest `magnitude` of each of the vectors made from a chunk of units.

    `ranks` is called for each vector, with its number, after all have been read. Radix selection in
    two passes: the first counts the upper half of the bits, the second the lower half of the
    entries in the wanted rank's bucket.
    """
    tops: list[_Counts] = []
    for chunk in inputs.chunks(unit):
        for n, vector in enumerate(vectors(chunk)):
            if n == len(tops):
                tops.append(np.zeros(_TOP_BUCKETS, dtype=np.int64))
            _count(vector, tops[n])
    buckets = [[_bucket(top, rank) for rank in ranks(n)] for n, top in enumerate(tops)]
    lows = [
        {bucket: np.zeros(_LOW_BUCKETS, dtype=np.int64) for bucket, _ in wanted}
        for wanted in buckets
    ]
    for chunk in inputs.chunks(unit) if any(lows) else ():
        for low, vector in zip(lows, vectors(chunk), strict=True):
            for bucket, counts in low.items():
                _count(vector, counts, bucket)
    return [
        tuple((bucket << _HALF) + _bucket(low[bucket], within)[0] for bucket, within in wanted)
        for low, wanted in zip(lows, buckets, strict=True)
    ]


def _count(vector: Vector, counts: _Counts, bucket: int = -1) -> None:
    """Count the upper 15 bits of magnitudes; with a bucket, the lower 16 bits in that bucket."""
    if native.takes(vector):
        native.count_magnitudes(vector, counts, bucket)
        return
    bits = magnitude(vector)
    high = bits >> _HALF
    numbers = high if bucket < 0 else bits[high == bucket] & (_LOW_BUCKETS - 1)
    counts += host(namespace(numbers).bincount(numbers, minlength=len(counts)))


def _bucket(counts: _Counts, rank: int) -> tuple[int, int]:
    """Return the bucket that holds the rank-th largest, and its rank within that bucket."""
    largest_first = counts[::-1].cumsum()
    index = int(np.searchsorted(largest_first, rank))
    before = int(largest_first[index - 1]) if index else 0
    return len(counts) - 1 - index, rank - before


# ------------------------------------------------------------------------------------- keyed draws

_GOLDEN = 0x9E3779B97F4A7C15 - 2**64
_FIRST = 0xBF58476D1CE4E5B9 - 2**64
_SECOND = 0x94D049BB133111EB - 2**64
"""The constants of splitmix64 (Steele, Lea, Flood 2014) as signed integers."""


def draw_key(seed: int, place: str, model: str) -> int:
    """Return a signed 64-bit key: the start of the sha256 of all three, each on a line."""
    text = f"{seed}\n{place}\n{model}".encode()
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "little", signed=True)


def kept_entries(
    key: int, offset: int, like: Shaped[Array, " n"], share: float
) -> Bool[Array, " n"]:
    """Return a mask of the entries of `like`, from `offset` on, each kept with probability `share`.

    A draw is compared as an integer with share · 2^53, so that 1 keeps all.
    """
    return draws(key, offset, like) < math.ceil(share * 2**53)


def draws(key: int, offset: int, like: Shaped[Array, " n"]) -> Int64[Array, " n"]:
    """Return a draw below 2^53 for each of the entries of `like`, from `offset` on.

    The entry's number goes through splitmix64's finaliser from `key`; the draw is 53 bits of the
    result.
    """
    xp, first = namespace(like), offset + 1
    bits = xp.arange(first, first + like.shape[0], dtype=xp.int64, device=like.device)
    bits *= _GOLDEN
    bits += key
    bits ^= _shifted(bits, 30)
    bits *= _FIRST
    bits ^= _shifted(bits, 27)
    bits *= _SECOND
    bits ^= _shifted(bits, 31)
    return _shifted(bits, 11)


def _shifted(bits: Int64[Array, " n"], by: int) -> Int64[Array, " n"]:
    """Shift to the right and bring in zeros; `>>` brings in the sign."""
    return (bits >> by) & ((1 << (64 - by)) - 1)
