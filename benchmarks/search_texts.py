"""Texts of `benchmarks/search_family.py` in three domains, for the search and held out.

General text, maths and code come from the named files. Without files they are the family's
conversations and problems, and the standard library's modules.
"""

import hashlib
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerBase

sys.path.insert(0, str(Path(__file__).parents[1] / "examples" / "family"))

from texts import arithmetic, conversation, standard_library

TOKENS = 128
SEEN, HELD = 3, 24
"""Numbers of texts of each domain for the search, and held out."""
CALIBRATION = 60
"""Calibration texts of each domain."""

Sides = tuple[list[str], list[str]]
"""Texts for the search, and held out."""


def general(path: Path | None) -> Sides:
    """Return articles of a file with ` = Title = ` lines, or rows of text; else conversations."""
    if path is None:
        return _asked(conversation.texts)
    if path.suffix == ".jsonl":
        return _halves([str(row["text"]) for row in rows_of(path)])
    articles = [""]
    for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
        if line.startswith(" = ") and not line.startswith(" = = "):
            articles.append("")
        articles[-1] += line
    return _halves([one for one in articles if one.strip()])


def maths(path: Path | None) -> Sides:
    """Return problems of a file with rows of `question` and `answer`, or the demo's."""
    if path is None:
        return _asked(arithmetic.texts)
    return _halves([f"{row['question']}\n{row['answer']}" for row in rows_of(path)])


def code() -> Sides:
    """Return the standard library's modules, split by name, without their first lines."""
    seen, held = (standard_library.modules(apart) for apart in (False, True))
    return [_late(file) for file in seen], [_late(file) for file in held]


def _late(file: Path) -> str:
    return file.read_text("utf-8")[1500:]


def domains(prose: Path | None = None, problems: Path | None = None) -> dict[str, Sides]:
    """Return the texts of each domain."""
    return {"general": general(prose), "maths": maths(problems), "code": code()}


def _asked(texts: Callable[[int, bool], list[Any]]) -> Sides:
    seen, held = (
        [f"{one.prompt}\n{one.answer}" for one in texts(400, apart)] for apart in (False, True)
    )
    return seen, held


def rows_of(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a JSON Lines file; blank lines are left out."""
    with path.open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines if line.strip()]


def texts_of(path: Path) -> list[str]:
    """Return the rows of a JSON Lines file as texts: a text, or a prompt with its response."""
    return [row.get("text") or row["prompt"] + row["response"] for row in rows_of(path)]


def _halves(texts: Sequence[str]) -> Sides:
    return list(texts[::2]), list(texts[1::2])


def stretches(
    texts: Sequence[str], count: int, tokenizer: PreTrainedTokenizerBase, seed: int
) -> Iterator[str]:
    """Yield texts of `TOKENS` tokens; a short text is joined with the next."""
    order = sorted(range(len(texts)), key=lambda n: hashlib.sha256(f"{seed} {n}".encode()).digest())
    tokens: list[int] = []
    left = iter(order)
    for _ in range(count):
        tokens = []
        while len(tokens) < TOKENS:
            tokens += tokenizer.encode(texts[next(left)].strip() + "\n")
        yield str(tokenizer.decode(tokens[:TOKENS]))


def write_texts(
    folder: Path, base: Path, prose: Path | None = None, problems: Path | None = None
) -> list[Path]:
    """Write a file for each domain, the search's texts first, and a calibration file."""
    tokenizer = AutoTokenizer.from_pretrained(base)
    files, rest = [], []
    for name, (seen, held) in domains(prose, problems).items():
        found = list(stretches(seen, SEEN + CALIBRATION, tokenizer, 0)) if len(seen) > 200 else None
        first = found[:SEEN] if found else list(stretches(seen, SEEN, tokenizer, 0))
        rest += found[SEEN:] if found else _others(seen, tokenizer)
        rows = [*first, *stretches(held, HELD, tokenizer, 1)]
        files.append(_write(folder / f"{name}.jsonl", rows))
    _write(folder / "calibration.jsonl", rest)
    return files


def _others(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Return stretches from the middles of long texts, after the search's beginnings."""
    found = []
    for text in texts:
        tokens = tokenizer.encode(text)[2 * TOKENS :]
        found += [tokenizer.decode(tokens[at : at + TOKENS]) for at in (0, TOKENS, 2 * TOKENS)]
    return [str(one) for one in found if one][:CALIBRATION]


def _write(file: Path, rows: Sequence[str]) -> Path:
    file.write_text("".join(json.dumps({"text": row}) + "\n" for row in rows), encoding="utf-8")
    return file
