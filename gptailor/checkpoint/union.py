"""The tokenizer that has the tokens of several models, and a row for each: `tokenizer union`.

It is the base's, which keeps its tokens' numbers, with those of the other models added: first the
tokens of their vocabularies proper, then those that they have added to them, model by model. A
token beyond another model's embedding isn't one of that model's.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, final

from gptailor.checkpoint.chat_template import TokenizerFiles
from gptailor.checkpoint.files import CheckpointError, parse_object
from gptailor.checkpoint.folder import Checkpoint, tokenizer_files
from gptailor.checkpoint.tensor import Aligned, Mean, RowRange, TensorInfo
from gptailor.checkpoint.vocabulary import Vocabulary, read_vocabulary

_MAIN, _SETTINGS, _ADDED = "tokenizer.json", "tokenizer_config.json", "added_tokens.json"
_PLAIN = ("tokenizer.model", "vocab.json", "spiece.model", "sentencepiece.bpe.model", "vocab.txt")
"""A vocabulary proper, for readers that don't know `tokenizer.json`."""
_FLAGS = ("lstrip", "normalized", "rstrip", "single_word", "special")

AddedToken = dict[str, Any]
"""An added token as `tokenizer.json` has it: its number, its text, how it is found in texts."""


@final
@dataclass(frozen=True)
class UnitedModel:
    """A model of a union, and for how many tokens its embedding has rows."""

    name: str
    checkpoint: Checkpoint
    rows: int

    @cached_property
    def ids(self) -> Mapping[str, int]:
        """The numbers of all tokens. Raises CheckpointError without a tokenizer (C603)."""
        found = read_vocabulary(self.checkpoint.folder)
        if found is None:
            message = f"'{self.name}' has no tokenizer that can be read, and a union takes all"
            raise CheckpointError("C603", message, self.checkpoint.folder)
        return found.ids

    def row(self, token: str | None) -> int | None:
        """The number of a token's row; None if there is none."""
        number = None if token is None else self.ids.get(token)
        return number if number is not None and number < self.rows else None

    @cached_property
    def files(self) -> dict[str, Path]:
        """The files of its tokenizer, by their path within the folder."""
        folder = self.checkpoint.folder
        found = tokenizer_files(self.checkpoint)
        return {path.relative_to(folder).as_posix(): path for path in found}

    @cached_property
    def added(self) -> dict[str, AddedToken]:
        """The tokens that stand beside its vocabulary proper, by their text, in their order."""
        found = {token: _added(n, {"content": token}) for token, n in self.said(_ADDED).items()}
        for number, entry in (self.said(_SETTINGS).get("added_tokens_decoder") or {}).items():
            found[entry["content"]] = _added(int(number), entry)
        for entry in self.said(_MAIN).get("added_tokens") or ():
            found[entry["content"]] = _added(entry["id"], entry)
        return dict(sorted(found.items(), key=lambda one: int(one[1]["id"])))

    def said(self, name: str) -> dict[str, Any]:
        """What one of its tokenizer's files says; nothing if it isn't there."""
        if name not in self.files:
            return {}
        return parse_object(self.files[name].read_bytes(), self.files[name], "C601", duplicate=None)


def _added(number: int, said: Mapping[str, Any]) -> AddedToken:
    """An added token; what isn't said of it is as transformers has it."""
    flags = {name: bool(said.get(name, False)) for name in _FLAGS}
    flags["normalized"] = bool(said.get("normalized", not flags["special"]))
    return {"id": number, "content": said["content"], **flags}


@final
@dataclass(frozen=True)
class TokenUnion:
    """The union of some models' tokenizers, the base's first.

    What is asked of it raises CheckpointError (C601, C603) where a model has no tokenizer that can
    be read, or the base's has no `tokenizer.json`.
    """

    models: tuple[UnitedModel, ...]

    @cached_property
    def strangers(self) -> dict[str, list[str]]:
        """By model, the tokens of its vocabulary proper that the models before it lack."""
        base, *others = self.models
        seen = {token for model in self.models for token in model.added} | base.ids.keys()
        found: dict[str, list[str]] = {}
        for model in others:
            ordered = sorted(model.ids, key=model.ids.__getitem__)
            new = [t for t in ordered if t not in seen and model.row(t) is not None]
            seen.update(new)
            found |= {model.name: new} if new else {}
        return found

    @cached_property
    def added(self) -> tuple[AddedToken, ...]:
        """The tokens that the base's tokenizer gets, by number.

        A token of the base's that is an added one elsewhere becomes one, and keeps its number.
        """
        base, *others = self.models
        free = max(base.ids.values(), default=-1) + 1
        made: dict[str, AddedToken] = {}
        for token in (token for tokens in self.strangers.values() for token in tokens):
            made[token] = _added(free, {"content": token})
            free += 1
        for token, entry in (one for model in others for one in model.added.items()):
            there = any(model.row(token) is not None for model in others if token in model.added)
            if there and token not in base.added and token not in made:
                made[token] = {**entry, "id": base.ids.get(token, free)}
                free += token not in base.ids
        return tuple(sorted(made.values(), key=lambda entry: int(entry["id"])))

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """All tokens and their numbers."""
        added = {entry["content"]: int(entry["id"]) for entry in self.added}
        return Vocabulary({**self.models[0].ids, **added})

    @cached_property
    def size(self) -> int:
        """For how many tokens there are rows: up to the largest number."""
        return max(self.vocabulary.ids.values()) + 1

    @cached_property
    def files(self) -> TokenizerFiles:
        """The files of the base's tokenizer with the tokens that it gets."""
        base = self.models[0]
        files: dict[str, bytes | Path] = dict(base.files)
        if _MAIN not in files:
            message = f"the tokenizer of '{base.name}' has no {_MAIN}, to which tokens can be added"
            help_ = "transformers writes one: AutoTokenizer.from_pretrained(…).save_pretrained(…)"
            raise CheckpointError("C603", message, base.checkpoint.folder, help_)
        if not self.added:
            return files
        document, settings = base.said(_MAIN), base.said(_SETTINGS)
        known = document.get("added_tokens") or []
        document["added_tokens"] = sorted([*known, *self.added], key=lambda e: int(e["id"]))
        made = {_MAIN: document}
        decoder = settings.get("added_tokens_decoder")
        if decoder is not None:
            new = {str(e["id"]): {k: e[k] for k in ("content", *_FLAGS)} for e in self.added}
            merged = {**decoder, **new}
            settings["added_tokens_decoder"] = {n: merged[n] for n in sorted(merged, key=int)}
            made[_SETTINGS] = settings
        if _ADDED in files or (decoder is None and any(name in files for name in _PLAIN)):
            made[_ADDED] = base.said(_ADDED) | {e["content"]: e["id"] for e in self.added}
        for name, content in made.items():
            text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
            files[name] = text.encode()
        return files


@final
@dataclass(frozen=True)
class UnionRows:
    """The rows of a union's tokens in one tensor of its models, of which a recipe takes some.

    A model's own row where it has the token; else the base's, else the only one's, else the mean:
    first among those that the recipe takes, then, where none of them has it, among all.
    """

    union: TokenUnion
    tensors: Mapping[str, TensorInfo]
    taken: frozenset[str]

    def of(self, name: str) -> TensorInfo:
        """A model's tensor with a row for each token of the union."""
        model = next(model for model in self.union.models if model.name == name)
        pieces: list[RowRange] = []
        for number in range(self.union.size):
            own = model.row(self._token(number))
            found = self._without[number] if own is None else (self.tensors[name], own)
            assert found is not None, "a union's tokens have rows"
            tensor, row = found
            last = pieces[-1] if pieces else None
            if last is not None and last.tensor is tensor and last.first + last.count == row:
                pieces[-1] = replace(last, count=last.count + 1)
            else:
                pieces.append(RowRange(tensor, row, 1))
        whole = RowRange(self.tensors[name], 0, self.tensors[name].spec.shape[0])
        return whole.tensor if pieces == [whole] else _aligned(whole.tensor, pieces)

    @property
    def missing(self) -> list[int]:
        """The numbers of tokens that no model has a row for."""
        return [number for number, found in enumerate(self._without) if found is None]

    def _token(self, number: int) -> str | None:
        return self.union.vocabulary.tokens.get(number)

    @cached_property
    def _without(self) -> list[tuple[TensorInfo, int] | None]:
        """For each number the row of a model that lacks the token: a tensor, and where in it."""
        givers = [self._givers(number) for number in range(self.union.size)]
        meant: dict[tuple[str, ...], list[int]] = {}
        for number, names in enumerate(givers):
            if len(names) > 1:
                meant.setdefault(names, []).append(number)
        found: list[tuple[TensorInfo, int] | None] = [None] * len(givers)
        for names, numbers in meant.items():
            mean = self._mean(names, numbers)
            for i, number in enumerate(numbers):
                found[number] = mean, i
        for number, names in enumerate(givers):
            if len(names) == 1:
                found[number] = self.tensors[names[0]], self._row(names[0], number)
        return found

    def _givers(self, number: int) -> tuple[str, ...]:
        base, token = self.union.models[0], self._token(number)
        if token is None:  # a number that the base leaves out
            return (base.name,) if number < base.rows else ()
        having = [m.name for m in self.union.models if m.row(token) is not None]
        having = [name for name in having if name in self.tensors]
        names = [name for name in having if name in self.taken] or having
        return (base.name,) if base.name in names else tuple(names)

    def _row(self, name: str, number: int) -> int:
        model = next(model for model in self.union.models if model.name == name)
        row = model.row(self._token(number))
        return number if row is None else row

    def _mean(self, names: tuple[str, ...], numbers: list[int]) -> TensorInfo:
        of = tuple(
            _aligned(tensor, [RowRange(tensor, self._row(name, n), 1) for n in numbers])
            for name, tensor in ((name, self.tensors[name]) for name in names)
        )
        return replace(of[0], spec=replace(of[0].spec, dtype="F32"), form=Mean(of))


def _aligned(tensor: TensorInfo, pieces: list[RowRange]) -> TensorInfo:
    rows = sum(piece.count for piece in pieces)
    spec = replace(tensor.spec, shape=(rows, *tensor.spec.shape[1:]))
    return TensorInfo(spec, tensor.file, tensor.offset, Aligned(tuple(pieces)))
