"""Sums, norms and angles of whole tensors, rows and columns, the same for any chunks and device."""

import math
from collections.abc import Callable, Sequence
from typing import final

import torch
from jaxtyping import Float64
from torch import Tensor

from gptailor.methods.arithmetic import Chunk, Inputs
from gptailor.plan.faults import TailorError

SUM_ENTRIES = 2**14
"""Entries of a block of a sum: a power of two, part of every result, never to be changed."""
_WAITING = 128  # entries of a row that waits, and how many rows' chunks wait

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


def gram_of(inputs: Inputs, what: str) -> Gram:
    """That of the sources themselves ("weights"), or of their task vectors."""
    return gram_of_task_vectors(inputs) if what == "task_vectors" else gram_of_sources(inputs)


def cosine(gram: Gram, i: int, j: int) -> float:
    """The cosine of the angle between two vectors; 0 for a vector of length 0."""
    norms = math.sqrt(gram[i][i]) * math.sqrt(gram[j][j])
    return clamped(gram[i][j] / norms) if norms > 0.0 else 0.0


def clamped(number: float) -> float:
    """A cosine that rounding has taken out of [-1, 1], back in it."""
    return max(-1.0, min(1.0, number))


def _gram(inputs: Inputs, vectors: Callable[[Chunk], list[Float64[Tensor, " n"]]]) -> Gram:
    count = len(inputs.models)
    pairs = [(i, j) for i in range(count) for j in range(i, count)]
    sums = {pair: _Sum() for pair in pairs}
    for chunk in inputs.chunks(SUM_ENTRIES):
        blocks = [_blocks(vector) for vector in vectors(chunk)]
        for i, j in pairs:
            sums[i, j].add(blocks[i] * blocks[j])
    totals = {pair: each.value() for pair, each in sums.items()}
    for i, model in enumerate(inputs.models):
        _refuse_infinite(inputs, model, totals[i, i])
    return [[totals[min(i, j), max(i, j)] for j in range(count)] for i in range(count)]


def sums(
    inputs: Inputs,
    terms: Callable[[Chunk], Sequence[Float64[Tensor, " n"]]],
    *,
    of: Sequence[str],
    width: int = SUM_ENTRIES,
) -> list[float]:
    """The sum over the whole tensor of each vector that is made of a chunk, in blocks of `width`.

    `of` names the model that each is of, which infinity and NaN are put down to. Raises
    TailorError.
    """
    found = [_Sum() for _ in of]
    for chunk in inputs.chunks(width):
        for one, vector in zip(found, terms(chunk), strict=True):
            one.add(_blocks(vector) if width == SUM_ENTRIES else _even(vector.view(-1, width)))
    totals = [one.value() for one in found]
    for model, total in zip(of, totals, strict=True):
        _refuse_infinite(inputs, model, total)
    return totals


def _refuse_infinite(inputs: Inputs, model: str, total: float) -> None:
    if not math.isfinite(total):
        raise TailorError(
            f"'{inputs.place}' of '{model}' or of the base holds infinity or NaN, "
            "so that its norm can't be measured"
        )


def refuse_infinite(inputs: Inputs) -> None:
    """Nothing where all is finite. Raises TailorError, as what measures norms does."""
    for chunk in inputs.chunks():
        for model, source in zip(inputs.models, chunk.sources, strict=True):
            finite = torch.isfinite(source).all() and (
                chunk.base is None or torch.isfinite(chunk.base).all()
            )
            _refuse_infinite(inputs, model, 0.0 if finite else math.inf)


def _blocks(vector: Float64[Tensor, " n"]) -> Float64[Tensor, "blocks width"]:
    """The vector in rows of a block, zeros at its end; a short one in one row, which sums alike."""
    entries = vector.shape[0]
    width = min(SUM_ENTRIES, 1 << (entries - 1).bit_length())
    if entries % width:
        vector = torch.nn.functional.pad(vector, (0, -entries % width))
    return vector.view(-1, width)


def _even(rows: Float64[Tensor, "rows width"]) -> Float64[Tensor, "rows even"]:
    """Rows with zeros at their ends, so that halves can be added to halves."""
    return torch.nn.functional.pad(
        rows, (0, (1 << (rows.shape[1] - 1).bit_length()) - rows.shape[1])
    )


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
        for width in sorted({rows.shape[1] for rows in self.waiting}, reverse=True):
            rows = torch.cat([rows for rows in self.waiting if rows.shape[1] == width])
            self.folded += _fold(rows, 1)[:, 0].tolist()
        self.waiting.clear()


def _fold(terms: Float64[Tensor, "blocks width"], least: int) -> Float64[Tensor, "blocks least"]:
    """Rows of at most `least` entries: the second half is added to the first until they are."""
    while (half := terms.shape[1] // 2) >= least:
        terms = terms[:, :half] + terms[:, half:]
    return terms


# ------------------------------------------------------------------------------- rows and columns


def row_sums(rows: Float64[Tensor, "rows width"]) -> Float64[Tensor, " rows"]:
    """The sum of each row, the same however many there are."""
    return _fold(_even(rows), 1)[:, 0]


COLUMN_ROWS = 128
"""Rows that are added up at once: a power of two, part of every result, never to be changed."""


def column_sums(
    inputs: Inputs, terms: Callable[[Chunk], Sequence[Float64[Tensor, " n"]]], width: int
) -> list[Float64[Tensor, " width"]]:
    """The sum of each column, in blocks of rows, whose sums are added in order."""
    found: list[Float64[Tensor, " width"]] = []
    for chunk in inputs.chunks(COLUMN_ROWS * width):
        for n, vector in enumerate(terms(chunk)):
            rows = vector.view(-1, width)
            blocks = torch.nn.functional.pad(rows, (0, 0, 0, -rows.shape[0] % COLUMN_ROWS))
            blocks = blocks.view(-1, COLUMN_ROWS, width)
            while (half := blocks.shape[1] // 2) >= 1:
                blocks = blocks[:, :half] + blocks[:, half:]
            for block in blocks[:, 0]:
                if n == len(found):
                    found.append(block.clone())
                else:
                    found[n] += block
    return found
