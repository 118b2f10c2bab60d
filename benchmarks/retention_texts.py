"""Texts of `benchmarks/retention.py` for the search, for healing, and for judgement.

They come from a folder of public data (`text/`, `math/`, `chat/`, `choice/`). Without one they are
the demo's problems and conversations, and the standard library. The sources of each domain
(articles, problems, modules, rows) are split in two: held-out texts, and texts for the search and
for healing. These two sets are disjoint too.
"""

import json
import random
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerBase

sys.path.insert(0, str(Path(__file__).parents[1] / "examples" / "family"))

from texts import Text, arithmetic, conversation

from benchmarks.search_texts import Sides, code, general, maths, rows_of

TOKENS = 128
"""Tokens of each search text and held-out text."""
STRETCH = 1800
"""Most characters of a text for healing."""
LONGEST = 20_000
"""Characters read from one source."""
LEARNED = {"arithmetic": 1000, "conversation": 1600}
"""Number of the demo's texts for healing, without public data."""
ASKED = 400
"""Number of the demo's held-out texts."""
FILES = {
    "text": "text/wikitext2_valid.txt",
    "maths": "math/gsm8k_train.jsonl",
    "chat": "chat/dolly_hhrlhf_train_small.jsonl",
}
TASKS = ("piqa", "arc_easy")
OPTIONS = 4
"""Answers to each question made from the demo's texts."""


@dataclass(frozen=True)
class Amounts:
    """Numbers of search texts and held-out texts of a domain, questions, and healing tokens.

    `shown` is the number of tokens of a continuation.
    """

    seen: int
    held: int
    questions: int
    tokens: int
    shown: int


@dataclass(frozen=True)
class Files:
    """Paths of the texts: the search's, those for healing, and the held-out files by name."""

    search: Path
    learned: Path
    held: Mapping[str, Path]
    choices: Mapping[str, Path]


def write_files(folder: Path, model: Path, data: Path | None, amounts: Amounts) -> Files:
    """Write all texts into a folder, always the same ones."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = AutoTokenizer.from_pretrained(model)
    seen, left, held = [], {}, {}
    for name, (ours, apart) in sides(data).items():
        order = list(ours)
        random.Random(f"{name} ours").shuffle(order)
        taken = list(stretches(order, amounts.seen, tokenizer))
        seen.append([text for text, _ in taken])
        left[name] = order[1 + max(number for _, number in taken) :] or order
        others = list(apart)
        random.Random(f"{name} apart").shuffle(others)
        rows = [{"text": text} for text, _ in stretches(others, amounts.held, tokenizer)]
        held[name] = _write(folder / f"held-{name}.jsonl", rows)
    mixed = [{"text": text} for some in zip(*seen, strict=True) for text in some]
    enough = 8 * amounts.tokens
    return Files(
        _write(folder / "search.jsonl", mixed),
        _write(folder / "learned.jsonl", list(learned(left, enough))),
        held,
        {name: _write(folder / f"choice-{name}.jsonl", rows)
         for name, rows in questions(data, amounts.questions).items()},
    )  # fmt: skip


def sides(data: Path | None) -> dict[str, Sides]:
    """Return each domain's texts: for search and healing, and held out."""
    if data is None:
        makers = {"arithmetic": arithmetic, "conversation": conversation}
        found = {
            name: (_joined(maker.texts(LEARNED[name], False)), _joined(maker.texts(ASKED, True)))
            for name, maker in makers.items()
        }
        return {**found, "python": code()}
    rows = [f"{row['prompt']}{row['response']}" for row in rows_of(data / FILES["chat"])]
    return {
        "text": general(data / FILES["text"]),
        "maths": maths(data / FILES["maths"]),
        "code": code(),
        "chat": (rows[::2], rows[1::2]),
    }


def stretches(
    texts: Sequence[str], count: int, tokenizer: PreTrainedTokenizerBase
) -> Iterator[tuple[str, int]]:
    """Yield texts of `TOKENS` tokens, each with the index of its last source.

    The beginnings of all sources come first, then their later parts. Short texts are joined.
    """
    encoded: dict[int, list[int]] = {}
    tokens: list[int] = []
    for start in range(0, LONGEST, TOKENS):
        for number, text in enumerate(texts):
            if start == 0:
                encoded[number] = tokenizer.encode(text[:LONGEST].strip() + "\n")
            tokens += encoded[number][start : start + TOKENS]
            if len(tokens) >= TOKENS:
                yield str(tokenizer.decode(tokens[:TOKENS])), number
                tokens = []
                count -= 1
            if not count:
                return
    raise ValueError(f"there is too little text: {count} stretches of {TOKENS} tokens are missing")


def learned(left: Mapping[str, Sequence[str]], enough: int) -> Iterator[dict[str, str]]:
    """Yield texts of all domains, always from the domain with the fewest characters so far."""
    pieces = {name: _pieces(name, texts) for name, texts in left.items()}
    given = dict.fromkeys(pieces, 0)
    while pieces and sum(given.values()) < enough:
        name = min(pieces, key=given.__getitem__)
        if (text := next(pieces[name], None)) is None:
            del pieces[name]
        else:
            given[name] += len(text)
            yield {"text": text}


def _pieces(name: str, texts: Sequence[str]) -> Iterator[str]:
    cut = [text[at : at + STRETCH] for text in texts for at in range(0, len(text), STRETCH)]
    random.Random(f"{name} pieces").shuffle(cut)
    return (text for text in cut if text.strip())


def questions(data: Path | None, count: int) -> dict[str, list[dict[str, Any]]]:
    """Return questions with choices by task; the demo's use answers to other questions."""
    if data is not None:
        found = {}
        for task in TASKS:
            rows = rows_of(data / "choice" / f"{task}.jsonl")
            random.Random(task).shuffle(rows)
            found[task] = rows[:count]
        return found
    makers = {"arithmetic": arithmetic, "conversation": conversation}
    return {name: _asked(maker.texts(ASKED, True), count) for name, maker in makers.items()}


def _asked(texts: Sequence[Text], count: int) -> list[dict[str, Any]]:
    chance, found = random.Random("questions"), []
    for text in texts[:count]:
        others = sorted({one.answer for one in texts} - {text.answer})
        choices = chance.sample(others, OPTIONS - 1)
        gold = chance.randrange(OPTIONS)
        choices.insert(gold, text.answer)
        found.append({"query": text.prompt + "\n", "choices": choices, "gold": gold})
    return found


def _joined(texts: Sequence[Text]) -> list[str]:
    return [f"{one.prompt}\n{one.answer}" for one in texts]


def _write(file: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file
