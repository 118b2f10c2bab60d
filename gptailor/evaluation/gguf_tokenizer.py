"""The tokenizer of a GGUF file, as the files that transformers loads."""

import errno
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from gptailor.checkpoint.files import CheckpointError, quoted
from gptailor.checkpoint.formats.gguf.header import GgufValue, read_gguf
from gptailor.checkpoint.formats.gguf.reader import (
    CONTROL,
    DEFINED,
    DIGITS_SPLIT,
    GPT2_SPLIT,
    SPECIAL_TOKENS,
    SPLITS,
    Split,
)
from gptailor.checkpoint.write.output_file import temporary_folder
from gptailor.plan.faults import listed
from gptailor.plan.optional_packages import how_to_install

if TYPE_CHECKING:
    from tokenizers import Tokenizer


def tokenizer_from_gguf(path: Path) -> dict[str, bytes]:
    """Return the tokenizer's files and `generation_config.json`, by name.

    Raises CheckpointError.
    """
    facts = read_gguf(path).facts
    model = facts.get("tokenizer.ggml.model")
    if model not in ("gpt2", "llama"):
        _refuse(path, f"its tokenizer has the kind {quoted(str(model))}, which gptailor can't read")
    with temporary_folder(path) as folder:
        tokenizer = _byte_level(path, facts) if model == "gpt2" else _sentence_piece(path)
        try:
            tokenizer.save_pretrained(folder)
        except OSError:
            raise
        except Exception as error:  # tokenizers raises nothing else
            raise OSError(errno.EIO, str(error)) from error
        files = {file.name: file.read_bytes() for file in sorted(folder.iterdir())}
    ids = {f"{name}_token_id": number for name, number in _ids(facts).items() if name != "unk"}
    files["generation_config.json"] = (json.dumps(ids, indent=2) + "\n").encode()
    return files


def _refuse(path: Path, message: str) -> NoReturn:
    raise CheckpointError(
        "C109", message, path, "take another model's tokenizer: `tokenizer from …`"
    )


def _ids(facts: Mapping[str, GgufValue]) -> dict[str, int]:
    """Return the numbers of the special tokens that the file has."""
    size = len(_items(facts, "tokens"))
    numbers = {
        name: facts.get(f"tokenizer.ggml.{key}_token_id") for name, key in SPECIAL_TOKENS.items()
    }
    return {name: n for name, n in numbers.items() if isinstance(n, int) and 0 <= n < size}


def _items(facts: Mapping[str, GgufValue], name: str) -> tuple[Any, ...]:
    items = facts.get(f"tokenizer.ggml.{name}", ())
    return items if isinstance(items, tuple) else ()


def _byte_level(path: Path, facts: Mapping[str, GgufValue]) -> Any:
    from transformers import PreTrainedTokenizerFast

    name = facts.get("tokenizer.ggml.pre", "gpt-2")
    split = SPLITS.get(name) if isinstance(name, str) else None
    if split is None:
        names = listed(map(quoted, SPLITS))
        _refuse(
            path,
            f"its tokenizer has the pre-tokenizer {quoted(str(name))}, expected one of {names}",
        )
    tokens = _items(facts, "tokens")
    context = facts.get(f"{facts.get('general.architecture')}.context_length")
    special = {f"{name}_token": tokens[number] for name, number in _ids(facts).items()}
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call] # transformers has no types
        tokenizer_object=_pieces(path, facts, split),
        chat_template=facts.get("tokenizer.chat_template"),
        model_max_length=context,
        clean_up_tokenization_spaces=False,
        **special,
    )


def _pieces(path: Path, facts: Mapping[str, GgufValue], split: Split) -> "Tokenizer":
    """Return byte-level BPE, with the special tokens and the token that begins a text."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers

    tokens, kinds = _items(facts, "tokens"), _items(facts, "token_type")
    if len(kinds) != len(tokens) or not all(isinstance(token, str) for token in tokens):
        _refuse(path, f"its tokenizer has {len(tokens)} tokens of {len(kinds)} kinds")
    halves = (str(merge).partition(" ") for merge in _items(facts, "merges"))
    merges = [(first, second) for first, _, second in halves]
    ids = {token: i for i, token in enumerate(tokens)}
    try:
        model = models.BPE(ids, merges, ignore_merges=split.whole)
    except Exception as error:  # noqa: BLE001 (tokenizers raises nothing else)
        _refuse(path, f"its tokenizer's merges don't match its tokens: {error}")
    tokenizer = Tokenizer(model)
    if facts.get("tokenizer.ggml.pre") == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = _pre_tokenizer(split)
    tokenizer.decoder = decoders.ByteLevel()
    pairs = list(zip(tokens, kinds, strict=True))
    control = [AddedToken(t, special=True, normalized=False) for t, k in pairs if k == CONTROL]
    tokenizer.add_special_tokens(control)
    tokenizer.add_tokens([AddedToken(t, normalized=False) for t, k in pairs if k == DEFINED])
    _add_begin(tokenizer, facts, split)
    return tokenizer


def _add_begin(tokenizer: "Tokenizer", facts: Mapping[str, GgufValue], split: Split) -> None:
    """Begin each text with its token, if the file or its way to split requires it."""
    from tokenizers import processors

    number = _ids(facts).get("bos")
    if number is None or facts.get("tokenizer.ggml.add_bos_token", split.whole) is not True:
        return
    begin = _items(facts, "tokens")[number]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=[begin, "$A"],
        pair=[begin, "$A", f"{begin}:1", "$B:1"],
        special_tokens=[(begin, number)],
    )


def _pre_tokenizer(split: Split) -> Any:
    from tokenizers import Regex, pre_tokenizers

    # transformers recognises a tokenizer by its own classes for these two ways to split.
    if split.patterns in {GPT2_SPLIT, DIGITS_SPLIT}:
        level = pre_tokenizers.ByteLevel(add_prefix_space=False)
        digits = pre_tokenizers.Digits(individual_digits=True)
        return level if split.patterns == GPT2_SPLIT else pre_tokenizers.Sequence([digits, level])
    splits = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in split.patterns]
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return pre_tokenizers.Sequence([*splits, level])


def _sentence_piece(path: Path) -> Any:
    """Return Llama's first tokenizer, as transformers converts it."""
    try:
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(
            path.parent, gguf_file=path.name, trust_remote_code=False
        )
    except ImportError as error:
        raise CheckpointError(
            "C110",
            "its tokenizer needs the packages 'gguf' and 'sentencepiece'",
            path,
            how_to_install("gguf"),
        ) from error
