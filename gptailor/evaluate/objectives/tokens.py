"""A context and its continuation as tokens, cut where lm-eval cuts them.

Blanks that end the context move to the continuation, both are encoded as one text, and what comes
after the context's own tokens is the continuation's. The tokenizer adds the special tokens that it
adds by itself (a `<s>` at the beginning, mostly); an empty context is that token, or the end's.
What is longer than the model's positions loses its beginning.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import final

from transformers import PreTrainedTokenizerBase

from gptailor.evaluate.forward.requests import Request

Tokens = tuple[int, ...]


class SeamError(Exception):
    """A text has no tokens to predict, or none to predict them from."""


@final
@dataclass(frozen=True)
class Seam:
    """How texts become tokens for models of so many positions (`None`: no end)."""

    tokenizer: PreTrainedTokenizerBase
    positions: int | None = None

    def request(self, context: str, continuation: str) -> Request:
        """The continuation's tokens, to be predicted from the context. Raises SeamError."""
        before, after = self._pair(context, continuation)
        if not after:
            raise SeamError("the continuation has no tokens of its own")
        longest = len(after) if self.positions is None else self.positions
        if len(after) > longest:
            raise SeamError(f"the continuation has {len(after)} tokens, more than {longest}")
        tokens = before + after
        tokens = tokens if self.positions is None else tokens[-(self.positions + 1) :]
        return Request(tokens, len(tokens) - len(after))

    def prompt(self, context: str) -> Tokens:
        """The tokens of a text that is to be continued. Raises SeamError."""
        return self.encode(context) or (self._prefix(),)

    def encode(self, text: str) -> Tokens:
        """The tokens of a text with the special ones that the tokenizer adds."""
        special = not (self._mark and text.startswith(self._mark))
        return self._tokens(text, special)

    def plain(self, text: str) -> Tokens:
        """The tokens of a text alone."""
        return self._tokens(text, special=False)

    @cached_property
    def opening(self) -> Tokens:
        """The special tokens that the tokenizer puts before a text."""
        with_, without = self._tokens("a", special=True), self._tokens("a", special=False)
        return with_[: with_.index(without[0])] if without and without[0] in with_ else ()

    @cached_property
    def prefix(self) -> int | None:
        """The token that stands for an empty context."""
        start, end = self.tokenizer.bos_token_id, self.tokenizer.eos_token_id
        found = end if start is None else start
        return None if found is None else int(found)

    @cached_property
    def _mark(self) -> str:
        return "" if self.prefix is None else str(self.tokenizer.decode([self.prefix]))

    def _prefix(self) -> int:
        if self.prefix is None:
            raise SeamError("the context is empty, and the tokenizer has no token to begin with")
        return self.prefix

    def _pair(self, context: str, continuation: str) -> tuple[Tokens, Tokens]:
        if context:
            bare = context.rstrip()
            whole = self.encode(context + continuation)
            before = self.encode(bare)
            if before:
                return before, whole[len(before) :]
            return (self._prefix(),), whole
        after, start = self.plain(continuation), self._prefix()
        return (after[:1], after[1:]) if after[:1] == (start,) else ((start,), after)

    def _tokens(self, text: str, special: bool) -> Tokens:
        encoded = self.tokenizer.encode(text, add_special_tokens=special, verbose=False)
        return tuple(int(token) for token in encoded)
