"""What differs between two plans, in words."""

from collections.abc import Sequence

import pytest

import gptailor
from gptailor.report.difference import differences

HEAD = 'tailor 1; model base = "./base"; model math = "./math"\n'


def said(a: str, b: str, count: int = 8) -> Sequence[str]:
    return differences(gptailor.loads(HEAD + a), gptailor.loads(HEAD + b), count)


@pytest.mark.parametrize(
    ("a", "b", "wanted"),
    [
        ("L0 from math", "L0 = L0 math", []),
        ("drop L1..L2", "drop L2; drop L1", []),
        ("", "L0..L3 from math", ["L0..L3: base → math"]),
        ("L0 from math", "L0.mlp from math", ["L0: math → attn: base; mlp: math"]),
        ("L0 = L1 math", "L0 = L2 math", ["L0: math L1 → math L2"]),
        ("L0..L7 from math", "others from math", []),
        ("others from math", "whole from math",
         ["embed: base → math", "norm: base → math", "head: base → math"]),
        ("let t = 0.5\nL7 from base, math by slerp(t)",
         "let t = 1.0\nL7 from base, math by slerp(t)",
         ["let t: 0.5 → 1.0", "L7: base, math by slerp(0.5) → base, math by slerp(1.0)"]),
        ("scale L1 by 0.5", "scale L1 by 0.25", ["L1: base, scaled by 0.5 → base, scaled by 0.25"]),
        ("drop L1", "maybe drop L1", ["L1: dropped → base, or dropped"]),
        ("", "dtype float16", ["dtype: as the base → float16"]),
        ("embed from math", "", ["embed: math → base"]),
        ("head from base, math by linear()", "", ["head: base, math by linear() → base"]),
        ("drop any 2 of L0..L3", "drop any 2 of L0..L3", []),
        ("search { trials 5 }", "search { trials 6 }", ["the search blocks differ"]),
        ('drop L1\nheal on "t" rank 8 seed 0', 'drop L1\nheal on "t" seed 0 rank 8', []),
        ('drop L1\nheal on "t"', 'drop L1\nheal L2 on "t"',
         ["L2: base → base, healed",
          'only in the first: heal on "t"', 'only in the second: heal L2 on "t"']),
        ("stack { L0..L3 base }", "stack { L0..L3 base }", []),
        ("stack { L0..L3 base }", "stack { L0..L2 base }",
         ["output L3 of the first: L3 base removed"]),
        ("stack { L0..L3 base }", "stack { L0 base; L5 math; L1..L3 base }",
         ["output L1: L5 math inserted"]),
        ("stack { L0..L7 base }", "", []),
        ("stack { L0..L7 base }", "drop L6", ["output L6 of the first: L6 base removed"]),
        ("stack { merge(L0 base, L0 math) by ties(0.5) }", "drop L1..L7",
         ["output L0: merge(L0 base, L0 math) by ties(density=0.5) → L0 base"]),
        ("stack { L0..L7 base }", "scale L1..L2 by 0.5",
         ["output L1: L1..L2 base → L1..L2 base, scaled by 0.5"]),
        ("stack { L0..L7 base }", "L3.mlp from math",
         ["output L3: L3 base → L3 attn: base; mlp: math"]),
    ],
)  # fmt: skip
def test_differences(a: str, b: str, wanted: list[str]) -> None:
    assert said(a, b) == wanted
    assert bool(said(b, a)) is bool(wanted)


def test_models_are_compared() -> None:
    a = gptailor.loads(HEAD)
    b = gptailor.loads(HEAD.replace('"./math"', '"org/math" @ "main"'))
    (line,) = differences(a, b, 4)
    assert line == 'model math: "./math" → "org/math" @ "main"'
    (line,) = differences(a, gptailor.loads(HEAD + 'model code = base + "./lora"'), 4)
    assert line == 'model code: none → base + "./lora"'


def test_a_long_open_plan_is_said_in_few_words() -> None:
    body = "drop any 3 of L0..L7\nL0..L7 from any of base, math by linear()"
    lines = said(body, "stack { L0..L1 base }")
    assert "L0..L7 any of base, math by linear(), or dropped" in lines[0]
    assert len(lines[0]) < 120
    assert lines[1] == "only in the first: drop any 3 of L0..L7"
