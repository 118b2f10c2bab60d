"""Texts of `benchmarks/heal.py`: four domains of two public sources each, and problems.

Plans learn from the first source of each domain. Parts of it are held out: every tenth article,
problem or chat, and one module in six. The second source only judges. Texts are in pieces, and
questions are in the model's chat template with the token that ends a turn after the answer.
"""

import json
import random
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

from transformers import AutoTokenizer, PreTrainedTokenizerBase

sys.path.insert(0, str(Path(__file__).parents[1] / "examples" / "family"))

from texts import Text, arithmetic

from benchmarks.search_texts import code, general, rows_of
from benchmarks.second_family import held_texts

SOURCES: Final = {
    "WIKI": ("WikiText", "C4"),
    "MATHS": ("GSM8K", "SVAMP"),
    "CODE": ("library", "MBPP"),
    "CHAT": ("Dolly", "Self-Instruct"),
}
"""The source that plans learn from and the source that judges, for each domain."""
ALL: Final = "TEXT"
"""The name of the file with all four domains."""
ASKED: Final = "PROMPTS"
"""The name of the file with questions alone."""
NAMES: Final = (ALL, *SOURCES, ASKED)
"""Names that stand for files in the statements of a variant."""
PIECE: Final = 1200
"""Characters of a piece of text, at most."""
HELD: Final = 10
"""One text in this many is held out of a source."""
BEGINNING: Final = 30
"""Words of a web page that a model continues."""
ANSWER, CONTINUATION = 160, 200
"""Tokens of an answer and of a continuation, at most."""


@dataclass(frozen=True)
class Amounts:
    """Numbers of texts of each source, of problems of each kind, and of continuations."""

    texts: int
    problems: int
    continuations: int


@dataclass(frozen=True)
class Files:
    """Files by the names of variants, files by source that judge, and the file of problems."""

    learned: Mapping[str, Path]
    judges: Mapping[str, Path]
    problems: Path


Item = TypeVar("Item")
Parts = tuple[list[Text], list[Text], list[Text]]
"""Texts to learn from, held-out texts of the same source, and texts of the other source."""


def write_files(folder: Path, model: Path, data: Path, amounts: Amounts) -> Files:
    """Write the missing files. The same data and amounts give the same files."""
    sources = [source for pair in SOURCES.values() for source in pair]
    files = Files(
        {name: folder / f"{name.lower()}.jsonl" for name in NAMES},
        {source: folder / f"judge-{source}.jsonl" for source in sources},
        folder / "problems.jsonl",
    )
    if files.problems.exists():  # the last one
        return files
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = AutoTokenizer.from_pretrained(model)
    domains = parts_of(data)
    learned = {}
    for domain, (own, *judging) in domains.items():
        learned[domain] = [row_of(text, tokenizer) for text in own]
        for source, texts in zip(SOURCES[domain], judging, strict=True):
            rows = [row_of(text, tokenizer) for text in texts[: amounts.texts]]
            write(files.judges[source], rows)
    questions = zip(domains["MATHS"][0], domains["CHAT"][0], strict=False)
    learned[ASKED] = [{"prompt": text.prompt} for pair in questions for text in pair]
    learned[ALL] = mixed([learned[domain] for domain in SOURCES])
    for name, rows in learned.items():
        write(files.learned[name], rows)
    write(files.problems, problem_rows(domains, data, amounts, tokenizer))
    return files


def parts_of(data: Path) -> dict[str, Parts]:
    """Return the parts of each domain, each in a drawn order."""
    articles = [text for half in general(data / "text/wikitext2_valid.txt") for text in half]
    own, held = parted(articles)
    pages = [row["text"] for row in rows_of(data / "text/c4_demo.jsonl")]
    problems = [Text(r["question"], r["answer"]) for r in rows_of(data / "math/gsm8k_train.jsonl")]
    chats = [
        Text(instruction(row["prompt"]), row["response"].strip())
        for row in rows_of(data / "chat/dolly_hhrlhf_train_small.jsonl")
    ]
    tasks = [
        Text(f"{task['instruction']}\n{one['input']}".strip(), one["output"])
        for task in rows_of(data / "chat/self_instruct_seed_tasks.jsonl")
        for one in task["instances"][:1]
    ]
    modules, other_modules = code()
    other = held_texts(data)
    found = {
        "WIKI": (pieces(own), pieces(held), pieces(pages)),
        "MATHS": (*parted(problems), other["maths"]),
        "CODE": (pieces(modules), pieces(other_modules), other["code"]),
        "CHAT": (*parted(chats), tasks),
    }
    for domain, parts in found.items():
        for texts in parts:
            random.Random(domain).shuffle(texts)
    return found


def parted(texts: Sequence[Item]) -> tuple[list[Item], list[Item]]:
    """Return the texts to learn from, and every tenth text."""
    own = [text for number, text in enumerate(texts) if number % HELD]
    return own, [*texts[::HELD]]


def pieces(texts: Sequence[str]) -> list[Text]:
    """Return texts in pieces of at most `PIECE` characters, without the shorter half of pieces."""
    cut = [text[at : at + PIECE] for text in texts for at in range(0, len(text), PIECE)]
    return [Text("", piece) for piece in cut if len(piece.strip()) > PIECE // 2]


def instruction(prompt: str) -> str:
    """Return the user's words of a row of Dolly."""
    return prompt.partition("### Instruction:\n")[2].rpartition("### Response:")[0].strip()


def asked(question: str, tokenizer: PreTrainedTokenizerBase) -> str:
    """Return a question as the model reads it, with the answer's beginning."""
    if not tokenizer.chat_template:
        return f"{question}\n"
    turn = [{"role": "user", "content": question}]
    return str(tokenizer.apply_chat_template(turn, add_generation_prompt=True, tokenize=False))


def row_of(text: Text, tokenizer: PreTrainedTokenizerBase) -> dict[str, str]:
    """Return a text as a row of a file."""
    if not text.prompt:
        return {"text": text.answer}
    prompt = asked(text.prompt, tokenizer)
    return {"prompt": prompt, "response": f"{text.answer}{tokenizer.eos_token or ''}"}


def mixed(domains: Sequence[Sequence[dict[str, str]]]) -> list[dict[str, str]]:
    """Return rows of all domains in a drawn order, with as many characters of each."""
    least = min(sum(map(size_of, rows)) for rows in domains)
    found = []
    for rows in domains:
        size = 0
        for row in rows:
            if (size := size + size_of(row)) > least:
                break
            found.append(row)
    random.Random(ALL).shuffle(found)
    return found


def size_of(row: Mapping[str, str]) -> int:
    """Return the characters of a row."""
    return sum(map(len, row.values()))


def problem_rows(
    domains: Mapping[str, Parts],
    data: Path,
    amounts: Amounts,
    tokenizer: PreTrainedTokenizerBase,
) -> list[dict[str, Any]]:
    """Return prompts by task, each with the reference of its answer.

    An answer is compared with a number, or run with tests. The beginnings of web pages and
    Self-Instruct's tasks have neither.
    """
    count, half = amounts.problems, amounts.continuations // 2
    word_problems = rows_of(data / "math/svamp.jsonl")
    tasks = rows_of(data / "code/mbpp.jsonl")
    for rows in (word_problems, tasks):
        random.Random("problems").shuffle(rows)
    numbers = {
        "sums": sums(count),
        "problems": [(text.prompt, number_of(text)) for text in arithmetic.texts(count, True)],
        "SVAMP": [(row["context"], row["answer"]) for row in word_problems[:count]],
    }
    rows = [
        {"task": name, "prompt": asked(question, tokenizer), "most": ANSWER, "answer": answer}
        for name, pairs in numbers.items()
        for question, answer in pairs
    ]
    for task in tasks[:count]:
        checks = "\n".join(task["test_list"])
        question = f"{task['text']} Write Python code that passes these tests:\n{checks}"
        tests = "\n".join([task["test_setup_code"], *task["test_list"]])
        prompt = asked(question, tokenizer)
        rows.append({"task": "MBPP", "prompt": prompt, "most": ANSWER, "tests": tests})
    pages = [" ".join(text.answer.split()[:BEGINNING]) for text in domains["WIKI"][2][::-1][:half]]
    chats = domains["CHAT"][2][: amounts.continuations - half]
    for prompt in [*pages, *(asked(text.prompt, tokenizer) for text in chats)]:
        rows.append({"task": "loops", "prompt": prompt, "most": CONTINUATION})
    return rows


def sums(count: int) -> list[tuple[str, str]]:
    """Return sums of two small numbers with their results."""
    drawn = random.Random("sums")
    pairs = [(drawn.randint(2, 12), drawn.randint(2, 12)) for _ in range(count)]
    return [(f"What is {one} + {other}?", str(one + other)) for one, other in pairs]


def number_of(problem: Text) -> str:
    """Return the number in the last line of a worked problem."""
    return problem.answer.rpartition("The answer is ")[2].rstrip(".")


def write(file: Path, rows: Iterable[Mapping[str, Any]]) -> Path:
    """Write rows to a file as JSON Lines, whole or not at all, and return the file."""
    partial = file.with_suffix(".partial")
    partial.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return partial.rename(file)
