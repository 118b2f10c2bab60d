"""Which token has which number: vocabularies of tokenizers, read without a tokenizer library."""

import filecmp
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from gptailor.checkpoint.error import CheckpointError, reason

FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "spiece.model")
"""Where a vocabulary may be, the first that is there counts."""

Relation = Literal["same", "extension", "part", "other"]


@dataclass(frozen=True)
class Vocabulary:
    """A tokenizer's tokens and their numbers."""

    ids: Mapping[str, int]

    @cached_property
    def tokens(self) -> dict[int, str]:
        """The token of each number."""
        return {number: token for token, number in self.ids.items()}

    @property
    def size(self) -> int:
        """One more than the largest number."""
        return max(self.ids.values(), default=-1) + 1


def relation(ours: Vocabulary, theirs: Vocabulary) -> Relation:
    """What their vocabulary is to ours: the same, one with more tokens or with fewer, another."""
    if ours.ids == theirs.ids:
        return "same"
    shared = ours.ids.keys() & theirs.ids.keys()
    if any(ours.ids[token] != theirs.ids[token] for token in shared):
        return "other"
    if len(shared) == len(ours.ids):
        return "extension"
    return "part" if len(shared) == len(theirs.ids) else "other"


def read_vocabulary(folder: Path) -> Vocabulary | None:
    """The vocabulary of a folder's tokenizer; None where there is none that can be read.

    Raises CheckpointError for a file that is there and is broken.
    """
    for name in FILES:
        path = folder / name
        if path.is_file():
            try:
                ids = _pieces(path) if path.suffix == ".model" else _json(path)
            except OSError as error:
                message = f"cannot be read: {reason(error)}"
                raise CheckpointError("C601", message, path) from error
            except (ValueError, RecursionError, IndexError) as error:
                raise CheckpointError("C601", f"is no tokenizer: {error}", path) from error
            return Vocabulary(ids | _added(folder)) if ids else None
    return None


def same_files(a: Path, b: Path) -> bool:
    """Whether two folders have the same tokenizer by their bytes; a cheap first look."""
    for name in FILES:
        one, other = a / name, b / name
        if one.is_file() and other.is_file():
            return filecmp.cmp(one, other, shallow=False)
    return False


def _json(path: Path) -> dict[str, int]:
    """`tokenizer.json`'s model and added tokens, or a plain `vocab.json`."""
    document = json.loads(path.read_bytes())
    if not isinstance(document, dict):
        raise ValueError("not a JSON object")  # noqa: TRY004 (of a file's content)
    if path.name == "vocab.json":
        return _checked(document)
    model = document.get("model") or {}
    vocabulary = model.get("vocab") or {}
    if isinstance(vocabulary, list):  # Unigram: pairs of a token and its score
        vocabulary = {pair[0]: number for number, pair in enumerate(vocabulary)}
    added = {entry["content"]: entry["id"] for entry in document.get("added_tokens") or ()}
    return _checked({**vocabulary, **added})


def _checked(ids: dict[Any, Any]) -> dict[str, int]:
    for token, number in ids.items():
        if not isinstance(token, str) or not isinstance(number, int) or number < 0:
            raise ValueError(f"the token {token!r} has the number {number!r}")
    return ids


def _added(folder: Path) -> dict[str, int]:
    """Tokens of `added_tokens.json`, which older tokenizers have beside their vocabulary."""
    path = folder / "added_tokens.json"
    return _checked(json.loads(path.read_bytes())) if path.is_file() else {}


# ----------------------------------------------------------------------------------- sentencepiece


def _pieces(path: Path) -> dict[str, int]:
    """The pieces of a SentencePiece model: field 1 of a protobuf repeats, each with a field 1."""
    raw = path.read_bytes()
    pieces = [_text(message) for number, message in _fields(raw) if number == 1]
    return {piece: number for number, piece in enumerate(pieces)}


def _text(message: bytes) -> str:
    return next((value.decode("utf-8") for number, value in _fields(message) if number == 1), "")


def _fields(raw: bytes) -> Iterator[tuple[int, bytes]]:
    """The length-delimited fields of a protobuf message; other kinds are passed over."""
    at = 0
    while at < len(raw):
        key, at = _varint(raw, at)
        kind = key & 7
        if kind == 2:
            length, at = _varint(raw, at)
            if at + length > len(raw):
                raise ValueError(f"a field ends beyond the file, at byte {at}")
            yield key >> 3, raw[at : at + length]
            at += length
        elif kind == 0:
            _, at = _varint(raw, at)
        elif kind in (1, 5):
            at += 8 if kind == 1 else 4
        else:
            raise ValueError(f"no protobuf at byte {at}")


def _varint(raw: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = raw[at]
        value |= (byte & 127) << shift
        at += 1
        if byte < 128:
            return value, at
        shift += 7
        if shift > 63:
            raise ValueError(f"no number at byte {at}")
