"""A tokenizer in GGUF's terms: its tokens, its way to split a text, its chat template.

The tokenizer is the one that transformers loads. llama.cpp has the ways to split in its code, by
names; a tokenizer that isn't exactly one of them is refused.
"""

import json
import re
from collections.abc import Mapping
from itertools import groupby
from pathlib import Path
from typing import Any, NoReturn, final

from gptailor.checkpoint.files import CheckpointError, quoted
from gptailor.checkpoint.formats.gguf.reader import (
    BYTE,
    CONTROL,
    DEFINED,
    DIGITS_SPLIT,
    GPT2_SPLIT,
    NORMAL,
    SPECIAL_TOKENS,
    SPLITS,
    UNKNOWN,
    UNUSED,
)
from gptailor.checkpoint.tokenizer_settings import content_of
from gptailor.checkpoint.write.output_file import temporary_folder
from gptailor.program.gguf.architecture import GgufFacts

_OWN_STEPS = {GPT2_SPLIT: ("words",), DIGITS_SPLIT: ("digits", "words")}
"""The steps of transformers' own ways to split; others have patterns, and then the bytes."""
_PRE: Mapping[tuple[tuple[str, ...], bool], str] = {
    (_OWN_STEPS.get(split.patterns, (*split.patterns, "bytes")), split.whole): name
    for name, split in SPLITS.items()
    if split.written
}
"""llama.cpp's names of ways to split, by the steps and whether known words stay whole."""

_SPACE = "▁"
_METASPACE = (
    "llama.cpp puts a space before each text and after each special token; transformers puts one "
    "only at the {where}, if it is missing"
)


def vocabulary_facts(
    files: Mapping[str, bytes | Path], config: Mapping[str, Any], target: Path
) -> tuple[GgufFacts, list[str]]:
    """Return the metadata of the tokenizer in these files, and notes for people.

    `config` is the model's; the vocabulary is filled up to its `vocab_size`. Raises CheckpointError
    (C306) about `target` for a tokenizer that llama.cpp lacks.
    """
    tokenizer = _loaded(files, config, target)
    return _Vocabulary(tokenizer, config, target).facts()


def _loaded(files: Mapping[str, bytes | Path], config: Mapping[str, Any], target: Path) -> Any:
    """Return the tokenizer as transformers loads it from a model's folder."""
    from transformers import AutoTokenizer

    with temporary_folder(target) as folder:
        (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
        for path, content in files.items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_bytes(content_of(content))
        try:
            tokenizer = AutoTokenizer.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False
            )
        except Exception as error:
            reason = str(error).splitlines()[0].replace(str(folder), "its folder")
            raise CheckpointError(
                "C306", f"the tokenizer can't be loaded by transformers: {reason}", target
            ) from error
    if getattr(tokenizer, "backend_tokenizer", None) is None:
        raise CheckpointError(
            "C306",
            "transformers can't save this kind of tokenizer as 'tokenizer.json'",
            target,
            "load it with AutoTokenizer, save it, and give that folder",
        )
    return tokenizer


@final
class _Vocabulary:
    """A tokenizer taken apart."""

    def __init__(self, tokenizer: Any, config: Mapping[str, Any], target: Path) -> None:
        self.tokenizer = tokenizer
        self.config = config
        self.target = target
        self.notes: list[str] = []
        self.parts: dict[str, Any] = json.loads(tokenizer.backend_tokenizer.to_str())
        self.model: dict[str, Any] = self.parts["model"]
        self.added: list[dict[str, Any]] = self.parts.get("added_tokens") or []

    def refuse(self, message: str, help: str = "") -> NoReturn:
        raise CheckpointError("C306", f"the tokenizer {message}", self.target, help)

    def facts(self) -> tuple[GgufFacts, list[str]]:
        if (kind := self.model.get("type")) != "BPE":
            self.refuse(f"has the kind {quoted(str(kind))}, but llama.cpp has only BPE")
        for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
            if self.model.get(key):
                self.refuse(f"has {quoted(key)}, which llama.cpp lacks")
        tokens, kinds = self._tokens()
        how = self._pieces(tokens) if self.model.get("byte_fallback") else self._bytes()
        listed: GgufFacts = {"tokenizer.ggml.tokens": tokens, "tokenizer.ggml.token_type": kinds}
        return how | listed | self._special() | self._templates(), self.notes

    def _tokens(self) -> tuple[list[str], list[int]]:
        """Return the tokens by their numbers, and their kinds; rows without a token are unused."""
        rows = int(self.config["vocab_size"])
        tokens = {number: token for token, number in self.model["vocab"].items()}
        kinds = dict.fromkeys(tokens, NORMAL)
        for number, token in tokens.items() if self.model.get("byte_fallback") else ():
            if re.fullmatch("<0x..>", token, re.DOTALL):
                kinds[number] = BYTE
            elif token == self.model.get("unk_token"):
                kinds[number] = UNKNOWN
        for added in self.added:
            self._add(added, tokens, kinds)
        if (most := max(tokens, default=-1)) >= rows:
            self.refuse(f"has a token with the number {most}, but the embedding has {rows} rows")
        return (
            [tokens.get(n, f"[PAD{n}]") for n in range(rows)],
            [kinds.get(n, UNUSED) for n in range(rows)],
        )

    def _add(self, added: dict[str, Any], tokens: dict[int, str], kinds: dict[int, int]) -> None:
        number, content = added["id"], added["content"]
        for key in ("single_word", "lstrip", "rstrip"):
            if added.get(key):
                self.refuse(
                    f"has {quoted(key)} for its token {quoted(content)}, which llama.cpp lacks"
                )
        kind = UNKNOWN if kinds.get(number) == UNKNOWN else CONTROL
        if not added.get("special"):
            kind = DEFINED
            if _SPACE in content and self.model.get("byte_fallback"):
                # A token that is found in replaced spaces: llama.cpp looks for it in the text.
                if not added.get("normalized") and tokens.get(number) == content:
                    return
                content = content.replace(_SPACE, " ")
        tokens[number], kinds[number] = content, kind

    # ---------------------------------------------------------------------------- byte-level BPE

    def _bytes(self) -> GgufFacts:
        name = self._pre()
        normalizer = _kinds_of(self.parts.get("normalizer"), "normalizers")
        if [part["type"] for part in normalizer] == ["NFC"]:
            self.notes.append(
                "the tokenizer normalizes texts to Unicode's form NFC, but llama.cpp doesn't"
            )
        elif normalizer:
            self.refuse(
                f"changes texts by {quoted(normalizer[0]['type'])}, which llama.cpp doesn't"
            )
        return {
            "tokenizer.ggml.model": "gpt2",
            "tokenizer.ggml.pre": name,
            "tokenizer.ggml.merges": [" ".join(merge) for merge in self.model["merges"]],
        }

    def _pre(self) -> str:
        """Return llama.cpp's name of the way to split a text."""
        parts = _kinds_of(self.parts.get("pre_tokenizer"), "pretokenizers")
        whole = bool(self.model.get("ignore_merges"))
        name = _PRE.get((tuple(map(_step, parts)), whole))
        if name is None:
            parts_text = json.dumps(parts, ensure_ascii=False)[:160]
            names = ", ".join(_PRE.values())
            self.refuse(
                f"has a pre-tokenizer without a name in llama.cpp: {parts_text}",
                f"llama.cpp's names are {names}",
            )
        return name

    # ----------------------------------------------------------------- SentencePiece's kind of BPE

    def _pieces(self, tokens: list[str]) -> GgufFacts:
        prefix = self._spaces()
        vocab = self.model["vocab"]
        if lacking := [n for n in range(256) if f"<0x{n:02X}>" not in vocab]:
            self.refuse(f"has no token for {len(lacking)} of the 256 bytes")
        scores = self._scores()
        return {
            "tokenizer.ggml.model": "llama",
            "tokenizer.ggml.pre": "default",
            "tokenizer.ggml.scores": [scores.get(token, 0.0) for token in tokens],
            "tokenizer.ggml.add_space_prefix": prefix,
        }

    def _spaces(self) -> bool:
        """Return whether a text gets a space before it."""
        normalizer = _kinds_of(self.parts.get("normalizer"), "normalizers")
        before = _kinds_of(self.parts.get("pre_tokenizer"), "pretokenizers")
        changes, splits = ([_step(part) for part in parts] for parts in (normalizer, before))
        if changes in (["prepend", "replace"], ["replace"]) and splits in ([], [" "]):
            return changes[0] == "prepend"
        if not changes and splits == ["Metaspace"]:
            return self._metaspace(before[0])
        parts_text = json.dumps([*normalizer, *before], ensure_ascii=False)[:160]
        self.refuse(f"treats spaces differently from llama.cpp: {parts_text}")

    def _metaspace(self, part: dict[str, Any]) -> bool:
        scheme = part.get("prepend_scheme", "always")
        inner = (token for token in self.model["vocab"] if _SPACE in token[1:])
        if part.get("replacement") != _SPACE:
            self.refuse(f"has {quoted(str(part.get('replacement')))} for spaces")
        if part.get("split", True) and (token := next(inner, None)) is not None:
            self.refuse(f"splits at spaces, but has the token {quoted(token)}")
        if scheme == "never":
            return False
        where = "text's beginning" if scheme == "first" else "beginning, and after special tokens"
        self.notes.append(_METASPACE.format(where=where))
        return True

    def _scores(self) -> dict[str, float]:
        """Return a score for each merged token: llama.cpp merges the best score first.

        llama.cpp merges any two neighbours that are a token together, and scores that token alone.
        So all merges must be present, and the merges of a token must follow each other.
        """
        merges = [tuple(merge) for merge in self.model["merges"]]
        vocab, pairs = self.model["vocab"], set(merges)
        scores: dict[str, float] = {}
        for token, _ in groupby(merges, key="".join):
            if token in scores:
                self.refuse(f"has two merges that make {quoted(token)}")
            scores[token] = -float(len(scores))
        special = {added["content"] for added in self.added}
        for token in vocab:
            for at in range(1, len(token)):
                pair = token[:at], token[at:]
                made = pair not in pairs and pair[0] in vocab and pair[1] in vocab
                if made and not special & {token, *pair}:
                    what = " and ".join(map(quoted, pair))
                    self.refuse(f"doesn't merge {what}, which llama.cpp would")
        return scores

    # ------------------------------------------------------------------------------ special tokens

    def _special(self) -> GgufFacts:
        begin, end = self._added_around()
        around = {"bos": begin, "eos": end}
        named = {key: self._number(name, around.get(name)) for name, key in SPECIAL_TOKENS.items()}
        facts: GgufFacts = {
            f"tokenizer.ggml.{key}_token_id": n for key, n in named.items() if n is not None
        }
        for name, number in around.items():
            if number is not None and number != named[name]:
                self.refuse(f"adds a token other than its {name} token to a text")
            facts[f"tokenizer.ggml.add_{name}_token"] = number is not None
        return facts

    def _number(self, name: str, default: int | None) -> int | None:
        """Return a special token's number: the tokenizer's, else the configuration's."""
        numbers = [getattr(self.tokenizer, f"{name}_token_id", None), default]
        numbers.append(self.config.get(f"{name}_token_id"))
        return next((number for number in numbers if type(number) is int), None)

    def _added_around(self) -> tuple[int | None, int | None]:
        """Return the tokens that are put before and after a text."""
        begin, end = list[int](), list[int]()
        for part in _kinds_of(self.parts.get("post_processor"), "processors"):
            if part["type"] == "ByteLevel":
                continue
            if part["type"] != "TemplateProcessing":
                self.refuse(f"ends with {quoted(part['type'])}, which llama.cpp lacks")
            into = begin
            for piece in part["single"]:
                if "Sequence" in piece:
                    into = end
                else:
                    into += part["special_tokens"][piece["SpecialToken"]["id"]]["ids"]
        if len(begin) > 1 or len(end) > 1:
            self.refuse("puts several tokens before or after a text")
        return next(iter(begin), None), next(iter(end), None)

    def _templates(self) -> GgufFacts:
        value, key = getattr(self.tokenizer, "chat_template", None), "tokenizer.chat_template"
        templates = value if isinstance(value, dict) else {"default": value} if value else {}
        names = sorted(name for name in templates if name != "default")
        facts: GgufFacts = {key: templates["default"]} if "default" in templates else {}
        facts |= {f"{key}.{name}": templates[name] for name in names}
        return facts | ({f"{key}s": names} if names else {})


def _kinds_of(part: dict[str, Any] | None, inner: str) -> list[dict[str, Any]]:
    """Return the steps of a part of a tokenizer, with sequences flattened."""
    if part is not None and part["type"] == "Sequence":
        return [step for each in part[inner] for step in _kinds_of(each, inner)]
    return [] if part is None else [part]


def _step(part: dict[str, Any]) -> str:
    """Return a step's word: a pattern, "digits", GPT-2's "words", "bytes", or its type.

    Those that treat spaces are "prepend", "replace" and " ".
    """
    word = str(part["type"])
    match part:
        case {"type": "Prepend", "prepend": "▁"}:
            word = "prepend"
        case {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}:
            word = "replace"
        case {"type": "ByteLevel"} if not part.get("add_prefix_space"):
            word = "words" if part.get("use_regex", True) else "bytes"
        case {"type": "Digits", "individual_digits": True}:
            word = "digits"
        case {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious"}:
            word = "inverted" if part.get("invert") else " "
        case {"type": "Split", "pattern": {"Regex": str(pattern)}, "behavior": "Isolated"}:
            word = "inverted" if part.get("invert") else pattern
    return word
