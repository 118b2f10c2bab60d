"""The text that bridges are fitted on, as batches of tokens."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import final

import torch
from jaxtyping import Bool, Int64
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from gptailor.checkpoint.write.digest import FileDigest, of_file
from gptailor.evaluate.objectives.datasets import (
    CalibrationError,
    Exchange,
    Passage,
    joined_text,
    order,
    read_texts,
)
from gptailor.evaluate.objectives.tokens import Seam, Tokens

_BRIDGE_WINDOW = 512
"""Tokens of a sequence, special ones included, unless the model takes fewer."""
BRIDGE_BATCH_TOKENS = 4096
"""Tokens that go through a layer at once, padding included."""


@final
@dataclass(frozen=True)
class Sequences:
    """Token rows, padded on the right, and which of them are tokens of the text."""

    tokens: Int64[Tensor, " batch length"]
    real: Bool[Tensor, " batch length"]


@final
@dataclass(frozen=True, eq=False)
class CalibrationText:
    """The batches of a file's text, where it is, its digest, and how many tokens there are."""

    path: Path
    batches: tuple[Sequences, ...]
    digest: FileDigest
    tokens: int

    def refuse_few(self, needed: int) -> None:
        """Raise CalibrationError (C806) where a fit on so many inputs takes more tokens."""
        if self.tokens < needed:
            message = f"the text has {self.tokens:,} tokens, and a bridge needs at least {needed:,}"
            help_ = f"it is fitted on {needed:,} inputs; ten times as many tokens are a good start"
            raise CalibrationError("C806", message, self.path, help=help_)


def calibration_text(
    path: Path,
    wanted: int,
    *,
    tokenizer: PreTrainedTokenizerBase,
    positions: int | None,
) -> CalibrationText:
    """Of a file's text so many tokens, or all if it has fewer.

    Rows are drawn in an order that depends on their number alone. Each is cut into sequences of
    `WINDOW` tokens, which begin with the special tokens that the tokenizer begins a text with, and
    these count too; a file that isn't JSON lines is cut first and drawn then. `positions` is the
    longest text that the model takes. Raises CalibrationError.
    """
    rows = read_texts(path)
    digest = of_file(path)
    seam = Seam(tokenizer, positions)
    window = min(_BRIDGE_WINDOW, positions or _BRIDGE_WINDOW)
    found = list(_enough(_sequences(rows, seam, window), wanted))
    count = sum(map(len, found))
    return CalibrationText(path, tuple(_batches(found)), digest, count)


def _sequences(rows: Sequence[Passage | Exchange], seam: Seam, window: int) -> Iterator[Tokens]:
    room = window - len(seam.opening)
    for number in order(len(rows), 0):
        row = rows[number]
        pieces = [seam.opening + piece for piece in _cut(seam.plain(_text(row)), room)]
        drawn = range(len(pieces)) if row.line is not None else order(len(pieces), 0)
        yield from (pieces[at] for at in drawn)


def _text(row: Passage | Exchange) -> str:
    if isinstance(row, Passage):
        return row.text
    return row.context + joined_text(row.context, row.continuation)


def _cut(tokens: Tokens, size: int) -> Iterator[Tokens]:
    return (tokens[at : at + size] for at in range(0, len(tokens), size))


def _enough(sequences: Iterator[Tokens], wanted: int) -> Iterator[Tokens]:
    """So many that their tokens are as wanted; the last one is cut."""
    for sequence in sequences:
        yield sequence[:wanted]
        wanted -= len(sequence)
        if wanted <= 0:
            return


def _batches(sequences: Sequence[Tokens]) -> Iterator[Sequences]:
    ordered = sorted(sequences, key=lambda one: (-len(one), one))
    while ordered:
        length = len(ordered[0])
        count = max(1, BRIDGE_BATCH_TOKENS // length)
        yield _padded(ordered[:count], length)
        ordered = ordered[count:]


def _padded(rows: Sequence[Tokens], length: int) -> Sequences:
    padded = [[*row, *itertools.repeat(0, length - len(row))] for row in rows]
    places = torch.arange(length)
    ends = torch.tensor([len(row) for row in rows])
    return Sequences(torch.tensor(padded), places < ends[:, None])
