"""The texts of healing: sequences of one length, mixed by the texts' shares, a few held out."""

from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import accumulate, islice, pairwise
from pathlib import Path
from typing import NamedTuple, final

import numpy as np
import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from gptailor.checkpoint.datasets import order, too_short
from gptailor.checkpoint.write.digest import of_file
from gptailor.checks.texts import FEWER_TOKENS
from gptailor.evaluation.fits.heal.sources import EncodedRow, HealingSource
from gptailor.evaluation.objectives.tokens import TokenEncoder
from gptailor.plan.events import FitText

HEALING_WINDOW = 512
"""The most tokens of a sequence, special ones included."""
STEP_TOKENS, LEAST_STEP_TOKENS = 1024, 128
"""The most tokens of a step for each process, and the fewest tokens of a step."""
AT_ONCE = 2**16
"""Tokens of a chunk, which a teacher reads at once, and which has one digest.

A killed run continues after its last sound chunk.
"""
_STEPS = 96
"""The steps that few tokens are divided into; chosen in `benchmarks/notes/heal.md`, *Steps*."""
HELD_OUT_EVERY = 20
"""One in this many sequences of a text is held out: the last one."""
_MORE_PROMPTS = "give more prompts, longer answers or fewer 'tokens'"
"""The remedy if the answers to a file of prompts are too short."""


def step_tokens(tokens: int, processes: int = 1) -> int:
    """Return the tokens of a step of a healing on this many tokens: fewer tokens, smaller steps.

    Several processes share a step of many tokens.
    """
    step = tokens // (_STEPS * LEAST_STEP_TOKENS) * LEAST_STEP_TOKENS
    return min(max(step, LEAST_STEP_TOKENS), STEP_TOKENS * processes)


# --------------------------------------------------------------------------------- sequences


@final
class PackedSequences(NamedTuple):
    """Sequences of one length, in order, each with the number of its text.

    The predictions that count are marked; a sequence of n tokens has n − 1 predictions. `numbers`
    are the sequences' numbers within their text, in the order of drawing.
    """

    tokens: Int64[Tensor, " sequences length"]
    counted: Bool[Tensor, " sequences predictions"]
    texts: Int64[Tensor, " sequences"]
    numbers: Int64[Tensor, " sequences"]

    def rows(self, numbers: Tensor | slice) -> "PackedSequences":
        """Return some sequences, by their numbers or by a mask."""
        return PackedSequences(*(part[numbers] for part in self))

    def with_rows(self, mask: Tensor, rows: "PackedSequences") -> "PackedSequences":
        """Return all sequences, with other tokens and counts in the place of some."""
        tokens, counted = self.tokens.clone(), self.counted.clone()
        tokens[mask], counted[mask] = rows.tokens, rows.counted
        return self._replace(tokens=tokens, counted=counted)


def chunk_starts(sequences: Int64[Tensor, " sequences length"]) -> range:
    """Return the number of the first sequence of each chunk."""
    return range(0, len(sequences), max(1, AT_ONCE // sequences.shape[1]))


@final
@dataclass(frozen=True, eq=False)
class HealingTexts:
    """Sequences to learn from, and held-out sequences; both are mixed.

    `read` are the texts with their numbers of tokens to learn from, and `paths` are their files.
    """

    read: tuple[FitText, ...]
    paths: tuple[Path, ...]
    learned: PackedSequences
    held: PackedSequences

    @property
    def tokens(self) -> int:
        """The number of tokens to learn from."""
        return self.learned.tokens.numel()


def sequence_length(positions: int | None, tokens: int, lengths: Iterable[int | None]) -> int:
    """Return the number of tokens of a sequence of a healing on this many tokens.

    `positions` is the model's largest number of positions, if it has one. `lengths` are the texts'
    lengths, None for a text that isn't cut into sequences yet.
    """
    chosen = min(HEALING_WINDOW, step_tokens(tokens), positions or HEALING_WINDOW)
    return next((length for length in lengths if length is not None), chosen)


def healing_texts(
    sources: Sequence[HealingSource],
    tokens: int,
    encoder: TokenEncoder,
    seed: int,
    *,
    exactly: bool,
    only_answers: bool = False,
) -> HealingTexts:
    """Return sequences of several texts with `tokens` tokens in all, and further ones held out.

    The rows of a text run together in drawn order. An end-of-text token is between two rows,
    and a sequence begins with the tokenizer's opening tokens. So padding isn't needed, and no token
    is used twice. With `only_answers` only predictions of answers count, and sequences without any
    are left out. Each text has its share of the sequences. Without `exactly` there are fewer
    sequences if a text is too short for its share, and their length fits these few tokens.

    Raises CalibrationError: C806 for a text that is too short, and as the sources do.
    """
    least = tokens if exactly else _available(sources, tokens, encoder, seed, only_answers)
    lengths = (source.length for source in sources)
    length = sequence_length(encoder.positions, least, lengths)
    needed = _with_held_out(sequence_counts(sources, tokens, length))
    packing = Packing(encoder, length, seed, only_answers)
    rule = f"; every {HELD_OUT_EVERY}th of these sequences is held out"
    parts = packing.packed(sources, needed, 2, "'heal'", rule, exactly=exactly)
    held = [_held_out(len(part.tokens)) for part in parts]
    learn, held_out = (
        mixed_texts([part.rows(mask == which) for part, mask in zip(parts, held, strict=True)])
        for which in (False, True)
    )
    paths = tuple(source.path for source in sources)
    counts = [int((~mask).sum()) * length for mask in held]
    files = zip(map(of_file, paths), counts, strict=True)
    read = tuple(FitText(file.size, file.sha256, tokens) for file, tokens in files)
    return HealingTexts(read, paths, learn, held_out)


def _available(
    sources: Sequence[HealingSource],
    tokens: int,
    encoder: TokenEncoder,
    seed: int,
    only_answers: bool,
) -> int:
    """Return how many of the tokens there are in sequences of the least length.

    More than those that decide the length of a sequence aren't counted.
    """
    if any(source.length is not None for source in sources):
        return tokens
    count = int(tokens * HELD_OUT_EVERY / (HELD_OUT_EVERY - 1))

    def shown(source: HealingSource) -> HealingSource:
        """Return a source that tells the tokens of the whole healing as wanted."""
        wanted = int(count * source.share)
        return replace(source, rows=lambda _: source.rows(wanted))

    length = sequence_length(encoder.positions, 0, ())
    counts = sequence_counts(sources, min(tokens, _STEPS * HEALING_WINDOW), length)
    packing = Packing(encoder, length, seed, only_answers)
    needed = _with_held_out(counts)
    parts = packing.packed([*map(shown, sources)], needed, 2, "'heal'", exactly=False)
    return sum(int((~_held_out(len(part.tokens))).sum()) * length for part in parts)


def sequence_counts(sources: Sequence[HealingSource], tokens: int, length: int) -> list[int]:
    """Return each text's number of sequences of a length, by its share of the tokens."""
    total = max(1, tokens // length)
    ends = [int(total * share) for share in accumulate(source.share for source in sources)]
    return [max(1, end - start) for start, end in pairwise([0, *ends])]


def _with_held_out(learned: Sequence[int]) -> list[int]:
    """Return each text's number of sequences, including the held-out ones."""
    return [count + max(1, count // (HELD_OUT_EVERY - 1)) for count in learned]


def _held_out(count: int) -> Bool[Tensor, " count"]:
    held = torch.arange(count) % HELD_OUT_EVERY == HELD_OUT_EVERY - 1
    if not bool(held.any()):
        held[-1] = True
    return held


_Sequence = tuple[list[int], list[bool]]
"""The tokens of a sequence, and which of them count."""


def _tensors(sequences: Iterable[_Sequence], length: int, text: int) -> PackedSequences:
    """Return sequences of one text, joined as bytes, because lists of numbers are large."""
    tokens, counted = array("q"), bytearray()
    for its_tokens, its_counted in sequences:
        tokens.extend(its_tokens)
        counted.extend(its_counted[1:])
    count = len(tokens) // length
    return PackedSequences(
        torch.from_numpy(np.asarray(tokens)).view(count, length),
        torch.from_numpy(np.asarray(counted, dtype=np.bool_)).view(count, length - 1),
        torch.full((count,), text),
        torch.arange(count),
    )


def mixed_texts(parts: Sequence[PackedSequences]) -> PackedSequences:
    """Return the sequences of all texts; each text's are in their order and evenly spread."""
    if len(parts) == 1:
        return parts[0]
    places = [
        (Fraction(2 * k + 1, 2 * len(part.tokens)), text)
        for text, part in enumerate(parts)
        for k in range(len(part.tokens))
    ]
    numbers = torch.tensor(sorted(range(len(places)), key=places.__getitem__), dtype=torch.int64)
    return PackedSequences(*map(torch.cat, zip(*parts, strict=True))).rows(numbers)


@final
@dataclass(frozen=True)
class Packing:
    """How rows become sequences of one length."""

    encoder: TokenEncoder
    length: int
    seed: int
    only_answers: bool = False

    def packed(
        self,
        sources: Sequence[HealingSource],
        needed: Sequence[int],
        fewest: int,
        user: str,
        rule: str = "",
        *,
        exactly: bool,
    ) -> list[PackedSequences]:
        """Return the needed sequences of each text, or without `exactly` the same share of all.

        `fewest` is the least number of a text's sequences. Raises CalibrationError (C806) for a
        text that is too short for `user`, with `rule` in the remedy.
        """
        drawn: dict[int, PackedSequences] = {}
        for text in sorted(range(len(sources)), key=lambda text: sources[text].answered):
            source, count = sources[text], needed[text]
            sequences = islice(self.sequences(source, count), count)
            drawn[text] = _tensors(sequences, self.length, text)
            least = count if exactly else fewest
            if len(drawn[text].tokens) < least:
                tokens = f"{drawn[text].tokens.numel():,} tokens"
                available = f"{tokens} in whole sequences of {self.length}"
                whose = user if len(sources) == 1 else f"its share of {user}"
                remedy = _MORE_PROMPTS if source.answered else FEWER_TOKENS
                help_ = f"{remedy}{rule}" if exactly else ""
                raise too_short(source.path, available, whose, self.length * least, help_)
        shares = (Fraction(len(drawn[text].tokens), count) for text, count in enumerate(needed))
        smallest = min(shares)
        taken = [max(fewest, int(count * smallest)) for count in needed]
        return [drawn[text].rows(slice(count)) for text, count in enumerate(taken)]

    def sequences(self, source: HealingSource, count: int) -> Iterator[_Sequence]:
        """Yield a text's sequences in drawn order, each with a counted prediction."""
        rows = source.rows(count * self.length)
        if source.length is not None:
            yield from ((list(row.tokens), [True] * self.length) for row in rows)
            return
        end = self.encoder.tokenizer.eos_token_id
        between = [] if source.whole or end is None else [int(end)]
        made = self._joined(rows, between)
        if source.whole:  # a text without rows is cut before the drawing
            pieces = [*made]
            made = (pieces[number] for number in order(len(pieces), self.seed))
        yield from (one for one in made if any(one[1][1:]))

    def _joined(self, rows: Iterator[EncodedRow], between: list[int]) -> Iterator[_Sequence]:
        """Yield sequences of rows that run together."""
        opening = self.encoder.opening
        opened = [not self.only_answers] * len(opening)
        room = self.length - len(opening)
        tokens, counted = list[int](), list[bool]()
        for row in rows:
            begin = row.answer if self.only_answers else 0
            tokens += [*row.tokens, *between]
            counted += [False] * begin + [True] * (len(row.tokens) - begin + len(between))
            whole = len(tokens) // room * room
            for at in range(0, whole, room):
                piece = slice(at, at + room)
                yield [*opening, *tokens[piece]], [*opened, *counted[piece]]
            del tokens[:whole], counted[:whole]
