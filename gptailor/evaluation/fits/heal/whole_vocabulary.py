"""Predictions of a teacher with a whole vocabulary, for a student with a smaller one.

The teacher reads the same text in its own tokens. Its probability of a token that the student lacks
goes to the first of the tokens that replace it. Inside such a word the teacher has no prediction,
and the student learns the next token of the text.

A student has to learn which tokens stand for each word that isn't a token any more, and texts have
few of these words. So some tokens of a text give way to tokens that the student lacks, drawn by the
teacher's predictions at their place. The teacher then reads the changed text.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, final

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from gptailor.checkpoint.token_cut import TokenCut, loaded_tokenizer
from gptailor.evaluation.fits.heal.learning import of_teacher
from gptailor.evaluation.fits.heal.text import PackedSequences, chunk_starts
from gptailor.evaluation.fits.kept_tensors import KeptTensors, read_tensors
from gptailor.evaluation.forward.evaluator import Evaluator
from gptailor.evaluation.forward.requests import Request, Work
from gptailor.evaluation.live.stitch import Stitched
from gptailor.plan.events import OnEvent, Progress, ignore_events

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_CERTAIN, _IMPOSSIBLE = -1e-6, -30.0
"""Log-probabilities of the next token of a text, and of all other tokens."""
_TORN = "\ufffd"
"""The sign of a part of a character in a decoded text."""
LEAST_PROBABILITY = 1e-30
"""The least probability: its logarithm is finite, and it can be drawn."""
REPLACED_SHARE = 0.1
"""The replaced share of a text's tokens; a quarter was worse (benchmarks/notes/heal.md)."""
CANDIDATES = 64
"""The likeliest of the missing tokens at a place; one of them is drawn."""


@final
@dataclass(frozen=True)
class ReadSequence:
    """A student's sequence in the teacher's tokens.

    `after` has for each of the student's predictions the number of the teacher's that stands at
    the same place of the text; −1 inside a word. `following` are the student's next tokens.
    """

    tokens: tuple[int, ...]
    after: tuple[int, ...]
    following: tuple[int, ...]


@final
class WholeVocabulary:
    """The teacher's tokens with the tokens of a cut vocabulary."""

    def __init__(self, cut: TokenCut) -> None:
        self.cut = cut

    @cached_property
    def _small(self) -> "Tokenizer":
        return loaded_tokenizer(self.cut.content, self.cut.whole.main)

    @cached_property
    def _words(self) -> tuple[dict[int, str], dict[int, str]]:
        """The texts of the teacher's tokens and of the student's, by number."""
        return (
            {number: token for token, number in self.cut.whole.ids.items()},
            {number: token for token, number in self.cut.vocabulary.ids.items()},
        )

    @cached_property
    def _split(self) -> Mapping[int, tuple[int, ...]]:
        """The student's tokens for each of the teacher's that it lacks."""
        words, numbers = self._words[0], self.cut.numbers
        return {
            number: tuple(piece.id for piece in self._small.model.tokenize(word))
            for number, word in words.items()
            if number not in numbers
        }

    @cached_property
    def pieces(self) -> Mapping[int, tuple[int, ...]]:
        """The student's tokens for each missing token that is text of whole characters."""
        whole, small = self._words
        return {
            number: pieces
            for number, pieces in self._split.items()
            if "".join(small[piece] for piece in pieces) == whole[number]
            and _TORN not in self.cut.whole.tokenizer.decode([number])
        }

    @cached_property
    def missing(self) -> Tensor:
        """The numbers of these missing tokens, in order."""
        return torch.tensor(sorted(self.pieces), dtype=torch.int64)

    @cached_property
    def added(self) -> frozenset[int]:
        """The student's added tokens, such as special ones."""
        return frozenset(self._small.get_added_tokens_decoder())

    @cached_property
    def first(self) -> Tensor:
        """The student's first token for each of the teacher's, [the teacher's tokens]."""
        first = torch.zeros(max(self._words[0]) + 1, dtype=torch.int64)
        for number, kept in self.cut.numbers.items():
            first[number] = kept
        for number, pieces in self._split.items():
            first[number] = pieces[0] if pieces else 0
        return first

    def read(self, sequence: Sequence[int]) -> ReadSequence:
        """Return a student's sequence in the teacher's tokens; as its own where texts differ.

        A sequence may begin or end within a character.
        """
        whole, small = self._words
        text = self._small.decode(sequence, skip_special_tokens=False)
        tokens = self.cut.whole.tokenizer.encode(text, add_special_tokens=False).ids
        own = [small[number] for number in sequence]
        if len(tokens) < 2 or "".join(own) != "".join(whole[number] for number in tokens):
            tokens = [self.cut.kept[number] for number in sequence]
        ends = {end: n for n, end in enumerate(accumulate(len(whole[t]) for t in tokens))}
        after = (ends.get(end, -1) for end in accumulate(map(len, own[:-1])))
        return ReadSequence(tuple(tokens), tuple(after), tuple(sequence[1:]))

    def mapped(self, logits: Float[Tensor, " n whole"]) -> Float[Tensor, " n small"]:
        """Return log-probabilities of the student's tokens for the teacher's tokens."""
        first = self.first.to(logits.device)
        rows = logits.shape[1]
        probabilities = logits[:, : len(first)].double().softmax(dim=1)
        summed = probabilities.new_zeros(len(logits), self.cut.size)
        summed.index_add_(1, first[:rows], probabilities)
        return summed.clamp(min=LEAST_PROBABILITY).log().to(logits.dtype)

    @staticmethod
    def spread(
        read: ReadSequence, taught: Float[Tensor, " m values"], kept: int
    ) -> Float[Tensor, " n values"]:
        """Return a value row for each of the student's predictions, from the teacher's rows.

        A row has `kept` tokens, then the log-probabilities of these and of the rest.
        """
        rows = taught[torch.tensor(read.after).clamp(min=0)].clone()
        for place in (n for n, after in enumerate(read.after) if after < 0):
            token = read.following[place]
            others = (n for n in range(kept) if n != token)
            rows[place, :kept] = torch.tensor([token, *others][:kept], dtype=rows.dtype)
            rows[place, kept:] = _IMPOSSIBLE
            rows[place, kept] = _CERTAIN
        return rows


@final
@dataclass(frozen=True)
class DroppedWords:
    """Replaces tokens of sequences by tokens that the student lacks.

    `whole` has both vocabularies. Places and tokens are drawn by `seed`.
    """

    whole: WholeVocabulary
    device: torch.device
    seed: int

    def replace_tokens(
        self,
        sequences: PackedSequences,
        teacher: Callable[[], Stitched],
        file: Path,
        on_event: OnEvent = ignore_events,
    ) -> PackedSequences:
        """Return sequences of the same lengths with replaced tokens, and keep them in `file`.

        Only tokens with a prediction that counts are replaced. Reports the `Progress` of reading.

        Raises NotFiniteError if a teacher's predictions are NaN, TailorError for a teacher that
        fails.
        """
        if not self.whole.pieces:
            return sequences
        key = hashlib.sha256(sequences.tokens.contiguous().numpy().data).hexdigest()
        kept = read_tensors(file, key)
        if kept is None:
            kept = KeptTensors(self._made(sequences, teacher(), on_event), {})
            kept.write(file, key)
        return sequences._replace(**kept.tensors)

    def _made(
        self, sequences: PackedSequences, teacher: Stitched, on_event: OnEvent
    ) -> dict[str, Tensor]:
        rows, length = sequences.tokens.shape
        tokens, counted = sequences.tokens.clone(), sequences.counted.clone()
        evaluator = Evaluator(device=self.device)
        generator = torch.Generator().manual_seed(self.seed)
        starts = chunk_starts(tokens)
        for start in starts:
            on_event(Progress("reading", start * length, rows * length))
            read = [self.whole.read(row) for row in tokens[start : start + starts.step].tolist()]
            requests = [Request(each.tokens, 1) for each in read]
            results = of_teacher(evaluator.run(teacher, [Work(requests, self._likely)]))
            for number, (each, likely) in enumerate(zip(read, results[0], strict=True), start):
                old = tokens[number].tolist(), counted[number].tolist()
                new = self._replaced(*old, each, likely.double(), generator)
                tokens[number], counted[number] = map(torch.tensor, new)
        return {"tokens": tokens, "counted": counted}

    def _likely(
        self,
        logits: Float[Tensor, " n whole"],
        _targets: Int64[Tensor, " n"],
        _numbers: Int64[Tensor, " n"],
    ) -> Float[Tensor, " n values"]:
        """Return the likeliest of the missing tokens, then their probabilities."""
        missing = self.whole.missing.to(logits.device)
        probabilities = logits.softmax(dim=1)[:, missing]
        likely = probabilities.topk(min(CANDIDATES, len(missing)), dim=1)
        return torch.cat([missing[likely.indices].to(logits.dtype), likely.values], dim=1)

    def _replaced(
        self,
        sequence: Sequence[int],
        counted: Sequence[bool],
        read: ReadSequence,
        likely: Float[Tensor, " n values"],
        generator: torch.Generator,
    ) -> tuple[list[int], list[bool]]:
        """Return a sequence with replaced tokens, and which of its predictions count."""
        ends = {after: place for place, after in enumerate(read.after) if after >= 0}
        spans = [
            (after, end + 1, ends[after + 1] + 1)
            for after, end in ends.items()
            if after + 1 in ends and sequence[end + 1] not in self.whole.added
        ]
        spans = [span for span in spans if all(counted[span[1] - 1 : span[2] - 1])]
        count = round(REPLACED_SHARE * len(spans))
        if not count:
            return list(sequence), list(counted)
        candidates, chances = likely.clamp(min=LEAST_PROBABILITY).tensor_split(2, dim=1)
        # places where such a word is likely are preferred
        weights = chances[[after for after, _, _ in spans]].sum(dim=1).sqrt()
        chosen = torch.multinomial(weights, count, generator=generator)
        made, counts, done = list[int](), list[bool](), 0
        flags = [True, *counted]
        for after, begin, end in sorted(spans[number] for number in chosen.tolist()):
            drawn = int(torch.multinomial(chances[after], 1, generator=generator))
            pieces = self.whole.pieces[int(candidates[after, drawn])]
            made += [*sequence[done:begin], *pieces]
            counts += [*flags[done:begin], *(True for _ in pieces)]
            done = end
        made, counts = [*made, *sequence[done:]], [*counts, *flags[done:]]
        if len(made) < len(sequence):  # the text itself had words in more tokens
            return list(sequence), list(counted)
        return made[: len(sequence)], counts[1 : len(sequence)]
