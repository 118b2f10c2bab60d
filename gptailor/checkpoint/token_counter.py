"""Counts of a text's tokens by a checkpoint's `tokenizer.json`, without transformers."""

from collections.abc import Callable

from gptailor.checkpoint.folder import Checkpoint, tokenizer_files


def token_counter(checkpoint: Checkpoint) -> Callable[[str], int] | None:
    """Return a function that counts the tokens of a text, without special tokens around it.

    Return None without the package `tokenizers`, which transformers brings, and for a tokenizer
    that is not on this machine, or that has no `tokenizer.json` that the package reads.
    """
    files = () if checkpoint.nested else tokenizer_files(checkpoint)
    path = next((path for path in files if path.name == "tokenizer.json"), None)
    if path is None:
        return None
    try:
        from tokenizers import Tokenizer
    except ImportError:
        return None
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception:  # noqa: BLE001 (the package raises `Exception`; a use of the file reports it)
        return None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return lambda text: len(tokenizer.encode(text, add_special_tokens=False).ids)
