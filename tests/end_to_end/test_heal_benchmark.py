"""The scores of answers in `benchmarks/heal.py`, and its tables."""

import math
from pathlib import Path

import pytest

from benchmarks.heal import BARE, UNCUT, Result, Variant, tables
from benchmarks.heal_answers import last_number, program_of, repetition, scores
from benchmarks.heal_texts import SOURCES

pytestmark = pytest.mark.thorough

ANSWER = """\
Here it is:
```python
def double(number):
    return 2 * number

assert double(2) == 5
print(double(
```"""


def test_the_last_number_of_an_answer_counts() -> None:
    assert last_number("5-3 = 1,200.") == 1200
    assert last_number("x is -4.5!") == -4.5
    assert last_number("none") is None


def test_the_code_of_an_answer_is_extracted() -> None:
    assert program_of(ANSWER) == "def double(number):\n    return 2 * number"
    assert program_of("You are a function.") == ""


@pytest.mark.parametrize(
    ("test", "passed"),
    [("assert double(2) == 4", True), ("assert double(2) == 5", False), ("exit(0)", False)],
)
def test_code_passes_its_tests(test: str, passed: bool) -> None:
    result = scores({"task": "MBPP", "tests": test}, ANSWER)
    assert result == {"MBPP written": True, "MBPP passed": passed}


def test_a_looping_continuation_is_found() -> None:
    looping = repetition("so it goes on " * 4)
    assert looping["loops"]
    assert math.isclose(looping["repeats"], 9 / 13)
    assert repetition("so it goes on " * 2 + "and ends.") == {"loops": False, "repeats": 1 / 8}
    assert repetition("") == {"loops": False, "repeats": 0.0}


def test_names_of_texts_become_files() -> None:
    files = {"TEXT": Path("a.jsonl"), "PROMPTS": Path("p.jsonl")}
    variant = Variant("L1", "bridge on TEXT; heal on answers(PROMPTS) tokens 9", 2)
    bridge, heal = 'bridge on "a.jsonl"', 'heal on answers("p.jsonl") tokens 9 seed 2'
    assert variant.plans(files) == [["drop L1", bridge, heal]]


def test_a_chain_drops_its_layers_in_steps_and_shares_the_tokens() -> None:
    variant = Variant("L3..L4, L6", "heal on TEXT from original tokens 9", 1, (2, 1))
    heal = 'heal on "a.jsonl" from original tokens 4 seed'
    assert variant.plans({"TEXT": Path("a.jsonl")}) == [
        ["drop L3, L4", f"{heal} 1"],
        ["drop L4", f"{heal} 101"],
    ]


def test_a_row_has_all_seeds_of_a_variant() -> None:
    names = [source for pair in SOURCES.values() for source in pair]
    losses = {
        ("", UNCUT, 0): 1.0,
        ("L1", BARE, 0): 3.0,
        ("L1", "heal", 0): 1.5,
        ("L1", "heal", 1): 2.5,
    }
    results = [
        Result(
            Variant(*key),
            dict.fromkeys(names, (loss, 0.1)),
            {"sums": [("", 1.0), ("", 0.0)]},
            60,
            "",
        )
        for key, loss in losses.items()
    ]
    lines = [*tables(results)]
    assert "| L1 | heal | 2 | 2.000 ± 0.100 (50%) |" in lines[4]
    assert lines[4].endswith("| **50.0 ± 25.0 %** | **50.0 ± 25.0 %** | 1.0 min |")
    assert lines[-1] == "| L1 | heal | 2 | 50 ± 50 % |"
