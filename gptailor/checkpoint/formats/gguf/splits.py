"""Tokenizers in GGUF files: special tokens, tokens' kinds, and the ways to split a text first."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

SPECIAL_TOKENS: Mapping[str, str] = {
    "bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding",
}  # fmt: skip
"""The special tokens by their names in a configuration, and GGUF's names."""

NORMAL, UNKNOWN, CONTROL, DEFINED, UNUSED, BYTE = range(1, 7)
"""The kinds of tokens."""

QWEN_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LLAMA3_SPLIT = QWEN_SPLIT.replace(r"|\p{N}|", r"|\p{N}{1,3}|")
TEKKEN_SPLIT = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""Patterns of the tokenizers of Qwen 2, Llama 3 and Mistral."""

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
GPT2_SPLIT = (_GPT2,)
DIGITS_SPLIT = (r"\p{N}", _GPT2)
"""Patterns that transformers has as steps of their own: `ByteLevel`, and `Digits` before it."""


@final
@dataclass(frozen=True)
class Split:
    """A way to split a text: regular expressions, applied in turn.

    `whole`: a word that is a token stays whole, and a text begins with a token by default.
    `written`: the name under which a file is written whose tokenizer splits so.
    """

    patterns: tuple[str, ...]
    whole: bool = False
    written: bool = False


SPLITS: Mapping[str, Split] = {
    "smollm": Split(DIGITS_SPLIT, written=True),
    "starcoder": Split(DIGITS_SPLIT),
    "refact": Split(DIGITS_SPLIT),
    "command-r": Split(DIGITS_SPLIT),
    "gpt-2": Split(GPT2_SPLIT, written=True),
    "mpt": Split(GPT2_SPLIT),
    "olmo": Split(GPT2_SPLIT),
    "falcon": Split((r"[\p{P}$+<=>^~|`]+", _GPT2, "[0-9][0-9][0-9]")),
    "qwen2": Split((QWEN_SPLIT,), written=True),
    "stablelm2": Split((QWEN_SPLIT,)),
    "llama-bpe": Split((LLAMA3_SPLIT,), whole=True, written=True),
    "llama3": Split((LLAMA3_SPLIT,), whole=True),
    "dbrx": Split((LLAMA3_SPLIT,)),
    "smaug-bpe": Split((LLAMA3_SPLIT,), written=True),
    "tekken": Split((TEKKEN_SPLIT,), whole=True, written=True),
}
"""All names that are read; a file is written under the names that are marked."""
