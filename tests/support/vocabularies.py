"""Small tokenizers of the kinds that llama.cpp has: what splits a text first, and how it merges."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from tokenizers.trainers import BpeTrainer

from gptailor.checkpoint.formats.gguf.reader import LLAMA3_SPLIT, QWEN_SPLIT, TEKKEN_SPLIT

SPLITS = {
    "gpt-2": (None, False),
    "smollm": (None, False),
    "qwen2": (QWEN_SPLIT, False),
    "llama-bpe": (LLAMA3_SPLIT, True),
    "smaug-bpe": (LLAMA3_SPLIT, False),
    "tekken": (TEKKEN_SPLIT, True),
}
"""By llama.cpp's names: the pattern, and whether a word that is a token stays whole."""

TEXT = (
    "The three most important things to know about growing tomatoes are sun, water and patience. "
    "don't we'll I'M It's 12345 1999 3.14 naïve café 日本語 テキスト x=[1,2]; y={'a': 'b'} // c\n\n"
    "def fibonacci(n):\n    return n if n < 2 else fibonacci(n - 1) + fibonacci(n - 2)\r\n\t\tEnd. "
    "CamelCase snake_case ALLCAPS über straße   spaces and the other things that are about us "
)
TRICKY = [
    "Hello", " leading", "  two spaces", "tabs\tand\nnewlines\n\n\n end ",
    "12345 67,890 3.14", "don't DON'T I'll WE'RE", "naïve café Ünïcödé",
    "日本語テキスト 한국어 العربية", "🙂👩‍👧 e\ufe0f",
    "x=[1,2];y={'a':b}//c", "<|im_start|>user\nHi<|im_end|>\n", "a\u00a0b\u2003c", "\r\n\r\nWin\r",
    "", "ሀለ", "\U0001d4b3 ∑∫", "a" * 20, "_snake_case__ CamelCase HTTPServer", "\x00\x01",
    "½ ² Ⅷ ١٢٣", "/path/to//file\n/", "...!!!???\n\n", "x   \n   y", "ALLCAPSlower aB",
]  # fmt: skip
"""Texts that tokenizers split differently."""

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def write_byte_level(
    folder: Path, name: str = "smollm", *, begins: bool = False, size: int = 360
) -> Path:
    """A byte-level tokenizer, trained on a few lines, that splits as llama.cpp's of that name."""
    pattern, whole = SPLITS[name]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = _split(name, pattern)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = BpeTrainer(vocab_size=size - 4, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator([TEXT] * 3, trainer)
    state = json.loads(tokenizer.to_str())
    state["model"]["ignore_merges"] = whole
    tokenizer = Tokenizer.from_str(json.dumps(state))
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in SPECIAL])
    tokenizer.add_tokens([AddedToken("<tool>", special=False, normalized=False)])
    if begins:
        _begin(tokenizer, SPECIAL[0])
    return _written(folder, tokenizer, *SPECIAL[:3:2])


def _split(name: str, pattern: str | None) -> Any:
    if pattern is not None:
        split = pre_tokenizers.Split(Regex(pattern), "isolated")
        level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        return pre_tokenizers.Sequence([split, level])
    level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    digits = pre_tokenizers.Digits(individual_digits=True)
    return level if name == "gpt-2" else pre_tokenizers.Sequence([digits, level])


def write_pieces(folder: Path, *, prefix: bool = True, size: int = 700) -> Path:
    """A tokenizer as SentencePiece's are when they are converted: all merges, best piece first."""
    text = TEXT.replace(" ", "▁")
    letters = sorted({*text, *"abcdefghijklmnopqrstuvwxyz"})
    counts: Counter[str] = Counter()
    for length in range(2, 8):
        counts.update(text[at : at + length] for at in range(len(text) - length + 1))
    # Not across words: a space stands at a piece's beginning alone, or in a run of spaces.
    results = [piece for piece, n in counts.items() if n > 1 and _is_piece(piece)]
    ordered = sorted(results, key=lambda piece: (-counts[piece] * len(piece), piece))
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{n:02X}>" for n in range(256)), *letters]
    pieces = set(letters)
    for piece in ordered:
        if any(piece[:at] in pieces and piece[at:] in pieces for at in range(1, len(piece))):
            pieces.add(piece)
            tokens.append(piece)
    tokens = tokens[:size]
    ids = {token: i for i, token in enumerate(tokens)}
    merges = [
        (token[:at], token[at:])
        for token in tokens[259:]
        for at in range(1, len(token))
        if token[:at] in ids and token[at:] in ids
    ]
    model = models.BPE(ids, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    tokenizer = Tokenizer(model)
    state = json.loads(tokenizer.to_str())
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    prepend = {"type": "Prepend", "prepend": "▁"}
    steps = [prepend, replace] if prefix else [replace]
    state["normalizer"] = {"type": "Sequence", "normalizers": steps}
    tokenizer = Tokenizer.from_str(json.dumps(state))
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    tokenizer.add_special_tokens(
        [AddedToken(t, special=True, normalized=False) for t in ("<unk>", "<s>", "</s>")]
    )
    _begin(tokenizer, "<s>")
    return _written(folder, tokenizer, "<s>", "</s>", unk_token="<unk>")


def _is_piece(piece: str) -> bool:
    rest = piece.lstrip("▁")
    return "▁" not in rest and "\n" not in piece and (not rest or piece.count("▁") < 2)


def _begin(tokenizer: Tokenizer, token: str) -> None:
    tokenizer.post_processor = processors.TemplateProcessing(
        single=[token, "$A"], special_tokens=[(token, tokenizer.token_to_id(token))]
    )


def _written(folder: Path, tokenizer: Tokenizer, begin: str, end: str, **special: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": begin, "eos_token": end,
        "clean_up_tokenization_spaces": False, "chat_template": TEMPLATE, **special,
    }  # fmt: skip
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return folder
