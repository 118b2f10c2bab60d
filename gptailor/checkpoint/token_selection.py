"""The tokens of a smaller vocabulary: the mandatory tokens, then the most used tokens.

A tokenizer is the document of a `tokenizer.json`: BPE, Unigram or WordPiece. Every text that the
whole tokenizer can read, the smaller one reads too, in more tokens at worst.
"""

from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from itertools import pairwise
from typing import Any, final

_BYTES = frozenset(f"<0x{byte:02X}>" for byte in range(256))
"""Tokens of single bytes, into which a tokenizer with `byte_fallback` splits unknown characters."""
_BLANK = "▁"
"""SentencePiece's blank. As bytes it would not become a blank again."""


class TokenSelection(ABC):
    """The tokens of one kind of tokenizer, and their dependence on one another.

    `ids` are the numbers of all tokens. `special` are tokens that stay whatever a text uses: added
    tokens, and tokens that settings name.
    """

    def __init__(
        self, document: Mapping[str, Any], ids: Mapping[str, int], special: Iterable[int]
    ) -> None:
        self.document = document
        self.model: Mapping[str, Any] = document["model"]
        self.ids = ids
        self._special = frozenset(special)

    @abstractmethod
    def alphabet(self) -> Iterator[str]:
        """Yield the tokens that any text needs."""

    def parts(self, token: str) -> Iterable[str]:
        """Return the tokens that a token is merged from, recursively."""
        return ()

    @cached_property
    def pieces(self) -> tuple[str, ...]:
        """The tokens of the vocabulary proper."""
        return tuple(
            entry[0] if isinstance(entry, list) else entry for entry in self.model["vocab"]
        )

    @cached_property
    def fixed(self) -> frozenset[int]:
        """The numbers of the tokens that every cut keeps."""
        tokens = (token for token in self.alphabet() if token in self.ids)
        return self._special.union(*(self._with_parts(self.ids[token]) for token in tokens))

    @property
    def has_all_bytes(self) -> bool:
        """Return whether unknown characters are split into tokens of bytes."""
        return bool(self.model.get("byte_fallback")) and self.ids.keys() >= _BYTES

    def _or_bytes(self, letters: Iterator[str]) -> Iterable[str]:
        """Return the tokens of bytes and the blank; the letters if bytes can't stand for them."""
        return (*_BYTES, _BLANK) if self.has_all_bytes else letters

    @cached_property
    def _prefix(self) -> str:
        return self.model.get("continuing_subword_prefix") or ""

    def _letters(self, token: str) -> list[str]:
        """Return the characters of a token, each as it would be a token there."""
        word = token.removeprefix(self._prefix)
        first = self._prefix if word != token else ""
        suffix = self.model.get("end_of_word_suffix") or ""
        end = suffix if word.endswith(suffix) else ""
        word = word.removesuffix(end)
        letters = [first * (n == 0) + self._prefix * (n > 0) + c for n, c in enumerate(word)]
        if letters:
            letters[-1] += end
        return letters

    def kept(self, counts: Mapping[int, int], size: int) -> tuple[int, ...]:
        """Return the numbers of `size` tokens in order, by their counts in a text.

        A token's parts stay with it. Among tokens of one count, lower numbers come first.
        """
        kept = set(self.fixed)
        order = sorted(set(self.ids.values()) - kept, key=lambda n: (-counts.get(n, 0), n))
        while len(kept) < size and order:
            left = []
            for number in order:
                more = {number} if len(kept) == size else self._with_parts(number) - kept
                if len(kept) + len(more) <= size:
                    kept |= more
                elif number not in kept:
                    left.append(number)  # smaller tokens may fit
            order = [number for number in left if number not in kept]
        return tuple(sorted(kept))

    def _with_parts(self, number: int) -> set[int]:
        return {number, *(self.ids[part] for part in self.parts(self._tokens[number]))}

    @cached_property
    def _tokens(self) -> dict[int, str]:
        return {number: token for token, number in self.ids.items()}


@final
class BpeSelection(TokenSelection):
    """Tokens that merges make of bytes or characters; a token needs the merges that make it."""

    def alphabet(self) -> Iterator[str]:
        """Yield the bytes, or the characters if bytes can't stand for them."""
        if (unknown := self.model.get("unk_token")) is not None:
            yield unknown
        yield from self._or_bytes(t for t in self.pieces if self._letters(t) == [t])

    def parts(self, token: str) -> Iterable[str]:
        """Return the tokens that merges make on the way to a token, and its characters."""
        if token not in self._parts:
            ways = self._ways.get(token, [])
            parts: set[str] = set()
            if len(ways) == 1:
                [(first, second)] = ways
                parts = {first, second, *self.parts(first), *self.parts(second)}
            elif ways:
                parts = self._merged(token)
            self._parts[token] = frozenset(parts - {token})
        return self._parts[token]

    @cached_property
    def merges(self) -> tuple[tuple[str, str], ...]:
        """The pairs of tokens that are merged, in the order of their precedence."""
        merges = self.model.get("merges") or ()
        pairs = (merge.split(" ", 1) if isinstance(merge, str) else merge for merge in merges)
        return tuple((first, second) for first, second in pairs)

    def merged(self, first: str, second: str) -> str:
        """Return the token that a merge makes."""
        return first + second.removeprefix(self._prefix)

    @cached_property
    def _parts(self) -> dict[str, frozenset[str]]:
        return {}

    @cached_property
    def _ways(self) -> dict[str, list[tuple[str, str]]]:
        """The merges that make each token."""
        ways = defaultdict(list)
        for first, second in self.merges:
            ways[self.merged(first, second)].append((first, second))
        return dict(ways)

    @cached_property
    def _ranks(self) -> dict[tuple[str, str], int]:
        return {pair: rank for rank, pair in reversed(list(enumerate(self.merges)))}

    def _merged(self, token: str) -> set[str]:
        """Return all tokens on the way from a token's characters to it, as if it stood alone."""
        symbols = self._letters(token)
        seen = {symbol for symbol in symbols if symbol in self.ids}
        while len(symbols) > 1:
            ranked = (
                (self._ranks[pair], at)
                for at, pair in enumerate(pairwise(symbols))
                if pair in self._ranks
            )
            best = min(ranked, default=None)
            if best is None:
                break
            at = best[1]
            symbols[at : at + 2] = [self.merged(*symbols[at : at + 2])]
            seen.add(symbols[at])
        if symbols == [token]:
            return seen
        first, second = self._ways[token][0]  # the merges of a text around it may make it
        return {first, second, *self.parts(first), *self.parts(second)}


@final
class UnigramSelection(TokenSelection):
    """Tokens with probabilities. The likeliest split is taken."""

    def alphabet(self) -> Iterator[str]:
        """Yield the bytes; or the characters, and tokens with characters that stand in no other."""
        if (unknown := self.model.get("unk_id")) is not None:
            yield self.pieces[unknown]
        letters = {piece for piece in self.pieces if len(piece) == 1}
        yield from self._or_bytes(
            piece for piece in self.pieces if len(piece) == 1 or not letters.issuperset(piece)
        )


@final
class WordPieceSelection(TokenSelection):
    """Tokens. The longest token is taken at each place of a word."""

    def alphabet(self) -> Iterator[str]:
        """Yield the characters at a word's beginning and within it, and tokens that lack theirs."""
        yield self.model["unk_token"]
        known = self.ids.keys()
        for piece in self.pieces:
            letters = self._letters(piece)
            if len(letters) == 1 or not known >= set(letters):
                yield piece


SELECTIONS: Mapping[str, type[TokenSelection]] = {
    "BPE": BpeSelection,
    "Unigram": UnigramSelection,
    "WordPiece": WordPieceSelection,
}
"""Kinds of tokenizers by the type in a `tokenizer.json`."""


# -------------------------------------------------------------------------------- the smaller files


def cut_document(selection: TokenSelection, numbers: Mapping[int, int]) -> dict[str, Any]:
    """Return a `tokenizer.json` with the tokens that have a new number in `numbers`."""
    document = dict(selection.document)
    document["model"] = _cut_model(selection, numbers)
    document["added_tokens"] = [
        {**token, "id": numbers[token["id"]]} for token in document.get("added_tokens") or []
    ]
    if document.get("post_processor") is not None:
        document["post_processor"] = _renumbered_step(document["post_processor"], numbers)
    if (padding := document.get("padding")) is not None:
        document["padding"] = {**padding, "pad_id": numbers.get(padding.get("pad_id"), 0)}
    return document


def _cut_model(selection: TokenSelection, numbers: Mapping[int, int]) -> dict[str, Any]:
    model, ids = dict(selection.model), selection.ids
    if isinstance(model["vocab"], list):
        model["vocab"] = [entry for n, entry in enumerate(model["vocab"]) if n in numbers]
    else:
        kept = {token: numbers[n] for token, n in model["vocab"].items() if n in numbers}
        model["vocab"] = dict(sorted(kept.items(), key=lambda item: item[1]))
    if (unknown := model.get("unk_id")) is not None:
        model["unk_id"] = numbers[unknown]
    if isinstance(selection, BpeSelection):
        stay = {token for token, number in ids.items() if number in numbers}
        listed = model.get("merges") or []
        model["merges"] = [
            entry
            for entry, pair in zip(listed, selection.merges, strict=True)
            if stay.issuperset((*pair, selection.merged(*pair)))
        ]
    return model


def _renumbered_step(step: Mapping[str, Any], numbers: Mapping[int, int]) -> dict[str, Any]:
    """Return a post-processor with the new numbers of its special tokens."""
    step = dict(step)
    if "processors" in step:
        step["processors"] = [_renumbered_step(each, numbers) for each in step["processors"]]
    ends = {name: step[name] for name in ("sep", "cls") if isinstance(step.get(name), list)}
    step |= {name: [token, numbers[number]] for name, (token, number) in ends.items()}
    if isinstance(tokens := step.get("special_tokens"), Mapping):
        step["special_tokens"] = {
            name: {**token, "ids": [numbers[n] for n in token["ids"]]}
            for name, token in tokens.items()
        }
    return step


def step_ids(step: Mapping[str, Any] | None) -> Iterator[int]:
    """Yield the numbers of tokens that a post-processor puts around texts."""
    if step is None:
        return
    for each in step.get("processors", ()):
        yield from step_ids(each)
    yield from (step[name][1] for name in ("sep", "cls") if isinstance(step.get(name), list))
    if isinstance(tokens := step.get("special_tokens"), Mapping):
        yield from (number for token in tokens.values() for number in token["ids"])


# --------------------------------------------------------------------------- numbers in settings

_NAMED = ("_token_id", "_token_ids", "_token_index")
"""Endings of settings that name tokens by their numbers."""
_LISTS = ("suppress_tokens", "begin_suppress_tokens", "bad_words_ids", "stop_words_ids")
"""Settings with lists of numbers, or of lists; tokens that are gone leave them."""


def named_ids(settings: Mapping[str, Any]) -> Iterator[int]:
    """Yield the numbers of tokens that a configuration names, but for suppressed ones."""
    for key, value in settings.items():
        if isinstance(value, Mapping):
            yield from named_ids(value)
        elif key.endswith(_NAMED):
            yield from (n for n in (value if isinstance(value, list) else [value])
                        if type(n) is int)  # fmt: skip
        elif key == "forced_decoder_ids":
            yield from (pair[1] for pair in value or () if type(pair[1]) is int)


def renumbered(settings: Mapping[str, Any], numbers: Mapping[int, int]) -> dict[str, Any]:
    """Return a configuration, of a model or of generation, with the tokens' new numbers."""
    return {key: _renumbered(key, value, numbers) for key, value in settings.items()}


def _renumbered(key: str, value: Any, numbers: Mapping[int, int]) -> Any:
    if isinstance(value, Mapping):
        return renumbered(value, numbers)
    if not isinstance(value, list):
        return _renumbered_id(value, numbers) if key.endswith(_NAMED) else value
    if key.endswith(_NAMED):
        return [new for n in value if (new := _renumbered_id(n, numbers)) is not None]
    if key == "forced_decoder_ids":
        return [[place, numbers.get(n, n) if n is not None else n] for place, n in value]
    if key == "sequence_bias":
        kept = ((_still_there([tokens], numbers), bias) for tokens, bias in value)
        return [[tokens[0], bias] for tokens, bias in kept if tokens]
    return _still_there(value, numbers) if key in _LISTS else value


def _renumbered_id(number: Any, numbers: Mapping[int, int]) -> Any:
    """Return a token's new number; None for a row without a token; negative numbers stay."""
    return numbers.get(number) if type(number) is int and number >= 0 else number


def _still_there(entries: list[Any], numbers: Mapping[int, int]) -> list[Any]:
    kept: list[Any] = []
    for entry in entries:
        if isinstance(entry, list):
            if all(number in numbers for number in entry):
                kept.append([numbers[number] for number in entry])
        elif entry in numbers:
            kept.append(numbers[entry])
    return kept
