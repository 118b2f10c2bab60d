"""The texts of healing: sequences of one length, mixed by the texts' shares, a few held out."""

from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cache
from itertools import accumulate, islice, pairwise, takewhile
from pathlib import Path
from typing import final

import numpy as np
import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from gptailor.checkpoint.datasets import (
    Chat,
    Exchange,
    Passage,
    StoredTexts,
    order,
    require_answer,
    too_short,
    whole_text,
)
from gptailor.checkpoint.write.digest import FileDigest, of_file
from gptailor.checks.texts import FEWER_TOKENS
from gptailor.evaluation.fits.heal.teacher_chats import TeacherChats
from gptailor.evaluation.objectives.tokens import TokenEncoder

HEALING_WINDOW = 512
"""The most tokens of a sequence, special ones included."""
STEP_TOKENS, LEAST_STEP_TOKENS = 1024, 128
"""The most tokens of a step for each process, and the fewest tokens of a step."""
_STEPS = 96
"""The steps that few tokens are divided into; chosen in `docs/healing_results.md`, *Steps*."""
HELD_OUT_EVERY = 20
"""One in so many sequences of a text is held out: the last one."""


def step_tokens(tokens: int, processes: int = 1) -> int:
    """Return the tokens of a step of a healing on so many tokens: fewer tokens, smaller steps.

    Several processes share a step of many tokens.
    """
    step = tokens // (_STEPS * LEAST_STEP_TOKENS) * LEAST_STEP_TOKENS
    return min(max(step, LEAST_STEP_TOKENS), STEP_TOKENS * processes)


# --------------------------------------------------------------------------------------- rows


@final
@dataclass(frozen=True)
class EncodedRow:
    """The tokens of a row; those from `answer` on are its answer, None if they all count."""

    tokens: tuple[int, ...]
    answer: int | None = None


@final
@dataclass(frozen=True, eq=False)
class HealingSource:
    """A file, its share of the tokens, and a function that yields its rows in drawn order.

    The function receives the number of tokens that are wanted. A `whole` text has no rows: it is
    one row, and its sequences are drawn instead. A text with a `length` has a sequence of so many
    tokens in each row. Texts that are `answered` by a teacher are read after the others.
    """

    path: Path
    share: Fraction
    rows: Callable[[int], Iterator[EncodedRow]]
    whole: bool = False
    answered: bool = False
    length: int | None = None


_AT_ONCE = 256
"""Rows whose chats are rendered at once."""


MORE_PROMPTS = "give more prompts, or longer answers, or ask for fewer 'tokens'"
"""The remedy if the answers to a file of prompts are too short."""


def file_source(
    path: Path,
    share: Fraction,
    encoder: TokenEncoder,
    seed: int,
    chats: TeacherChats | None = None,
    *,
    only_answers: bool = False,
) -> HealingSource:
    """Return the source of a file of text; `chats` renders its rows of messages.

    Rows are read from the disk when they are needed.

    Raises CalibrationError as `StoredTexts` does, C812 for messages without a template, and with
    `only_answers` C804 for a row without an answer.
    """
    rows = StoredTexts(path)
    if chats is not None and Chat in rows.kinds:
        chats.require(path)
    for row in rows.read(range(len(rows))) if only_answers else ():
        require_answer(path, row)

    def encoded(_wanted: int) -> Iterator[EncodedRow]:
        numbers = order(len(rows), seed)
        for at in range(0, len(rows), _AT_ONCE):
            drawn = list(rows.read(numbers[at : at + _AT_ONCE]))
            chat_rows = [row for row in drawn if isinstance(row, Chat)]
            whole = iter(_chat_texts(path, chat_rows, chats))
            asked = [row.asked for row in chat_rows] if only_answers else []
            before = iter(_chat_texts(path, asked, chats, begun=True))
            for row in drawn:
                text = next(whole) if isinstance(row, Chat) else whole_text(row)
                beginning = None
                if only_answers:
                    beginning = next(before) if isinstance(row, Chat) else _context(row)
                tokens, answer = encoder.plain(text), None
                if beginning is not None:
                    answer = common_length(encoder.plain(beginning), tokens)
                yield EncodedRow(tokens, answer)

    if not rows.whole:
        return HealingSource(path, share, encoded)
    kept = cache(lambda: [*encoded(0)])  # a text without rows is encoded as a whole, once
    return HealingSource(path, share, lambda _wanted: iter(kept()), whole=True)


def _chat_texts(
    path: Path, rows: Sequence[Chat], chats: TeacherChats | None, *, begun: bool = False
) -> list[str]:
    """Return chats as text, with the answer's beginning if it has `begun`."""
    if not rows:
        return []
    assert chats is not None, "a text of a plan"
    return chats.texts(path, [(row.messages, begun) for row in rows])


def _context(row: Passage | Exchange) -> str | None:
    return row.context.rstrip() if isinstance(row, Exchange) else None


def common_length(before: Sequence[int], tokens: Sequence[int]) -> int:
    """Return with how many equal tokens both begin."""
    pairs = zip(before, tokens, strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))


# --------------------------------------------------------------------------------- sequences


@final
@dataclass(frozen=True, eq=False)
class PackedSequences:
    """Sequences of one length, in order, each with the number of its text.

    The predictions that count are marked; a sequence of n tokens has n − 1 predictions. `numbers`
    are those of the sequences within their text, in the order of drawing.
    """

    tokens: Int64[Tensor, " sequences length"]
    counted: Bool[Tensor, " sequences predictions"]
    texts: Int64[Tensor, " sequences"]
    numbers: Int64[Tensor, " sequences"]

    def rows(self, numbers: Tensor | slice) -> "PackedSequences":
        """Return some sequences, by their numbers or by a mask."""
        parts = self.tokens, self.counted, self.texts, self.numbers
        return PackedSequences(*(part[numbers] for part in parts))

    def with_rows(self, mask: Tensor, rows: "PackedSequences") -> "PackedSequences":
        """Return all sequences, with other tokens and counts in the place of some."""
        tokens, counted = self.tokens.clone(), self.counted.clone()
        tokens[mask], counted[mask] = rows.tokens, rows.counted
        return replace(self, tokens=tokens, counted=counted)


@final
@dataclass(frozen=True)
class LearnedText:
    """A file that was learned from, and the number of tokens of it."""

    path: Path
    digest: FileDigest
    tokens: int


@final
@dataclass(frozen=True, eq=False)
class HealingTexts:
    """Sequences to learn from, and held-out sequences; both are mixed."""

    files: tuple[LearnedText, ...]
    learned: PackedSequences
    held: PackedSequences

    @property
    def paths(self) -> list[Path]:
        """The files."""
        return [file.path for file in self.files]

    @property
    def tokens(self) -> int:
        """The number of tokens to learn from."""
        return self.learned.tokens.numel()


def sequence_length(positions: int | None, tokens: int, lengths: Iterable[int | None]) -> int:
    """Return the number of tokens of a sequence of a healing on so many tokens.

    `positions` is the model's largest number of them, if it has one. `lengths` are those of the
    texts, None for a text that isn't cut into sequences yet.
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

    The rows of a text run together in drawn order. An end-of-text token stands between two rows,
    and a sequence begins with the tokenizer's opening tokens. So there is no padding, and no token
    is used twice. With `only_answers` only predictions of answers count, and sequences without any
    are left out. Each text has its share of the sequences. Without `exactly` there are fewer
    sequences if a text is too short for its share, and their length is that of so few tokens.

    Raises CalibrationError: C806 for a text that is too short, and as the sources do.
    """
    least = tokens if exactly else _available(sources, tokens, encoder, seed, only_answers)
    lengths = (source.length for source in sources)
    length = sequence_length(encoder.positions, least, lengths)
    learned = sequence_counts(sources, tokens, length)
    needed = _with_held_out(learned)
    packing = Packing(encoder, length, seed, only_answers)
    rule = f"; every {HELD_OUT_EVERY}th of these sequences is held out"
    parts = packing.packed(sources, needed, 2, "'heal'", rule, exactly=exactly)
    held = [_held_out(len(part.tokens)) for part in parts]
    files = tuple(
        LearnedText(source.path, of_file(source.path), int((~mask).sum()) * length)
        for source, mask in zip(sources, held, strict=True)
    )
    learn, held_out = (
        mixed_texts([part.rows(mask == which) for part, mask in zip(parts, held, strict=True)])
        for which in (False, True)
    )
    return HealingTexts(files, learn, held_out)


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
    """Return each text's number of sequences with those that are held out."""
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
    """Return the sequences of all texts, those of each text in their order and evenly spread."""
    if len(parts) == 1:
        return parts[0]
    places = [
        (Fraction(2 * k + 1, 2 * len(part.tokens)), text)
        for text, part in enumerate(parts)
        for k in range(len(part.tokens))
    ]
    numbers = torch.tensor(sorted(range(len(places)), key=places.__getitem__), dtype=torch.int64)
    joined = (
        torch.cat([getattr(part, name) for part in parts])
        for name in ("tokens", "counted", "texts", "numbers")
    )
    return PackedSequences(*joined).rows(numbers)


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
                remedy = MORE_PROMPTS if source.answered else FEWER_TOKENS
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
        made = self._pieces(rows) if source.whole else self._joined(rows)
        yield from (one for one in made if any(one[1][1:]))

    def _pieces(self, rows: Iterator[EncodedRow]) -> Iterator[_Sequence]:
        """Yield the pieces of a text without rows, which is cut before the drawing."""
        tokens, counted = list[int](), list[bool]()
        for row in rows:
            tokens += row.tokens
            counted += self._counted(row)
        room = self.length - len(self.encoder.opening)
        starts = range(0, len(tokens) - room + 1, room)
        for number in order(len(starts), self.seed):
            piece = slice(starts[number], starts[number] + room)
            yield self._opened(tokens[piece], counted[piece])

    def _joined(self, rows: Iterator[EncodedRow]) -> Iterator[_Sequence]:
        """Yield sequences of rows that run together."""
        end = self.encoder.tokenizer.eos_token_id
        between = [] if end is None else [int(end)]
        room = self.length - len(self.encoder.opening)
        tokens, counted = list[int](), list[bool]()
        for row in rows:
            tokens += [*row.tokens, *between]
            counted += [*self._counted(row), *(True for _ in between)]
            while len(tokens) >= room:
                yield self._opened(tokens[:room], counted[:room])
                del tokens[:room], counted[:room]

    def _opened(self, tokens: list[int], counted: list[bool]) -> _Sequence:
        opening = self.encoder.opening
        first = [not self.only_answers] * len(opening)
        return [*opening, *tokens], [*first, *counted]

    def _counted(self, row: EncodedRow) -> list[bool]:
        """Return for each token of a row whether its prediction counts."""
        begin = 0 if not self.only_answers else row.answer
        assert begin is not None, "rows with answers"
        return [place >= begin for place in range(len(row.tokens))]
