"""The tokenizer that has the tokens of several models, and a row for each: `tokenizer union`.

It is the base's, which keeps its tokens' numbers, with the other models' tokens added: first the
tokens of their vocabularies proper, then the tokens that they have added, model by model. A token
beyond another model's embedding isn't one of that model's.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, final

from gptailor.checkpoint.files import CheckpointError, json_content, parse_object
from gptailor.checkpoint.folder import Checkpoint, tokenizer_files
from gptailor.checkpoint.tensor import Mean, RowRange, TensorInfo, row_ranges
from gptailor.checkpoint.tokenizer_settings import TokenizerFiles
from gptailor.checkpoint.vocabulary import Vocabulary, read_vocabulary

_MAIN, _SETTINGS, _ADDED = "tokenizer.json", "tokenizer_config.json", "added_tokens.json"
_PLAIN = ("tokenizer.model", "vocab.json", "spiece.model", "sentencepiece.bpe.model", "vocab.txt")
"""A vocabulary proper, for readers that don't know `tokenizer.json`."""
_FLAGS = ("lstrip", "normalized", "rstrip", "single_word", "special")

AddedToken = dict[str, Any]
"""An added token as `tokenizer.json` has it: its number, its text, its rules for matching."""


@final
@dataclass(frozen=True)
class UnitedModel:
    """A model of a union, and the number of tokens that its embedding has rows for."""

    name: str
    checkpoint: Checkpoint
    rows: int

    @cached_property
    def ids(self) -> Mapping[str, int]:
        """Return the numbers of all tokens. Raises CheckpointError without a tokenizer (C603)."""
        vocabulary = read_vocabulary(self.checkpoint.folder)
        if vocabulary is None:
            message = f"'{self.name}' has no readable tokenizer, which a union needs"
            raise CheckpointError("C603", message, self.checkpoint.folder)
        return vocabulary.ids

    def row(self, token: str | None) -> int | None:
        """Return the number of a token's row, or None."""
        number = None if token is None else self.ids.get(token)
        return number if number is not None and number < self.rows else None

    @cached_property
    def files(self) -> dict[str, Path]:
        """Return the files of its tokenizer, by their path within the folder."""
        folder = self.checkpoint.folder
        return {
            path.relative_to(folder).as_posix(): path for path in tokenizer_files(self.checkpoint)
        }

    @cached_property
    def added(self) -> dict[str, AddedToken]:
        """Return the tokens outside of its vocabulary proper, by their text, in their order."""
        tokens = {token: _added(n, {"content": token}) for token, n in self.said(_ADDED).items()}
        for number, entry in (self.said(_SETTINGS).get("added_tokens_decoder") or {}).items():
            tokens[entry["content"]] = _added(int(number), entry)
        for entry in self.said(_MAIN).get("added_tokens") or ():
            tokens[entry["content"]] = _added(entry["id"], entry)
        return dict(sorted(tokens.items(), key=lambda item: int(item[1]["id"])))

    def said(self, name: str) -> dict[str, Any]:
        """Return the JSON of a file of the tokenizer; empty if the file is missing."""
        if name not in self.files:
            return {}
        return parse_object(self.files[name].read_bytes(), self.files[name], "C601", duplicate=None)


def _added(number: int, entry: Mapping[str, Any]) -> AddedToken:
    """Return an added token; missing flags have transformers' defaults."""
    flags = {name: bool(entry.get(name, False)) for name in _FLAGS}
    flags["normalized"] = bool(entry.get("normalized", not flags["special"]))
    return {"id": number, "content": entry["content"], **flags}


@final
@dataclass(frozen=True)
class TokenUnion:
    """The union of some models' tokenizers, the base's first.

    Its properties raise CheckpointError (C601, C603) where a model has no readable tokenizer, or
    the base's has no `tokenizer.json`.
    """

    models: tuple[UnitedModel, ...]

    @cached_property
    def strangers(self) -> dict[str, list[str]]:
        """Return by model the tokens of its vocabulary proper that the models before it lack."""
        base, *others = self.models
        seen = {token for model in self.models for token in model.added} | base.ids.keys()
        strangers: dict[str, list[str]] = {}
        for model in others:
            ordered = sorted(model.ids, key=model.ids.__getitem__)
            new = [t for t in ordered if t not in seen and model.row(t) is not None]
            seen.update(new)
            strangers |= {model.name: new} if new else {}
        return strangers

    @cached_property
    def added(self) -> tuple[AddedToken, ...]:
        """Return the tokens that the base's tokenizer gets, by number.

        A token of the base's that is an added one elsewhere becomes one, and keeps its number.
        """
        base, *others = self.models
        free = max(base.ids.values(), default=-1) + 1
        gained: dict[str, AddedToken] = {}
        for token in (token for tokens in self.strangers.values() for token in tokens):
            gained[token] = _added(free, {"content": token})
            free += 1
        for token, entry in (item for model in others for item in model.added.items()):
            has_row = any(model.row(token) is not None for model in others if token in model.added)
            if has_row and token not in base.added and token not in gained:
                gained[token] = {**entry, "id": base.ids.get(token, free)}
                free += token not in base.ids
        return tuple(sorted(gained.values(), key=lambda entry: int(entry["id"])))

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """Return all tokens and their numbers."""
        added = {entry["content"]: int(entry["id"]) for entry in self.added}
        return Vocabulary({**self.models[0].ids, **added})

    @cached_property
    def size(self) -> int:
        """Return the number of rows: one up to the largest token number."""
        return max(self.vocabulary.ids.values()) + 1

    @cached_property
    def files(self) -> TokenizerFiles:
        """Return the files of the base's tokenizer with the tokens that it gets."""
        base = self.models[0]
        files: dict[str, bytes | Path] = dict(base.files)
        if _MAIN not in files:
            message = f"the tokenizer of '{base.name}' has no {_MAIN}, which a union needs"
            help_ = "save the tokenizer with transformers, which writes one"
            raise CheckpointError("C603", message, base.checkpoint.folder, help_)
        if not self.added:
            return files
        document, settings = base.said(_MAIN), base.said(_SETTINGS)
        existing = document.get("added_tokens") or []
        document["added_tokens"] = sorted([*existing, *self.added], key=lambda e: int(e["id"]))
        documents = {_MAIN: document}
        decoder = settings.get("added_tokens_decoder")
        if decoder is not None:
            new = {str(e["id"]): {k: e[k] for k in ("content", *_FLAGS)} for e in self.added}
            merged = {**decoder, **new}
            settings["added_tokens_decoder"] = {n: merged[n] for n in sorted(merged, key=int)}
            documents[_SETTINGS] = settings
        if _ADDED in files or (decoder is None and any(name in files for name in _PLAIN)):
            documents[_ADDED] = base.said(_ADDED) | {e["content"]: e["id"] for e in self.added}
        return files | {name: json_content(content) for name, content in documents.items()}


@final
@dataclass(frozen=True)
class UnionRows:
    """The rows of a union's tokens in one tensor of its models; a recipe takes some of the models.

    A token's row is the model's own if it has the token; else the base's, else the only one, else
    the mean: first among the models that the recipe takes, then, where all of them lack it, among
    all.
    """

    union: TokenUnion
    tensors: Mapping[str, TensorInfo]
    taken: frozenset[str]

    def of(self, name: str) -> TensorInfo:
        """Return a model's tensor with a row for each token of the union."""
        model = next(model for model in self.union.models if model.name == name)
        rows = []
        for number in range(self.union.size):
            own = model.row(self._token(number))
            rows.append(self._without[number] if own is None else (self.tensors[name], own))
        ranges = row_ranges(rows)
        complete = RowRange(self.tensors[name], 0, self.tensors[name].spec.shape[0])
        return complete.tensor if ranges == [complete] else complete.tensor.with_rows(ranges)

    @property
    def missing(self) -> list[int]:
        """Return the numbers of tokens that no model has a row for."""
        return [number for number in range(self.union.size) if number not in self._without]

    def _token(self, number: int) -> str | None:
        return self.union.vocabulary.tokens.get(number)

    @cached_property
    def _without(self) -> dict[int, tuple[TensorInfo, int]]:
        """Return for each number the row for a model without the token: tensor and number."""
        by_givers: dict[tuple[str, ...], list[int]] = {}
        for number in range(self.union.size):
            by_givers.setdefault(self._givers(number), []).append(number)
        sources: dict[int, tuple[TensorInfo, int]] = {}
        for names, numbers in by_givers.items():
            if len(names) == 1:
                sources |= {n: (self.tensors[names[0]], self._row(names[0], n)) for n in numbers}
            elif names:
                of = tuple(
                    tensor.with_rows([RowRange(tensor, self._row(name, n), 1) for n in numbers])
                    for name, tensor in ((name, self.tensors[name]) for name in names)
                )
                mean = replace(of[0], spec=replace(of[0].spec, dtype="F32"), form=Mean(of))
                sources |= {number: (mean, i) for i, number in enumerate(numbers)}
        return sources

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
