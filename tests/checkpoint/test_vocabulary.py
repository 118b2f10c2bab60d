"""Vocabularies are read as transformers reads them; broken ones are told by their file."""

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from gptailor.checkpoint.files import CheckpointError
from gptailor.checkpoint.vocabulary import Vocabulary, read_vocabulary, relation, same_files
from tests.support.tiny import VOCABULARY, write_tokenizer

IDS = st.dictionaries(st.sampled_from("abcdefgh"), st.integers(0, 9), max_size=6)


def varint(number: int) -> bytes:
    """A protobuf's number, seven bits a byte."""
    low, rest = number & 127, number >> 7
    return bytes([low | 128]) + varint(rest) if rest else bytes([low])


def field(number: int, content: bytes) -> bytes:
    """A length-delimited field."""
    return varint(number << 3 | 2) + varint(len(content)) + content


def sentencepiece(tokens: list[str]) -> bytes:
    """A SentencePiece model: pieces with scores and types, then the trainer's settings."""
    pieces = [
        field(1, token.encode()) + b"\x15" + struct.pack("<f", -float(i)) + b"\x18\x01"
        for i, token in enumerate(tokens)
    ]
    trainer = field(1, b"corpus.txt") + b"\x20" + varint(300) + b"\x51" + struct.pack("<d", 0.5)
    return b"".join(field(1, piece) for piece in pieces) + field(2, trainer)


def write(folder: Path, files: Mapping[str, Any]) -> Path:
    """A folder of files: bytes as they are, all else as JSON."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        raw = content if isinstance(content, bytes) else json.dumps(content).encode()
        (folder / name).write_bytes(raw)
    return folder


def ids_of(folder: Path) -> dict[str, int]:
    result = read_vocabulary(folder)
    assert result is not None
    return dict(result.ids)


# ---------------------------------------------------------------------------------------- reading


def test_a_tokenizer_is_read_as_transformers_reads_it(tmp_path: Path) -> None:
    write_tokenizer(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    tokenizer.add_tokens(["<think>", "[PAD]"])
    tokenizer.save_pretrained(tmp_path / "more")
    for folder in (tmp_path, tmp_path / "more"):
        assert ids_of(folder) == AutoTokenizer.from_pretrained(folder).get_vocab()
    assert ids_of(tmp_path / "more")["[PAD]"] == len(VOCABULARY) + 1


def test_tokens_of_the_tokenizer_s_settings_count(tmp_path: Path) -> None:
    """Folders with tokenizer.json files equal to the byte may differ in their added tokens."""
    write_tokenizer(tmp_path)
    path = tmp_path / "tokenizer_config.json"
    decoder = {"63": {"content": "<think>", "special": True}, "1": {"content": "<s>"}}
    path.write_text(json.dumps(json.loads(path.read_text()) | {"added_tokens_decoder": decoder}))
    read = AutoTokenizer.from_pretrained(tmp_path).get_vocab()
    assert read["<think>"] == 63
    assert ids_of(tmp_path) == read


KINDS: dict[str, tuple[Mapping[str, Any], dict[str, int]]] = {
    "tokenizer.json": (
        {"tokenizer.json": {"model": {"vocab": {"a": 0, "b": 1}}, "added_tokens": None}},
        {"a": 0, "b": 1},
    ),
    "unigram": (
        {"tokenizer.json": {"model": {"vocab": [["<unk>", 0], ["▁a", -1.5]]}}},
        {"<unk>": 0, "▁a": 1},
    ),
    "added": (
        {
            "tokenizer.json": {
                "model": {"vocab": {"a": 0}},
                "added_tokens": [{"content": "<x>", "id": 1}],
            }
        },
        {"a": 0, "<x>": 1},
    ),
    "vocab.json": (
        {"vocab.json": {"model": 0, "added_tokens": 1}, "added_tokens.json": {"<x>": 2}},
        {"model": 0, "added_tokens": 1, "<x>": 2},
    ),
    "an added token that is there": (
        {"vocab.json": {"a": 0, "b": 1}, "added_tokens.json": {"a": 7}},
        {"a": 0, "b": 1},
    ),
    "sentencepiece": (
        {"tokenizer.model": sentencepiece(["<unk>", "▁ä", "<0x0A>"])},
        {"<unk>": 0, "▁ä": 1, "<0x0A>": 2},
    ),
    "sentencepiece with added tokens": (
        {
            "tokenizer.model": sentencepiece(["<unk>", "a" * 200]),
            "added_tokens.json": {"[PAD]": 2},
            "tokenizer_config.json": {"added_tokens_decoder": {"3": {"content": "<|im_end|>"}}},
        },
        {"<unk>": 0, "a" * 200: 1, "[PAD]": 2, "<|im_end|>": 3},
    ),
    "the first counts": (
        {"tokenizer.json": {"model": {"vocab": {"a": 0}}}, "vocab.json": {"b": 0}},
        {"a": 0},
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_of_vocabulary_file_is_read(kind: str, tmp_path: Path) -> None:
    files, ids = KINDS[kind]
    assert ids_of(write(tmp_path, files)) == ids


@pytest.mark.parametrize(
    "files",
    [
        {},
        {"tokenizer.json": {}},
        {"tokenizer.model": b"IQ== 0\nIg== 1\n"},  # tiktoken's
        {"tokenizer.model": b""},
        {"added_tokens.json": {"<x>": 1}},
    ],
)
def test_a_folder_without_a_vocabulary(files: Mapping[str, Any], tmp_path: Path) -> None:
    assert read_vocabulary(write(tmp_path, files)) is None


SOUND = {"vocab.json": {"a": 0}}
BROKEN: dict[str, tuple[Mapping[str, Any], str]] = {
    "cut off": ({"tokenizer.json": b'{"model": {"vocab": {"a": 0'}, "Expecting"),
    "no UTF-8": ({"tokenizer.json": b'{"\xff": 0}'}, "utf-8"),
    "empty": ({"tokenizer.json": b""}, "Expecting value"),
    "a list": ({"tokenizer.json": []}, "not a JSON object"),
    "deep": ({"tokenizer.json": b"[" * 200_000}, "too deep"),
    "a model of text": ({"tokenizer.json": {"model": "bpe"}}, "entries"),
    "a vocabulary of text": ({"tokenizer.json": {"model": {"vocab": "abc"}}}, "entries"),
    "pairs of nothing": ({"tokenizer.json": {"model": {"vocab": [[]]}}}, "entries"),
    "numbers for pairs": ({"tokenizer.json": {"model": {"vocab": [1]}}}, "entries"),
    "an unhashable token": ({"tokenizer.json": {"model": {"vocab": [[{}, 0]]}}}, "entries"),
    "an added number": ({"tokenizer.json": {"model": {}, "added_tokens": [{"id": 1}]}}, "entries"),
    "a number of text": ({"tokenizer.json": {"model": {"vocab": {"a": "0"}}}}, "'a'.*'0'"),
    "a negative number": ({"vocab.json": {"a": -1}}, "'a'.*-1"),
    "a truth": ({"vocab.json": {"a": True}}, "'a'.*True"),
    "a half": ({"vocab.json": {"a": 0.5}}, "'a'.*0.5"),
    "broken added tokens": ({**SOUND, "added_tokens.json": b"{"}, "Expecting"),
    "a list of added tokens": ({**SOUND, "added_tokens.json": ["<x>"]}, "not a JSON object"),
    "broken settings": ({**SOUND, "tokenizer_config.json": b"{"}, "Expecting"),
    "added tokens by name": (
        {**SOUND, "tokenizer_config.json": {"added_tokens_decoder": {"x": {"content": "y"}}}},
        "invalid literal",
    ),
    "text for SentencePiece": ({"tokenizer.model": b"not a protobuf"}, "expected protobuf|beyond"),
    "a pointer": ({"tokenizer.model": b"version https://git-lfs.github.com/spec/v1\n"}, "LFS"),
    "half a piece": ({"tokenizer.model": sentencepiece(["<unk>"])[:6]}, "beyond the file"),
    "half a number": ({"tokenizer.model": b"\x0a\xff"}, "it is truncated"),
    "an endless number": ({"tokenizer.model": b"\x0a" + b"\xff" * 20}, "expected a number"),
    "a piece that is no text": ({"tokenizer.model": field(1, field(1, b"\xff"))}, "utf-8"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_file(kind: str, tmp_path: Path) -> None:
    files, why = BROKEN[kind]
    with pytest.raises(CheckpointError, match=why) as caught:
        read_vocabulary(write(tmp_path, files))
    assert (caught.value.code, caught.value.path) == ("C601", tmp_path / list(files)[-1])


@given(st.binary(max_size=60))
def test_any_bytes_are_a_vocabulary_or_refused(
    tmp_path_factory: pytest.TempPathFactory, raw: bytes
) -> None:
    folder = tmp_path_factory.getbasetemp() / "bytes"
    for name in ("tokenizer.model", "tokenizer.json"):
        write(folder / name, {name: raw})
        try:
            read_vocabulary(folder / name)
        except CheckpointError as error:
            assert error.code == "C601"  # noqa: PT017 (both outcomes are right)


# --------------------------------------------------------------------------------------- comparing


@pytest.mark.parametrize(
    ("theirs", "how"),
    [
        ({"a": 0, "b": 1}, "same"),
        ({"b": 1, "a": 0}, "same"),
        ({"a": 0, "b": 1, "c": 2}, "extension"),
        ({"a": 0}, "part"),
        ({}, "part"),
        ({"a": 1, "b": 0}, "other"),
        ({"a": 0, "c": 1}, "other"),
        ({"a": 0, "b": 2, "c": 1}, "other"),
        ({"x": 0, "y": 1}, "other"),
    ],
)
def test_vocabularies_are_compared(theirs: dict[str, int], how: str) -> None:
    assert relation(Vocabulary({"a": 0, "b": 1}), Vocabulary(theirs)) == how


@given(IDS, IDS)
def test_the_relation_of_vocabularies_is_symmetric(a: dict[str, int], b: dict[str, int]) -> None:
    turned = {"same": "same", "extension": "part", "part": "extension", "other": "other"}
    ours, theirs = Vocabulary(a), Vocabulary(b)
    assert relation(theirs, ours) == turned[relation(ours, theirs)]
    assert (relation(ours, theirs) == "same") == (a == b)


@pytest.mark.parametrize(
    ("files", "same"),
    [
        ({"vocab.json": {"a": 0}}, True),
        ({"vocab.json": {"a": 0}, "tokenizer_config.json": {"chat_template": "x"}}, True),
        ({"vocab.json": {"a": 1}}, False),
        ({"vocab.json": {"a": 0}, "added_tokens.json": {"<x>": 1}}, False),
        ({"tokenizer.json": {"model": {"vocab": {"a": 0}}}, "vocab.json": {"a": 0}}, False),
        ({}, False),
    ],
)
def test_folders_of_the_same_files(files: Mapping[str, Any], same: bool, tmp_path: Path) -> None:
    file = write(tmp_path / "one", {"vocab.json": {"a": 0}})
    other = write(tmp_path / "other", files)
    assert same_files(file, other) is same
    assert same_files(other, file) is same
