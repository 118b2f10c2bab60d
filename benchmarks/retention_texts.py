"""The texts of `benchmarks/retention.py`: what a search sees, what is learned from, what judges.

They are of a folder of public data (`text/`, `math/`, `chat/`, `choice/`), or without one of what
the project and any machine have: the demo's problems and conversations, and the standard library.
Each domain's texts are parted by articles, problems, modules or rows: on one side are the texts
that judge, on the other those of the search and, apart from these, those that are learned from.
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
"""Of each text that a search sees, or that judges."""
STRETCH = 1800
"""Characters of a text that is learned from, at most."""
LONGEST = 20_000
"""Characters of one source that are read."""
LEARNED = {"arithmetic": 1000, "conversation": 1600}
"""The demo's texts that are learned from, where no data is given."""
ASKED = 400
"""The demo's texts on the other side."""
FILES = {
    "text": "text/wikitext2_valid.txt",
    "maths": "math/gsm8k_train.jsonl",
    "chat": "chat/dolly_hhrlhf_train_small.jsonl",
}
TASKS = ("piqa", "arc_easy")
OPTIONS = 4
"""Answers to each question that is made of the demo's texts."""


@dataclass(frozen=True)
class Amounts:
    """Texts of each domain for the search and for the judge, questions, tokens to learn from.

    `shown` is how many tokens a continuation has.
    """

    seen: int
    held: int
    questions: int
    tokens: int
    shown: int


@dataclass(frozen=True)
class Files:
    """Where the texts are: the search's, those that are learned from, and by name what judges."""

    search: Path
    learned: Path
    held: Mapping[str, Path]
    choices: Mapping[str, Path]


def write_files(folder: Path, model: Path, data: Path | None, amounts: Amounts) -> Files:
    """Make all of them in a folder, the same ones each time."""
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
    """Each domain's texts: ours, and those apart that judge."""
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
    """So many texts of `TOKENS` tokens, each with the number of the last source that it is of.

    First the beginnings of all sources, then what follows them. Short ones are joined.
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
    """Texts of all domains, in turn those of which there were the fewest characters so far."""
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
    """Questions with choices, by task; of the demo's texts each with others' answers beside."""
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
