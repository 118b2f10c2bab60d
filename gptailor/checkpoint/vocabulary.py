"""Numbers of tokens: vocabularies of tokenizers, read without a tokenizer library."""

import filecmp
import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, final

from gptailor.checkpoint.files import CheckpointError, quoted, reading
from gptailor.plan.faults import listed

_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "spiece.model")
"""Files that may have a vocabulary; the first existing one counts."""


@final
@dataclass(frozen=True)
class Vocabulary:
    """A tokenizer's tokens and their numbers.

    `splitting` has a digest of each part of the tokenizer that splits a text into these tokens, by
    the part's name. It is empty without a `tokenizer.json`. `kind` is the class that makes
    the parts but for the merges; empty where the file does.
    """

    ids: Mapping[str, int]
    splitting: Mapping[str, str] = field(default_factory=dict)
    kind: str = ""

    @cached_property
    def tokens(self) -> dict[int, str]:
        """Return the token of each number."""
        return {number: token for token, number in self.ids.items()}


def relation(base: Vocabulary, other: Vocabulary) -> Literal["same", "extension", "part", "other"]:
    """Return the relation of their vocabulary to ours: the same, more tokens, fewer, another."""
    if base.ids == other.ids:
        return "same"
    if base.ids.items() <= other.ids.items():
        return "extension"
    return "part" if other.ids.items() <= base.ids.items() else "other"


def differing_splits(base: Vocabulary, other: Vocabulary) -> list[str]:
    """Return the parts in which two tokenizers differ that split texts; [] where one is unknown."""
    shared = base.splitting.keys() & other.splitting.keys()
    if base.kind and base.kind == other.kind:  # transformers reads no other part of their files
        shared &= {"merges"}
    return sorted(part for part in shared if base.splitting[part] != other.splitting[part])


def counted(tokens: Sequence[str]) -> str:
    """Return the number of tokens in words: `2 tokens`."""
    return f"{len(tokens):,} token{'s' if len(tokens) > 1 else ''}"


def shown_tokens(tokens: Sequence[str]) -> str:
    """Return the first three tokens, quoted, for a message."""
    return listed([quoted(token) for token in tokens[:3]] + ["…"] * (len(tokens) > 3))


def read_vocabulary(folder: Path) -> Vocabulary | None:
    """Return the vocabulary of a folder's tokenizer; None without a readable one.

    Raises CheckpointError for a broken file.
    """
    path = _first(folder)
    splitting: dict[str, str] = {}

    def tokenizer(raw: bytes) -> dict[Any, Any]:
        document = _object(raw)
        splitting.update(_splitting(document))
        vocabulary = (document.get("model") or {}).get("vocab") or {}
        if isinstance(vocabulary, list):  # Unigram: pairs of a token and its score
            vocabulary = {pair[0]: number for number, pair in enumerate(vocabulary)}
        added = {entry["content"]: entry["id"] for entry in document.get("added_tokens") or ()}
        return {**vocabulary, **added}

    readers = {"tokenizer.json": tokenizer, "vocab.json": _object}
    ids = _read(path, readers.get(path.name, _pieces)) if path else {}
    return Vocabulary(_added(folder) | ids, splitting, _kind(folder)) if ids else None


def same_files(a: Path, b: Path) -> bool:
    """Return whether two folders have the same tokens, by the bytes of their first file.

    This is a cheap look. Raises CheckpointError for broken files of added tokens.
    """
    first, second = _first(a), _first(b)
    if first is None or second is None or first.name != second.name:
        return False
    return a == b or (filecmp.cmp(first, second, shallow=False) and _added(a) == _added(b))


def _first(folder: Path) -> Path | None:
    return next((folder / name for name in _FILES if (folder / name).is_file()), None)


def _read(path: Path, ids_of: Callable[[bytes], dict[Any, Any]]) -> dict[str, int]:
    """Return a file's tokens; a file without a valid meaning is a CheckpointError."""
    with reading(path, "C601"):
        raw = path.read_bytes()
    try:
        ids = ids_of(raw)
        for token, number in ids.items():
            if not isinstance(token, str) or type(number) is not int or number < 0:
                raise ValueError(f"the token {token!r} has the number {number!r}")  # noqa: TRY301
    except RecursionError as error:
        raise CheckpointError("C601", "invalid tokenizer: nested too deeply", path) from error
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        why = error if isinstance(error, ValueError) else "unexpected entries"
        raise CheckpointError("C601", f"invalid tokenizer: {why}", path) from error
    return ids


def _splitting(document: Mapping[str, Any]) -> dict[str, str]:
    """Return a digest of each part of a `tokenizer.json` that splits texts, in one form.

    transformers and tokenizers write equal parts differently from version to version: merges as
    pairs or as words, a part alone or in a sequence, SentencePiece's blanks as two normalizers or
    as `Metaspace`. Padding, truncation, decoder and post-processor don't split texts.
    """
    normalizers = _steps(document.get("normalizer"), "normalizers")
    before = _steps(document.get("pre_tokenizer"), "pretokenizers")
    if not before and normalizers[-2:] == _BLANKS:
        normalizers, before = normalizers[:-2], [_METASPACE]
    merges = (document.get("model") or {}).get("merges") or []
    pairs = [merge.split(" ", 1) if isinstance(merge, str) else merge for merge in merges]
    parts = {"merges": pairs, "normalizers": normalizers, "pre-tokenizers": before}
    return {
        name: hashlib.blake2b(json.dumps(part, sort_keys=True).encode()).hexdigest()
        for name, part in parts.items()
    }


_BLANKS = [
    {"type": "Prepend", "prepend": "▁"},
    {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
]
"""The blanks of SentencePiece as normalizers."""
_METASPACE = {"type": "Metaspace", "replacement": "▁", "split": False}
"""The same as a pre-tokenizer, of whichever scheme puts a blank before a text."""


def _steps(part: Any, inner: str) -> list[Any]:
    """Return the steps of a normalizer or pre-tokenizer, without steps that split no text."""
    if part is None:
        return []
    if part["type"] == "Sequence":
        return [step for each in part[inner] for step in _steps(each, inner)]
    step = {key: value for key, value in part.items() if key != "trim_offsets"}
    if step["type"] == "ByteLevel":
        step.setdefault("use_regex", True)
    if step["type"] == "Metaspace" and step.get("prepend_scheme") in {"first", "always"}:
        del step["prepend_scheme"]
    return [step]


def _object(raw: bytes) -> dict[str, Any]:
    document = json.loads(raw)
    if not isinstance(document, dict):
        raise ValueError("not a JSON object")  # noqa: TRY004 (of a file's content)
    return document


def _added(folder: Path) -> dict[str, int]:
    """Return the tokens outside of the vocabulary; tokens in both keep the vocabulary's number."""
    ids: dict[str, int] = {}
    for name, ids_of in (("added_tokens.json", _object), ("tokenizer_config.json", _decoder)):
        if (folder / name).is_file():
            ids |= _read(folder / name, ids_of)
    return ids


_OF_THE_FILE = {"PreTrainedTokenizer", "TokenizersBackend"}
"""Classes of transformers that take all parts of a `tokenizer.json` as they are."""


def _kind(folder: Path) -> str:
    path = folder / "tokenizer_config.json"
    name = _object(path.read_bytes()).get("tokenizer_class") if path.is_file() else None
    kind = name.removesuffix("Fast") if isinstance(name, str) else ""
    return "" if kind in _OF_THE_FILE else kind


def _decoder(raw: bytes) -> dict[Any, Any]:
    """Return the tokens of a `tokenizer_config.json`'s `added_tokens_decoder`."""
    entries = _object(raw).get("added_tokens_decoder") or {}
    return {entry["content"]: int(number) for number, entry in entries.items()}


def _pieces(raw: bytes) -> dict[str, int]:
    """Return the pieces of a SentencePiece model: each field 1 of a field 1.

    A tiktoken file has no pieces.
    """
    if _TIKTOKEN.match(raw):
        return {}
    if raw.startswith(b"version https://git-lfs"):
        raise ValueError("this is a Git LFS pointer; fetch the file with `git lfs pull`")
    pieces = (piece for number, piece in _fields(raw) if number == 1)
    texts = (next((text for number, text in _fields(each) if number == 1), b"") for each in pieces)
    return {text.decode("utf-8"): number for number, text in enumerate(texts)}


_TIKTOKEN = re.compile(rb"[A-Za-z0-9+/]+=* \d+\r?\n")
"""The first line of a tiktoken file: a token in base 64, and its number."""


def _fields(raw: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield the length-delimited fields of a protobuf message; other kinds are skipped."""
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
            raise ValueError(f"expected protobuf at byte {at}")


def _varint(raw: bytes, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 64, 7):
        if at >= len(raw):
            raise ValueError("it is truncated")
        byte, at = raw[at], at + 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
    raise ValueError(f"expected a number at byte {at}")
