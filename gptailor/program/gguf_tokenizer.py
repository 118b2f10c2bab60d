"""The tokenizer of a GGUF file, as the files that transformers loads."""

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from gptailor.checkpoint.files import CheckpointError, quoted
from gptailor.checkpoint.formats.gguf_header import GgufValue, read_gguf
from gptailor.plan.extras import how_to_install
from gptailor.plan.faults import listed

if TYPE_CHECKING:
    from tokenizers import Tokenizer


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
"""Patterns by which the tokenizers of Qwen 2, Llama 3 and Mistral split a text first."""

_GPT2_SPLIT = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_GPT2 = (_GPT2_SPLIT,)
_DIGITS = (r"\p{N}", _GPT2_SPLIT)

_SPLITS: Mapping[str, tuple[str, ...]] = {
    "smollm": _DIGITS,
    "starcoder": _DIGITS,
    "refact": _DIGITS,
    "command-r": _DIGITS,
    "gpt-2": _GPT2,
    "mpt": _GPT2,
    "olmo": _GPT2,
    "falcon": (r"[\p{P}$+<=>^~|`]+", _GPT2_SPLIT, "[0-9][0-9][0-9]"),
    "qwen2": (QWEN_SPLIT,),
    "stablelm2": (QWEN_SPLIT,),
    "llama-bpe": (LLAMA3_SPLIT,),
    "llama3": (LLAMA3_SPLIT,),
    "dbrx": (LLAMA3_SPLIT,),
    "smaug-bpe": (LLAMA3_SPLIT,),
    "tekken": (TEKKEN_SPLIT,),
}
"""How a byte-level tokenizer splits a text first, by llama.cpp's names: patterns in turn."""

_IGNORE_MERGES = frozenset({"llama-bpe", "llama3", "tekken"})
"""Those that take a whole word that is a token as it is, and begin a text with a token."""

_CONTROL, _DEFINED = 3, 4
_SPECIAL = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}


def tokenizer_from_gguf(path: Path) -> dict[str, bytes]:
    """The tokenizer's files and `generation_config.json`, by name. Raises CheckpointError."""
    facts = read_gguf(path).facts
    model = facts.get("tokenizer.ggml.model")
    with tempfile.TemporaryDirectory() as folder:
        if model == "gpt2":
            _byte_level(path, facts).save_pretrained(folder)
        elif model == "llama":
            _sentence_piece(path).save_pretrained(folder)
        else:
            _refuse(path, f"its tokenizer is of the kind {quoted(str(model))}, which isn't read")
        files = {file.name: file.read_bytes() for file in sorted(Path(folder).iterdir())}
    ids = {f"{name}_token_id": number for name, number in _ids(facts).items() if name != "unk"}
    files["generation_config.json"] = (json.dumps(ids, indent=2) + "\n").encode()
    return files


def _refuse(path: Path, message: str) -> NoReturn:
    help = "take another model's tokenizer: `tokenizer from …`"
    raise CheckpointError("C109", message, path, help)


def _ids(facts: Mapping[str, GgufValue]) -> dict[str, int]:
    """The special tokens' numbers, those that the file says."""
    size = len(_items(facts, "tokens"))
    given = {name: facts.get(f"tokenizer.ggml.{key}_token_id") for name, key in _SPECIAL.items()}
    return {name: n for name, n in given.items() if isinstance(n, int) and 0 <= n < size}


def _items(facts: Mapping[str, GgufValue], name: str) -> tuple[Any, ...]:
    found = facts.get(f"tokenizer.ggml.{name}", ())
    return found if isinstance(found, tuple) else ()


def _byte_level(path: Path, facts: Mapping[str, GgufValue]) -> Any:
    from transformers import PreTrainedTokenizerFast

    tokens = _items(facts, "tokens")
    context = facts.get(f"{facts.get('general.architecture')}.context_length")
    special = {f"{name}_token": tokens[number] for name, number in _ids(facts).items()}
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call] # transformers has no types
        tokenizer_object=_pieces(path, facts),
        chat_template=facts.get("tokenizer.chat_template"),
        model_max_length=context,
        clean_up_tokenization_spaces=False,
        **special,
    )


def _pieces(path: Path, facts: Mapping[str, GgufValue]) -> "Tokenizer":
    """Byte-level BPE, with the special tokens and the token that begins a text."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers

    tokens, kinds = _items(facts, "tokens"), _items(facts, "token_type")
    if len(kinds) != len(tokens) or not all(isinstance(token, str) for token in tokens):
        _refuse(path, f"its tokenizer has {len(tokens)} tokens of {len(kinds)} kinds")
    halves = (str(merge).partition(" ") for merge in _items(facts, "merges"))
    merges = [(first, second) for first, _, second in halves]
    ids = {token: i for i, token in enumerate(tokens)}
    pre = facts.get("tokenizer.ggml.pre")
    try:
        model = models.BPE(ids, merges, ignore_merges=pre in _IGNORE_MERGES)
    except Exception as error:  # noqa: BLE001 (tokenizers raises nothing else)
        _refuse(path, f"its tokenizer's merges don't go with its tokens: {error}")
    tokenizer = Tokenizer(model)
    if pre == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = _split(path, facts)
    tokenizer.decoder = decoders.ByteLevel()
    pairs = list(zip(tokens, kinds, strict=True))
    control = [AddedToken(t, special=True, normalized=False) for t, k in pairs if k == _CONTROL]
    tokenizer.add_special_tokens(control)
    tokenizer.add_tokens([AddedToken(t, normalized=False) for t, k in pairs if k == _DEFINED])
    _add_begin(tokenizer, facts)
    return tokenizer


def _add_begin(tokenizer: "Tokenizer", facts: Mapping[str, GgufValue]) -> None:
    """Begin each text with its token, where the file says so, or its kind does."""
    from tokenizers import processors

    default = facts.get("tokenizer.ggml.pre") in _IGNORE_MERGES
    number = _ids(facts).get("bos")
    if number is None or facts.get("tokenizer.ggml.add_bos_token", default) is not True:
        return
    begin = _items(facts, "tokens")[number]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=[begin, "$A"],
        pair=[begin, "$A", f"{begin}:1", "$B:1"],
        special_tokens=[(begin, number)],
    )


def _split(path: Path, facts: Mapping[str, GgufValue]) -> Any:
    from tokenizers import Regex, pre_tokenizers

    name = facts.get("tokenizer.ggml.pre", "gpt-2")
    if not isinstance(name, str) or name not in _SPLITS:
        known = listed(map(quoted, _SPLITS))
        message = f"its tokenizer splits texts as {quoted(str(name))} does; known are {known}"
        _refuse(path, message)
    patterns = _SPLITS[name]
    # Two ways to split are transformers' own, by which a tokenizer is known again.
    if patterns in {_GPT2, _DIGITS}:
        level = pre_tokenizers.ByteLevel(add_prefix_space=False)
        digits = pre_tokenizers.Digits(individual_digits=True)
        return level if patterns == _GPT2 else pre_tokenizers.Sequence([digits, level])
    splits = [pre_tokenizers.Split(Regex(each), "isolated") for each in patterns]
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return pre_tokenizers.Sequence([*splits, level])


def _sentence_piece(path: Path) -> Any:
    """Llama's first tokenizer, as transformers converts it."""
    try:
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(
            path.parent, gguf_file=path.name, trust_remote_code=False
        )
    except ImportError as error:
        message = "its tokenizer is converted by the packages 'gguf' and 'sentencepiece'"
        raise CheckpointError("C110", message, path, how_to_install("gguf")) from error
