"""The differences of two plans in words."""

from collections.abc import Sequence

import click
import pytest

import gptailor
from gptailor.plan.resolved import Resolved
from gptailor.plugins.diff.difference import difference_map, differences

HEAD = 'tailor 1; model base = "./base"; model math = "./math"\n'


def said(a: str, b: str, count: int = 8) -> Sequence[str]:
    return differences(*(Resolved(gptailor.loads(HEAD + text), count) for text in (a, b)))


@pytest.mark.parametrize(
    ("a", "b", "wanted"),
    [
        ("L0 from math", "L0 = L0 math", []),
        ("drop L1..L2", "drop L2; drop L1", []),
        ("", "L0..L3 from math", ["L0..L3: base → math"]),
        ("", 'chat_template "chatml"', ['chat_template: the tokenizer\'s → "chatml"']),
        ('chat_template "chatml"', "chat_template from math", ['chat_template: "chatml" → math']),
        ("tokenizer from math", "tokenizer union", ["tokenizer: math → union"]),
        ("repeat L1..L2", "repeat L1..L2 times 2",
         ["only in the first: repeat L1..L2", "only in the second: repeat L1..L2 times 2"]),
        ("repeat L1..L2", "stack { L0..L2 base; L1..L7 base }", []),
        ('L0.attn.q from math; L1 from math; L1.norms from base; L2."*" from math',
         "L1 from math; L2.mlp from base",
         ["L0: base; attn.q: math → base", "L1: math; norms: base → math",
          'L2: base; "*": math → attn: base; mlp: base']),
        ("L0 from math", "L0.mlp from math", ["L0: math → attn: base; mlp: math"]),
        ("L0 = L1 math", "L0 = L2 math", ["L0: math L1 → math L2"]),
        ("L0..L6 from base, math by slerp(0.6)",
         "L0..L6 from base, math by slerp(curve(0.0, 1.0))",
         ["L0..L6: base, math by slerp(0.6) → base, math by slerp(0.0 … 1.0)"]),
        ("L0..L7 from base, math by slerp(curve(0.0, 1.0))",
         "L0..L7 from base, math by slerp(curve(1.0, 0.0))",
         ["L0..L7: base, math by slerp(0.0 … 1.0) → base, math by slerp(1.0 … 0.0)"]),
        ("L0 from base, math by slerp(0.123456789)", "L0 from math",
         ["L0: base, math by slerp(0.1235) → math"]),
        ("L0 from base, math by slerp(0.123456789)", "L0 from base, math by slerp(0.123456788)",
         ["L0: base, math by slerp(0.123456789) → base, math by slerp(0.123456788)"]),
        ("stack { merge(L0..L3 base, L0..L3 math, 0.5) }",
         "stack { merge(L0..L3 base, L0..L3 math, curve(0.0, 1.0)) }",
         ["output L0: merge(L0..L3 base, L0..L3 math, 0.5) → "
          "merge(L0..L3 base, L0..L3 math, 0.0 … 1.0)"]),
        ("stack { merge(L0 base, L0 math, 0.123456789) }",
         "stack { merge(L0 base, L0 math, 0.123456788) }",
         ["output L0: merge(L0 base, L0 math, 0.123456789) → "
          "merge(L0 base, L0 math, 0.123456788)"]),
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
        ("expect parameters() <= 1k", "expect parameters() < 1k",
         ["only in the first: expect parameters() <= 1k",
          "only in the second: expect parameters() < 1k"]),
        ('drop L1\nheal on "t" rank 8 seed 0', 'drop L1\nheal on "t" seed 0 rank 8', []),
        ('drop L1\nheal on "t", "u" from math', 'drop L1\nheal from math on "u"',
         ['only in the first: heal on "t", "u" from math',
          'only in the second: heal from math on "u"']),
        ('drop L1\nheal on "t"', 'drop L1\nheal L2 on "t"',
         ["L2: base → base, learns",
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
def test_differences_are_printed(a: str, b: str, wanted: list[str]) -> None:
    assert said(a, b) == wanted
    assert bool(said(b, a)) is bool(wanted)


def test_models_are_compared() -> None:
    a = gptailor.loads(HEAD)
    b = gptailor.loads(HEAD.replace('"./math"', '"org/math" @ "main"'))
    (line,) = differences(Resolved(a, 4), Resolved(b, 4))
    assert line == 'model math: "./math" → "org/math" @ "main"'
    (line,) = differences(
        Resolved(a, 4), Resolved(gptailor.loads(HEAD + 'model code = base + "./lora"'), 4)
    )
    assert line == 'model code: none → base + "./lora"'


def test_a_long_open_plan_is_reported_in_few_words() -> None:
    body = "drop any 3 of L0..L7\nL0..L7 from any of base, math by linear()"
    lines = said(body, "stack { L0..L1 base }")
    assert "L0..L7 any of base, math by linear(), or dropped" in lines[0]
    assert len(lines[0]) < 120
    assert lines[1] == "only in the first: drop any 3 of L0..L7"


def drawn(a: str, b: str, count: int = 8, width: int = 80) -> Sequence[str]:
    plans = (gptailor.loads(HEAD + item) for item in (a, b))
    return [
        click.unstyle(line)
        for line in difference_map(*(Resolved(plan, count) for plan in plans), width)
    ]


def test_two_maps_are_aligned_and_differences_are_marked() -> None:
    a = "L0..L1 from math; L5 from base, math by slerp(0.5); drop L7"
    b = "L1 from math; L5 from base, math by slerp(0.25); drop L3; scale L6 by 0.5"
    assert drawn(a, b) == [
        "  L0",
        "1 m m b b b ◆ b ·",
        "2 b m b · b ◆ b b",
        "  ^     ^   ^ ^ ^",
        "",
        "  b base   m math   ◆ merged   · dropped   ^ differs",
    ]


def test_equal_layers_of_stacks_are_aligned() -> None:
    lines = drawn("stack { L0..L7 base }", "stack { L0..L2 base; L7 math; L3..L5 base; L7 base }")
    assert lines[:4] == ["  L0", "1 b b b   b b b b b", "2 b b b m b b b   b", "        ^       ^"]
    lines = drawn("repeat L1..L2", "stack { L0..L7 base }")
    assert lines[1:4] == ["1 b b²b²b²b²b b b b b", "2 b     b b b b b b b", "    ^ ^"]


def test_a_repeated_block_differs_from_the_block_run_once() -> None:
    assert drawn("", "repeat L1..L2")[3] == "    ^ ^"


def test_letters_are_one_for_both_plans() -> None:
    a = gptailor.loads('tailor 1; model base = "b"; model mb = "m"; L0 from mb')
    b = gptailor.loads('tailor 1; model base = "b"; model ma = "m"; L0 from ma')
    lines = [click.unstyle(line) for line in difference_map(Resolved(a, 2), Resolved(b, 2), 80)]
    assert lines[1:4] == ["1 m b", "2 a b", "  ^"]


def test_equal_layers_have_no_map() -> None:
    assert drawn("embed from math", "head from math") == []


def test_a_line_of_the_map_without_marks_has_no_room_for_them() -> None:
    lines = drawn("", "L1 from math", count=40, width=40)
    assert [line for line in lines if "^" in line] == ["    ^", "  b base   m math   ^ differs"]
    assert len(lines) == 4 * 3 + 1 + 2
