"""A tokenizer with fewer tokens: `vocabulary 24576 on "corpus.jsonl"`.

The kept tokens keep their order and get the numbers from 0 on; each has the row of its old number.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

from gptailor.checkpoint.datasets import Chat, each_row, whole_text
from gptailor.checkpoint.files import (
    CheckpointError,
    Stamp,
    is_gguf,
    json_content,
    parse_object,
    read_object,
    stamps,
)
from gptailor.checkpoint.folder import (
    GENERATION_CONFIG,
    Checkpoint,
    generation_config,
    tokenizer_files,
)
from gptailor.checkpoint.token_selection import (
    SELECTIONS,
    TokenSelection,
    WordPieceSelection,
    cut_document,
    named_ids,
    renumbered,
    step_ids,
)
from gptailor.checkpoint.tokenizer_settings import TokenizerFiles
from gptailor.checkpoint.vocabulary import Vocabulary, read_vocabulary
from gptailor.checkpoint.write.digest import FileDigest, of_file
from gptailor.plan.faults import TailorError
from gptailor.plan.optional_packages import packages_needed

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_MAIN, _SETTINGS = "tokenizer.json", "tokenizer_config.json"
_BINARY = ("tokenizer.model", "sentencepiece.bpe.model", "spiece.model", "tekken.json")
"""Files that have the whole vocabulary in a form of their own. `tokenizer.json` replaces them."""
_AT_ONCE = 256
"""Texts that are encoded in one call."""


@final
@dataclass(frozen=True)
class TokenCutReport:
    """The effect of a cut vocabulary on its text.

    `kept` of `total` tokens stay. The text has `size` bytes. It was split into `before` tokens, and
    `unchanged` of them stay. It is now split into `after` tokens; `bytewise` of them are bytes of
    characters beyond ASCII, or unknown.
    """

    kept: int
    total: int
    size: int
    before: int
    unchanged: int
    after: int
    bytewise: int

    @property
    def unchanged_share(self) -> float:
        """Return the share of the text's tokens that stay as they were."""
        return self.unchanged / max(1, self.before)

    @property
    def growth(self) -> float:
        """Return the share of tokens that the text has more."""
        return self.after / max(1, self.before) - 1

    @property
    def bytes_a_token(self) -> tuple[float, float]:
        """Return the mean bytes of the text's tokens, before and after the cut."""
        return self.size / max(1, self.before), self.size / max(1, self.after)

    @property
    def bytewise_share(self) -> float:
        """Return the share of the text's tokens that are bytes, or unknown."""
        return self.bytewise / max(1, self.after)


@final
@dataclass(frozen=True)
class WholeTokenizer:
    """A model's tokenizer that can be cut.

    `config` are the numbers of the tokens that the model's configuration names. The properties
    raise CheckpointError (C601, C603) for a tokenizer that can't be read or cut.
    """

    name: str
    folder: Path
    files: tuple[Path, ...]
    config: frozenset[int]

    @classmethod
    def of(cls, name: str, checkpoint: Checkpoint) -> "WholeTokenizer":
        """Return the tokenizer of a model. Raises CheckpointError (C603) without tokenizer.json."""
        files = tokenizer_files(checkpoint)
        if not any(path.name == _MAIN for path in files):
            message = f"the tokenizer of '{name}' has no {_MAIN}, which a smaller vocabulary needs"
            help_ = "save the tokenizer with transformers, which writes one"
            if is_gguf(checkpoint.folder):
                help_ = "compile a plan of only this file into a folder, and name the folder here"
            raise CheckpointError("C603", message, checkpoint.folder, help_)
        named = [*named_ids(checkpoint.config)]
        if (generation := generation_config(checkpoint)) is not None:
            named += named_ids(read_object(generation, "C103", duplicate=None))
            files = (*files, generation)
        return cls(name, checkpoint.folder, files, frozenset(named))

    @property
    def main(self) -> Path:
        """Return the path of `tokenizer.json`."""
        return self.folder / _MAIN

    @cached_property
    def ids(self) -> Mapping[str, int]:
        """The numbers of all tokens."""
        vocabulary = read_vocabulary(self.folder)
        return {} if vocabulary is None else vocabulary.ids

    @cached_property
    def selection(self) -> TokenSelection:
        """The tokens, and the tokens that every cut keeps."""
        document = self.read(_MAIN)
        model = document.get("model") or {}
        # Old files of BPE name no type.
        kind = str(model.get("type") or ("BPE" if "merges" in model else "unknown"))
        if kind not in SELECTIONS:
            message = f"the tokenizer of '{self.name}' has the kind '{kind}', expected "
            raise CheckpointError("C603", message + "BPE, Unigram or WordPiece", self.main)
        try:
            numbers = frozenset(self.ids.values())
            stated = [int(token["id"]) for token in document.get("added_tokens") or ()]
            stated += step_ids(document.get("post_processor"))
            for number in stated:
                if number not in numbers:
                    message = f"invalid tokenizer: no token has the number {number}"
                    raise CheckpointError("C601", message, self.main)
            special = numbers.intersection((*stated, *self._named()))
            selection = SELECTIONS[kind](document, self.ids, special)
            _ = selection.fixed
        except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
            message = f"invalid tokenizer: unexpected entries ({type(error).__name__}: {error})"
            raise CheckpointError("C601", message, self.main) from error
        return selection

    @property
    def least(self) -> int:
        """Return the smallest number of tokens of a cut: special tokens and the alphabet."""
        return len(self.selection.fixed)

    @property
    def total(self) -> int:
        """Return the number of tokens."""
        return len(set(self.ids.values()))

    def read(self, name: str) -> dict[str, Any]:
        """Return the JSON of a file of the tokenizer; empty if the file is missing."""
        path = next((path for path in self.files if path.name == name), None)
        if path is None:
            return {}
        return parse_object(path.read_bytes(), path, "C601", duplicate=None)

    def _named(self) -> Iterator[int]:
        """Yield the numbers of tokens that settings and other files of the tokenizer name."""
        yield from self.config
        settings = self.read(_SETTINGS)
        yield from map(int, settings.get("added_tokens_decoder") or ())
        yield from self.read("added_tokens.json").values()
        for named in (settings, self.read("special_tokens_map.json")):
            texts = (value for key, value in named.items() if key.endswith(("_token", "_tokens")))
            yield from (self.ids[text] for text in _contents([*texts]) if text in self.ids)

    @cached_property
    def tokenizer(self) -> "Tokenizer":
        """The tokenizer as the package `tokenizers` has it. Raises MissingPackageError."""
        return self.load()

    def load(self) -> "Tokenizer":
        """Load the tokenizer anew, for a use that doesn't keep it. Raises as `tokenizer`."""
        return loaded_tokenizer(self.main.read_bytes(), self.main)


def _contents(values: Sequence[Any]) -> Iterator[str]:
    """Yield the texts of special tokens, which may be objects or lists."""
    for value in values:
        if isinstance(value, str):
            yield value
        elif isinstance(value, Mapping):
            yield from _contents([value.get("content")])
        elif isinstance(value, list):
            yield from _contents(value)


def loaded_tokenizer(content: bytes, shown: Path) -> "Tokenizer":
    """Load a `tokenizer.json`. Raises MissingPackageError, CheckpointError (C601).

    Its bytes take a quarter of the memory that text beyond Latin takes in Python.
    """
    with packages_needed("a smaller vocabulary"):
        from tokenizers import Tokenizer
    try:
        tokenizer = Tokenizer.from_buffer(content)
    except Exception as error:  # the package raises no other kind
        raise CheckpointError("C601", f"invalid tokenizer: {error}", shown) from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def token_counter(checkpoint: Checkpoint) -> Callable[[str], int] | None:
    """Return a function that counts the tokens of a text, without special tokens around it.

    Return None without the package `tokenizers`, which transformers brings, and for a tokenizer
    that is not on this machine, or that has no `tokenizer.json` that the package reads.
    """
    files = () if checkpoint.nested else tokenizer_files(checkpoint)
    path = next((path for path in files if path.name == _MAIN), None)
    if path is None:
        return None
    try:
        tokenizer = loaded_tokenizer(path.read_bytes(), path)
    except (TailorError, OSError, ValueError):  # a use of the file reports it
        return None
    return lambda text: len(tokenizer.encode(text, add_special_tokens=False).ids)


@final
@dataclass(frozen=True)
class TokenCut:
    """A model's tokenizer with `size` of its tokens: the most used ones of a text.

    `most` is the number of the text's tokens that count (None: all). The properties raise
    CheckpointError, and CalibrationError for an unusable text; MissingPackageError without the
    package `tokenizers`.
    """

    whole: WholeTokenizer
    size: int
    text: Path
    most: int | None = None

    @cached_property
    def kept(self) -> tuple[int, ...]:
        """The old numbers of the tokens, in order."""
        counts = _counted(self.whole, self.text, self.most, self._stamps)
        return self.whole.selection.kept(counts, self.size)

    @cached_property
    def numbers(self) -> Mapping[int, int]:
        """The new number of each kept token."""
        return {old: new for new, old in enumerate(self.kept)}

    @cached_property
    def digest(self) -> FileDigest:
        """The digest of the text."""
        return of_file(self.text)

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """The tokens and their new numbers."""
        new = self.numbers
        return Vocabulary({t: new[n] for t, n in self.whole.ids.items() if n in new})

    @cached_property
    def document(self) -> dict[str, Any]:
        """The smaller `tokenizer.json`."""
        return cut_document(self.whole.selection, self.numbers)

    @property
    def splits_tokens(self) -> bool:
        """Return whether the split of a dropped token is known; WordPiece splits by place."""
        return not isinstance(self.whole.selection, WordPieceSelection)

    @property
    def content(self) -> bytes:
        """Return the smaller `tokenizer.json`."""
        return json_content(self.document)

    @cached_property
    def files(self) -> TokenizerFiles:
        """The files of the smaller tokenizer, and its generation settings."""
        paths = {path.relative_to(self.whole.folder).as_posix(): path for path in self.whole.files}
        return {name: self._file(name, path) for name, path in paths.items() if name not in _BINARY}

    @cached_property
    def generation(self) -> dict[str, Any]:
        """The generation settings with the tokens' new numbers; empty if the model lacks them."""
        return self.renumbered(self.whole.read(GENERATION_CONFIG))

    def _file(self, name: str, path: Path) -> bytes | Path:
        """Return a file of the smaller tokenizer: its bytes, or the file itself if it stays."""
        match name:
            case "merges.txt":
                return self._merges()
            case "vocab.txt":
                return self._lines(path)
            case "tokenizer.json":
                document = self.document
            case "tokenizer_config.json":
                document = self._settings(self.whole.read(name))
            case "generation_config.json":
                document = self.generation
            case "added_tokens.json" | "vocab.json":
                kept = {
                    token: self.numbers[n]
                    for token, n in self.whole.read(name).items()
                    if n in self.numbers
                }
                document = dict(sorted(kept.items(), key=lambda item: item[1]))
            case _:
                return path
        return json_content(document)

    def renumbered(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """Return a model's or a generation's configuration with the tokens' new numbers."""
        return renumbered(settings, self.numbers)

    def _settings(self, settings: dict[str, Any]) -> dict[str, Any]:
        if (decoder := settings.get("added_tokens_decoder")) is None:
            return settings
        new = {
            str(self.numbers[int(n)]): entry
            for n, entry in decoder.items()
            if int(n) in self.numbers
        }
        return {**settings, "added_tokens_decoder": new}

    def _merges(self) -> bytes:
        merges = self.document["model"].get("merges") or ()
        lines = (merge if isinstance(merge, str) else " ".join(merge) for merge in merges)
        return "".join(f"{line}\n" for line in ("#version: 0.2", *lines)).encode()

    def _lines(self, path: Path) -> bytes:
        lines = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
        kept = (line for n, line in enumerate(lines) if n in self.numbers)
        return "".join(f"{line}\n" for line in kept).encode()

    # ------------------------------------------------------------------------------- the text

    @property
    def _stamps(self) -> tuple[tuple[Path, Stamp], ...]:
        return tuple(stamps([self.whole.main, self.text]).items())

    @cached_property
    def report(self) -> TokenCutReport:
        """The effect of the cut on its whole text, which is split again."""
        counts = _counted(self.whole, self.text, None, self._stamps)
        cut = loaded_tokenizer(self.content, self.whole.main)
        texts = [*_texts(self.text)]
        after = Counter(_encoded(cut, texts))
        bytewise = frozenset(_bytewise(self.whole.selection)) & self.numbers.keys()
        return TokenCutReport(
            kept=self.size,
            total=self.whole.total,
            size=sum(len(text.encode()) for text in texts),
            before=sum(counts.values()),
            unchanged=sum(count for n, count in counts.items() if n in self.numbers),
            after=sum(after.values()),
            bytewise=sum(after[self.numbers[n]] for n in bytewise),
        )


@lru_cache(maxsize=64)
def _counted(
    whole: WholeTokenizer, text: Path, most: int | None, _: tuple[tuple[Path, Stamp], ...]
) -> Mapping[int, int]:
    """Return how often a text has each token; cached while text and tokenizer are unchanged."""
    return Counter(islice(_encoded(whole.load(), _texts(text)), most))


def _texts(path: Path) -> Iterator[str]:
    """Yield the texts of a file, row by row, and the contents of its messages."""
    for row in each_row(path, "chat"):
        if isinstance(row, Chat):
            yield from (message["content"] for message in row.messages)
        else:
            yield whole_text(row)


def _encoded(tokenizer: "Tokenizer", texts: Iterator[str] | Sequence[str]) -> Iterator[int]:
    rows = iter(texts)
    while batch := [*islice(rows, _AT_ONCE)]:
        for encoded in tokenizer.encode_batch_fast(batch, add_special_tokens=False):
            yield from encoded.ids


def _bytewise(selection: TokenSelection) -> Iterator[int]:
    """Yield the numbers of tokens of bytes beyond ASCII, and of the unknown token."""
    model, ids = selection.model, selection.ids
    if model.get("unk_token") in ids:
        yield ids[model["unk_token"]]
    if model.get("unk_id") is not None:
        yield int(model["unk_id"])
    if selection.has_all_bytes:
        yield from (ids[f"<0x{byte:02X}>"] for byte in range(128, 256))
    elif "ByteLevel" in str(selection.document.get("decoder")):
        yield from (ids[letter] for letter in _HIGH_BYTES if letter in ids)


_HIGH_BYTES = [*map(chr, (*range(0xA1, 0xAD), *range(0xAE, 0x100), *range(0x122, 0x144)))]
"""The characters that stand for bytes from 128 on in byte-level tokens.

A byte without a printable character has one from 0x100 on, in order; 34 of these are below 128.
"""
