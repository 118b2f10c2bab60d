"""Texts of `benchmarks/retention.py`: `benchmarks/heal.py`'s texts, and questions with choices.

The last rows of each domain's first source are the search's. Methods learn from the other rows. The
held-out rows of that source, and the domain's other source, judge.
"""

import random
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from benchmarks import heal_texts
from benchmarks.heal_texts import SOURCES, mixed, write
from benchmarks.search_texts import rows_of

TASKS = ("piqa", "arc_easy")
GENERATED = ("sums", "MBPP", "loops")
"""Tasks of `benchmarks/heal.py` with answers that are generated here too."""


@dataclass(frozen=True)
class Amounts:
    """Numbers of search texts of a domain, of held-out texts of a source, and of questions.

    `problems` are generated answers of each kind, `continuations` the answers that are searched for
    loops, `tokens` the tokens of healing.
    """

    seen: int
    held: int
    questions: int
    problems: int
    continuations: int
    tokens: int


@dataclass(frozen=True)
class Files:
    """Paths of the texts: the search's, those for healing, and held-out texts by source.

    `choices` has questions with choices by task; `problems` are answered by generated text.
    """

    search: Path
    learned: Path
    held: Mapping[str, Path]
    choices: Mapping[str, Path]
    problems: Path


def write_files(folder: Path, model: Path, data: Path, amounts: Amounts) -> Files:
    """Write all texts into a folder, always the same ones."""
    wanted = heal_texts.Amounts(amounts.held, amounts.problems, amounts.continuations)
    texts = heal_texts.write_files(folder, model, data, wanted)
    own = [rows_of(texts.learned[domain]) for domain in SOURCES]
    seen = zip(*(one[-amounts.seen :] for one in own), strict=True)
    problems = [row for row in rows_of(texts.problems) if row["task"] in GENERATED]
    return Files(
        write(folder / "search.jsonl", chain.from_iterable(seen)),
        write(folder / "learned.jsonl", mixed([one[: -amounts.seen] for one in own])),
        texts.judges,
        {task: questions(folder, data, task, amounts.questions) for task in TASKS},
        write(folder / "generated.jsonl", problems),
    )


def questions(folder: Path, data: Path, task: str, count: int) -> Path:
    """Write drawn questions of a task."""
    rows = rows_of(data / "choice" / f"{task}.jsonl")
    random.Random(task).shuffle(rows)
    return write(folder / f"choice-{task}.jsonl", rows[:count])
