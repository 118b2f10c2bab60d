"""`compile --try`: answers of an output and of its base, and their judgements."""

import json
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from gptailor.checkpoint.datasets import read_rows
from gptailor.evaluation.objectives.generate import Continuation
from gptailor.plugins.talk.trial import PROMPTS, judged
from tests.plugins.talk.talker import AFTER, talker
from tests.support.said import Run, in_process

TEMPLATE = "{% for m in messages %}{{ m['content'] }}{{ eos_token }}{% endfor %}"


run = pytest.fixture(in_process)


@pytest.fixture
def here(tmp_path: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a plan that takes the head of a model that loops."""
    talker(tmp_path / "base", {**AFTER, ".": "a"})
    talker(tmp_path / "other", {".": "."})
    (tmp_path / "p.tailor").write_text(
        'tailor 1\nmodel base = "./base"\nmodel other = "./other"\nhead from other\n'
    )
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_try_prints_answers_of_the_output_and_its_base(here: Path, run: Run) -> None:
    done = run("compile", "p.tailor", "-o", "out", "--try")
    assert done.code == 0, done.err
    lines = done.out.splitlines()
    prompts = [row.messages[0]["content"] for row in read_rows(PROMPTS, "opening")]
    assert [line for line in lines if line.strip() in prompts] == [f"  {p}" for p in prompts]
    sign = "    (no end within 96 tokens; loops: 99% of its four-grams occur earlier in it)"
    assert lines.count(sign) == 3
    assert lines[-1] == "out: 0 of 3 end, 3 loop (the base: 3 of 3 end, 0 loop)"
    assert all(len(line) <= 80 for line in lines)


def test_a_failed_trial_is_one_message_after_the_output(
    here: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gptailor.evaluation.objectives.tokens.tokenizer_files", lambda _: {})
    done = run("compile", "p.tailor", "-o", "out", "--try")
    assert done.code
    assert "'out' is written, but it can't be tried: " in done.err
    assert (here / "out" / "config.json").exists()
    done = run("compile", "p.tailor", "-o", "new", "--try", "--dry-run")
    assert (done.code, "--try needs a written output" in done.err) == (2, True)


def test_an_answer_follows_the_template_by_its_end_and_its_tokens(tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(talker(tmp_path / "base", AFTER))
    tokenizer.chat_template = TEMPLATE
    text = tuple(tokenizer.encode("hello", add_special_tokens=False))
    for made, follows, words in (
        (Continuation(text, 2), True, "ends"),
        (Continuation((), 2), True, "ends at once"),
        (Continuation(text, None), False, "no end within 96 tokens"),
        (Continuation(text, 1), False, "ends by <s>, not by the template's </s>"),
        (Continuation((*text, 1, *text, 1), 2), False, "ends; special tokens inside: <s>"),
    ):
        answer = judged(tokenizer, made, 2)
        assert (answer.follows, answer.words) == (follows, words)


def test_the_prompts_are_rows_of_the_objectives() -> None:
    rows = [json.loads(line) for line in PROMPTS.read_text().splitlines()]
    assert [list(row) for row in rows] == [["prompt"]] * 3
