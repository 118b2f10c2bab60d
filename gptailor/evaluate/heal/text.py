"""The text that a plan is healed on: sequences of one length, a few of them held out."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import final

import torch
from jaxtyping import Int64
from torch import Tensor

from gptailor.checkpoint.write.digest import FileDigest, of_file
from gptailor.evaluate.objectives.datasets import (
    FEWER_TOKENS,
    Exchange,
    Passage,
    order,
    read_texts,
    too_short,
    whole_text,
)
from gptailor.evaluate.objectives.tokens import TokenEncoder

HEALING_WINDOW = 512
"""Tokens of a sequence, special ones included, unless the model takes fewer."""
HELD_OUT_EVERY = 20
"""Of so many sequences the last one is held out."""


@final
@dataclass(frozen=True, eq=False)
class HealingText:
    """Sequences that are learned from, in their order, and others that the result is judged by."""

    path: Path
    digest: FileDigest
    learned: Int64[Tensor, " sequences length"]
    held: Int64[Tensor, " held length"]

    @property
    def tokens(self) -> int:
        """How many are learned from."""
        return self.learned.numel()


def healing_text(
    path: Path, wanted: int, encoder: TokenEncoder, seed: int, *, exactly: bool
) -> HealingText:
    """Of a file's text as many sequences as hold `wanted` tokens, and those held out besides.

    The rows are taken in the order that `seed` draws, and run together: an end-of-text token stands
    between two, and a sequence begins with the tokens that a text begins with. So there is no
    padding, and no token is used twice. Without `exactly` a shorter text gives what it has.

    Raises CalibrationError: C806 for a text that is too short, and those of `read_texts`.
    """
    rows = read_texts(path)
    digest = of_file(path)
    length = min(HEALING_WINDOW, encoder.positions or HEALING_WINDOW)
    learned = max(1, wanted // length)
    every = HELD_OUT_EVERY - 1
    needed = learned + max(1, learned // every)
    found = []
    for sequence in _sequences(rows, encoder, length, seed):
        found.append(sequence)
        if len(found) == needed:
            break
    if len(found) < (needed if exactly else 2):
        there = f"{length * len(found):,} tokens in whole sequences of {length}"
        if exactly:
            share = f"every {HELD_OUT_EVERY}th of these sequences is held out"
            help_ = f"{FEWER_TOKENS}; {share}"
            raise too_short(path, there, "'heal'", length * needed, help_)
        raise too_short(path, there, "'heal'", 2 * length)
    table = torch.tensor(found)
    held = torch.arange(len(found)) % HELD_OUT_EVERY == HELD_OUT_EVERY - 1
    if not bool(held.any()):
        held[-1] = True
    return HealingText(path, digest, table[~held], table[held])


def _sequences(
    rows: Sequence[Passage | Exchange], encoder: TokenEncoder, length: int, seed: int
) -> Iterator[list[int]]:
    """A file without rows is cut first, and its sequences are drawn then."""
    room = length - len(encoder.opening)
    end = encoder.tokenizer.eos_token_id
    between = [] if end is None else [int(end)]
    waiting: list[int] = []
    if rows[0].line is None:
        waiting = [token for row in rows for token in encoder.plain(whole_text(row))]
        starts = range(0, len(waiting) - room + 1, room)
        for at in order(len(starts), seed):
            yield [*encoder.opening, *waiting[starts[at] : starts[at] + room]]
        return
    for number in order(len(rows), seed):
        waiting += [*encoder.plain(whole_text(rows[number])), *between]
        while len(waiting) >= room:
            yield [*encoder.opening, *waiting[:room]]
            del waiting[:room]
