"""Greedy answers of a compiled folder for `benchmarks/heal.py`, and their scores.

- A number is right if it is the last number of the answer.
- Code is the imports, assignments and definitions of the first fenced block. An answer without a
  block is read as code, up to the last line that leaves it valid Python. It writes code if a
  function is
  defined, and passes if all tests pass. Tests run in a process with limits of time, memory and file
  sizes, but without a sandbox.
- A continuation loops if some run of four words and punctuation marks occurs four times or more.
  Its repeats are the share of its runs that occurred before.
"""

import ast
import re
import subprocess
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from statistics import fmean
from typing import Any, Final

import torch
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from gptailor.evaluation.objectives.generate import greedy
from gptailor.evaluation.objectives.tokens import Prompt, TokenEncoder
from gptailor.evaluation.scores import mean
from gptailor.program.devices import halves_are_quick

BATCH_TOKENS: Final = 8192
RUN, TIMES = 4, 4
"""A text loops if a run of this many words and marks occurs this often."""
SECONDS: Final = 5
"""Seconds of a processor that an answer's code may take."""
DEFINING: Final = (
    ast.Import, ast.ImportFrom, ast.Assign, ast.AnnAssign, ast.ClassDef, ast.FunctionDef,
)  # fmt: skip
"""Statements of an answer's code that run before its tests."""
PASSED: Final = "all tests passed"
LIMITED: Final = f"""\
import resource, sys
for kind, most in (("CPU", {SECONDS}), ("AS", 2**30), ("FSIZE", 2**20), ("CORE", 0)):
    resource.setrlimit(getattr(resource, "RLIMIT_" + kind), (most, most))
exec(compile(sys.stdin.read(), "answer", "exec"), {{"__name__": "answer"}})
print({PASSED!r})
"""
"""A program that runs code from standard input within limits."""

Answers = dict[str, list[tuple[str, float]]]
"""The model's texts by measure, each with its score from 0 to 1."""


def folder_answers(folder: Path, rows: Sequence[Mapping[str, Any]], device: str) -> Answers:
    """Return a folder's answers to the problems. Without problems no model is loaded."""
    if not rows:
        return {}
    dtype = "auto" if halves_are_quick(device) else torch.float32
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    nn.Module.to(model, device)
    return answers_of(model.eval(), AutoTokenizer.from_pretrained(folder), rows)


def answers_of(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: Sequence[Mapping[str, Any]]
) -> Answers:
    """Return the likeliest text after each problem's prompt, with its scores."""
    encoder = TokenEncoder(tokenizer)
    prompts = [Prompt(encoder.prompt(row["prompt"]), row["most"]) for row in rows]
    found: Answers = defaultdict(list)
    for row, text in zip(rows, greedy(model, tokenizer, prompts, BATCH_TOKENS), strict=True):
        for measure, value in scores(row, text).items():
            found[measure].append((text, float(value)))
    return dict(found)


def answer_cell(of: Sequence[Mapping[str, Sequence[tuple[str, float]]]], measure: str) -> str:
    """Return the mean of a measure over all seeds, with its error over problems."""
    by_problem = zip(*([score for _, score in answers[measure]] for answers in of), strict=True)
    found = mean([fmean(scores) for scores in by_problem])
    return f"{100 * found.value:.0f} ± {100 * found.stderr:.0f} %"


def scores(row: Mapping[str, Any], text: str) -> dict[str, float]:
    """Return the scores of an answer by measure."""
    if "answer" in row:
        return {row["task"]: last_number(text) == float(row["answer"])}
    if "tests" in row:
        program = program_of(text)
        passed = bool(program) and passes(program, row["tests"])
        return {f"{row['task']} written": "def " in program, f"{row['task']} passed": passed}
    return repetition(text)


def last_number(text: str) -> float | None:
    """Return the last number of a text."""
    found = re.findall(r"(?<!\d)-?\d+(?:\.\d+)?", text.replace(",", ""))
    return float(found[-1]) if found else None


def program_of(text: str) -> str:
    """Return the imports, assignments and definitions of an answer's code, or nothing."""
    fenced = re.search(r"```\w*\n(.*?)(?:```|\Z)", text, re.DOTALL)
    lines = (fenced[1] if fenced else text).splitlines()
    for end in range(len(lines), 0, -1):  # the limit of tokens may cut the last lines
        with suppress(SyntaxError, ValueError):
            nodes = ast.parse("\n".join(lines[:end])).body
            return "\n".join(ast.unparse(node) for node in nodes if isinstance(node, DEFINING))
    return ""


def passes(code: str, tests: str) -> bool:
    """Run code and then its tests; return whether both end without an error."""
    with tempfile.TemporaryDirectory(prefix="gptailor-answer-") as folder:
        printed = Path(folder) / "printed"
        try:
            with printed.open("wb") as output:
                done = subprocess.run(
                    [sys.executable, "-I", "-c", LIMITED],
                    input=f"{code}\n{tests}\n".encode(), stdout=output, stderr=subprocess.DEVNULL,
                    cwd=folder, env={}, timeout=4 * SECONDS, check=False,
                )  # fmt: skip
        except subprocess.TimeoutExpired:
            return False
        return done.returncode == 0 and printed.read_bytes().strip().endswith(PASSED.encode())


def repetition(text: str) -> dict[str, float]:
    """Return whether a continuation loops, and the share of its runs that occurred before."""
    units = re.findall(r"\w+|[^\w\s]", text)
    runs = Counter(zip(*(units[at:] for at in range(RUN)), strict=False))
    looping = max(runs.values(), default=0) >= TIMES
    return {"loops": looping, "repeats": 1 - len(runs) / runs.total() if runs else 0.0}
