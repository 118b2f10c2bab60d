"""A context and its continuation as tokens, cut where lm-eval cuts them.

Blanks at the end of the context move to the continuation. Both are encoded as one text, and the
tokens after the context's own tokens belong to the continuation. The tokenizer adds its own special
tokens, mostly a `<s>` at the beginning. An empty context is that token, or the end token. A text
that is longer than the model's positions loses its beginning.
"""

import hashlib
import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, final

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from gptailor.checkpoint.files import is_gguf, stamp
from gptailor.checkpoint.folder import tokenizer_files
from gptailor.checkpoint.models import Opened
from gptailor.checkpoint.tokenizer_settings import TokenizerFiles, content_of, files_with_code
from gptailor.checkpoint.write.output_file import temporary_folder
from gptailor.evaluation.forward.requests import Request
from gptailor.evaluation.gguf_tokenizer import tokenizer_from_gguf
from gptailor.plan.faults import TailorError
from gptailor.prepare import Prepared
from gptailor.program.sources import output_tokenizer

Tokens = tuple[int, ...]


@final
@dataclass(frozen=True)
class Prompt:
    """A context to be continued by at most `most` tokens, up to the first stop."""

    tokens: Tokens
    most: int
    stops: tuple[str, ...] = ()


@final
class EncodingError(Exception):
    """A text without tokens to predict or without tokens before them, or too many; and a remedy."""

    def __init__(self, message: str, help: str = "") -> None:
        super().__init__(message)
        self.help = help


@final
@dataclass(frozen=True)
class TokenEncoder:
    """The encoder of texts for models with this number of positions (`None`: no limit)."""

    tokenizer: PreTrainedTokenizerBase
    positions: int | None = None

    def request(self, context: str, continuation: str) -> Request:
        """Return the continuation's tokens, to be predicted from the context.

        Raises EncodingError.
        """
        before, after = self._pair(context, continuation)
        if not after:
            raise EncodingError("the continuation has no tokens of its own")
        longest = len(after) if self.positions is None else self.positions
        if len(after) > longest:
            message = f"the answer has {len(after)} tokens, more than the model's {longest}"
            raise EncodingError(message, "shorten or remove the row")
        tokens = before + after
        tokens = tokens if self.positions is None else tokens[-(self.positions + 1) :]
        return Request(tokens, len(tokens) - len(after))

    def prompt(self, context: str) -> Tokens:
        """Return the tokens of a text that is to be continued. Raises EncodingError."""
        return self.encode(context) or (self._prefix(),)

    def encode(self, text: str) -> Tokens:
        """Return the tokens of a text with the special tokens that the tokenizer adds."""
        mark = self._prefix_text
        return self._tokens(text, special=not (mark and text.startswith(mark)))

    def plain(self, text: str) -> Tokens:
        """Return the tokens of a text without special tokens."""
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
        number = end if start is None else start
        return None if number is None else int(number)

    @cached_property
    def _prefix_text(self) -> str:
        return "" if self.prefix is None else str(self.tokenizer.decode([self.prefix]))

    def _prefix(self) -> int:
        if self.prefix is None:
            words = "the context is empty, but the tokenizer has no token that begins a text"
            raise EncodingError(words)
        return self.prefix

    def _pair(self, context: str, continuation: str) -> tuple[Tokens, Tokens]:
        if context:
            bare = context.rstrip()
            tokens = self.encode(context + continuation)
            before = self.encode(bare)
            if before:
                return before, tokens[len(before) :]
            return (self._prefix(),), tokens
        after, start = self.plain(continuation), self._prefix()
        return (after[:1], after[1:]) if after[:1] == (start,) else ((start,), after)

    def _tokens(self, text: str, special: bool) -> Tokens:
        encoded = self.tokenizer.encode(text, add_special_tokens=special, verbose=False)
        return tuple(int(token) for token in encoded)


def tokenizer_model(prepared: Prepared) -> Opened:
    """Return the model that gives the output its tokenizer."""
    return output_tokenizer(prepared.plan, prepared.models)


def tokenizer_digest(model: Opened) -> str:
    """Return a digest of the tokenizer's way to read texts, equal for the same way."""
    return hashlib.blake2b(repr(sorted(_tokenizer_parts(model).items())).encode()).hexdigest()


def differing_parts(a: Opened, b: Opened) -> list[str]:
    """Return the names of the parts in which the tokenizers of two models differ."""
    parts, other_parts = _tokenizer_parts(a), _tokenizer_parts(b)
    return sorted(
        part for part in parts.keys() | other_parts if parts.get(part) != other_parts.get(part)
    )


def _tokenizer_parts(model: Opened) -> Mapping[str, str]:
    """Return a digest of each part of the tokenizer that transformers loads of the model.

    A folder that a trainer saved has other files than its base and reads texts alike. So
    bookkeeping (author, class, padding) and the chat template don't count. A tokenizer that can't
    be taken apart has one part, its files.
    """
    files = _files_digest(model)
    if files not in _KNOWN_PARTS:
        with suppress(Exception):  # encoding reports the error; some have no backend
            loaded: Any = tokenizer_of(model)
            _KNOWN_PARTS[files] = _parts(loaded, json.loads(loaded.backend_tokenizer.to_str()))
        _KNOWN_PARTS.setdefault(files, {"files": files})
    return _KNOWN_PARTS[files]


_KNOWN_PARTS: dict[str, Mapping[str, str]] = {}
"""The parts of loaded tokenizers, by the digest of their files."""
_BOOKKEEPING = ("version", "truncation", "padding")
"""Keys of a `tokenizer.json` that don't affect encoding."""
_SPECIAL = ("bos_token", "eos_token", "unk_token", "cls_token", "sep_token", "mask_token")
"""Special tokens without the padding token: no text has it, and trainers set it."""


def _parts(tokenizer: PreTrainedTokenizerBase, document: Mapping[str, Any]) -> dict[str, str]:
    parts = {key: value for key, value in document.items() if key not in _BOOKKEEPING}
    settings = parts.pop("model", None) or {}
    parts |= {"vocabulary": settings.pop("vocab", None), "merges": settings.pop("merges", None)}
    added = sorted(parts.get("added_tokens") or (), key=lambda entry: entry["id"])
    flags = [sorted((k, v) for k, v in entry.items() if v is not False) for entry in added]
    special = {name: getattr(tokenizer, name, None) for name in _SPECIAL}
    around = tokenizer.encode("", add_special_tokens=True, verbose=False)
    parts |= {
        "model": settings,
        "added_tokens": flags,
        "special tokens": {**special, "around a text": around},
        "clean-up of blanks": bool(getattr(tokenizer, "clean_up_tokenization_spaces", False)),
    }
    return {
        name.replace("_", " "): hashlib.blake2b(
            json.dumps(value, sort_keys=True, default=str).encode()
        ).hexdigest()
        for name, value in parts.items()
    }


def _files_digest(model: Opened) -> str:
    """Return a digest of the tokenizer's files."""
    checkpoint = model.checkpoint
    files = {path.name: path for path in tokenizer_files(checkpoint) or checkpoint.files[:1]}
    if any(map(is_gguf, files.values())):
        file = checkpoint.files[0].resolve()
        return f"{file} {stamp(file.stat())}"
    digest = hashlib.blake2b()
    made = model.made_tokenizer
    for name, part in (files if made is None else made.files).items():
        content = content_of(part)
        digest.update(f"{name}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()


def tokenizer_of(model: Opened) -> PreTrainedTokenizerBase:
    """Load the model's tokenizer. Raises TailorError if no tokenizer can be loaded."""
    checkpoint = model.checkpoint
    if (made := model.made_tokenizer) is not None:
        return _load_files(made.files, checkpoint.folder)
    if tokenizer_files(checkpoint):
        return _load(checkpoint.folder, checkpoint.folder)
    if not is_gguf(checkpoint.files[0]):
        raise TailorError(f"'{checkpoint.folder}' has no tokenizer, which texts need")
    return _load_files(tokenizer_from_gguf(checkpoint.files[0]), checkpoint.files[0])


def _load_files(files: TokenizerFiles, shown: Path) -> PreTrainedTokenizerBase:
    """Load the tokenizer of these files from a temporary folder."""
    with temporary_folder(shown) as folder:
        for name, content in files.items():
            path = folder / name
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(content_of(content))
        return _load(folder, shown)


def _load(folder: Path, shown: Path) -> PreTrainedTokenizerBase:
    try:
        loaded = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        loaded.encode("")  # invalid settings show in use only
    except Exception as error:  # transformers raises anything for a file that isn't a tokenizer
        path = folder / "tokenizer_config.json"
        if path.is_file() and any(files_with_code({path.name: path})):
            needs = f"the tokenizer of '{shown}' needs code of its own ('auto_map' in {path.name})"
            message = f"{needs}, which gptailor never runs; save it as 'tokenizer.json'"
            raise TailorError(message) from error
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise TailorError(f"the tokenizer of '{shown}' can't be loaded: {first}") from error
    assert isinstance(loaded, PreTrainedTokenizerBase)
    return loaded
