"""Predictions of a teacher with a whole vocabulary, for a student with a smaller one.

The teacher reads the same text in its own tokens. Its probability of a token that the student lacks
goes to the first of the tokens that replace it. Inside such a word the teacher has no prediction,
and the student learns the next token of the text.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import TYPE_CHECKING, final

import torch
from jaxtyping import Float
from torch import Tensor

from gptailor.checkpoint.token_cut import TokenCut, loaded_tokenizer

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_CERTAIN, _IMPOSSIBLE = -1e-6, -30.0
"""Log-probabilities of the next token of a text, and of all others."""
_TORN = "\ufffd"
"""The sign of a part of a character in a decoded text."""
LEAST_PROBABILITY = 1e-30
"""The least probability: its logarithm is finite, and it can be drawn."""


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
    """The teacher's tokens beside those of a cut vocabulary."""

    def __init__(self, cut: TokenCut) -> None:
        self.cut = cut

    @cached_property
    def _small(self) -> "Tokenizer":
        return loaded_tokenizer(self.cut.text_of_document, self.cut.whole.main)

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
        """Return log-probabilities of the student's tokens for those of the teacher's."""
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
