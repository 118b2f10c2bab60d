"""The map of a plan's layers, on wide and narrow terminals, and the rows below it."""

import re
from pathlib import Path

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st

import gptailor
from gptailor.plan.resolved import Resolved
from gptailor.reporting.layer_cells import letters
from gptailor.reporting.layer_view import Row, layer_rows, short_rows
from gptailor.reporting.show import plan_map
from tests.support.tiny_bytes import model

HEAD = """\
tailor 1
model base = "./base"
model math = "./math"
model maths = "./maths"
"""


def shown(body: str, count: int = 40, width: int = 80, *, known: bool = True) -> list[str]:
    plan = gptailor.loads(HEAD + body)
    return list(plan_map("p", Resolved(plan, count), known=known, width=width))


def test_a_gguf_file_has_the_map_of_its_plan_and_its_own_size(tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    model(tmp_path / "base", layers=4)
    text = 'tailor 1\nmodel base = "./base"\ndrop L1\n'
    plan = gptailor.loads(text, folder=tmp_path)
    folder = gptailor.compile(plan, tmp_path / "out", dtype="bfloat16", gguf=["q4_0"]).folder
    file = tmp_path / "out-Q4_0.gguf"
    size = f"GGUF: {file.stat().st_size:,} bytes; tensors: 22 Q4_0, 19 F32 and 1 Q8_0"
    lines = gptailor.show(file).lines
    assert lines[-1] == f"  {size}"
    assert "3 of base, 1 dropped" in str(gptailor.show(file))
    assert lines[-2].partition("KV")[2] == gptailor.show(folder).lines[-1].partition("KV")[2]
    (tmp_path / "base").rename(tmp_path / "away")
    assert gptailor.show(file).lines[-2:] == lines[-2:], "the file alone tells its size"
    changed = file.read_bytes().replace(b"tailor 1", b"failor 1")
    file.write_bytes(changed)
    assert "3 of base\n" in str(gptailor.show(file)), "without a plan it is a model"
    file.write_bytes(changed[:5000])
    assert "size unknown" in str(gptailor.show(file))


@pytest.mark.parametrize(
    ("numbers", "wanted"),
    [
        ((0.0, 0.25, 0.5), ["L0..L2 slerp(0.0 … 0.5)"]),
        ((0.0, 0.25), ["L0 slerp(0.0)", "L1 slerp(0.25)"]),
        ((0.0, 0.25, 0.6), ["L0 slerp(0.0)", "L1 slerp(0.25)", "L2 slerp(0.6)"]),
        ((0.9, 0.1, 0.2, 0.3), ["L0 slerp(0.9)", "L1..L3 slerp(0.1 … 0.3)"]),
        ((0.0, 1 / 3, 2 / 3, 1.0), ["L0..L3 slerp(0.0 … 1.0)"]),
        ((1 / 3, 2 / 3), ["L0 slerp(0.3333)", "L1 slerp(0.6667)"]),
    ],
)
def test_layers_along_a_line_share_a_row(numbers: tuple[float, ...], wanted: list[str]) -> None:
    result = short_rows([Row(f"L{at}", f"slerp({number})") for at, number in enumerate(numbers)])
    assert [f"{row.where} {row.what}" for row in result] == wanted


def test_layers_that_count_up_share_a_row() -> None:
    rows = [Row(f"L{n}", f"merge(L{n} base, L{n + 1} math, 0.{n})") for n in range(4)]
    assert short_rows(rows) == [Row("L0..L3", "merge(L0..L3 base, L1..L4 math, 0.0 … 0.3)")]
    apart = [Row(f"L{n}", f"merge(L{2 * n} base, L0 math, 0.{n})") for n in range(4)]
    assert short_rows(apart) == apart


def test_ranges_and_other_words_stay_apart() -> None:
    rows = [Row("L0..L4", "slerp(0.5)"), Row("L5", "slerp(0.6)"), Row("L6", "slerp(0.7)"),
            Row("L7", "lerp(0.8)")]  # fmt: skip
    assert short_rows(rows) == rows


def test_every_layer_has_a_row_if_asked() -> None:
    body = "L0..L3 from base, math by slerp(curve(0, 1))\ndrop L4..L7"
    plan = Resolved(gptailor.loads(HEAD + body), 8)
    short, long = (
        plain(list(plan_map("p", plan, known=True, width=80, every_layer=every)))
        for every in (False, True)
    )
    assert "  L0..L3  base, math by slerp(0.0 … 1.0)" in short
    assert "  L1      base, math by slerp(0.3333333333333333)" in long


def plain(lines: list[str]) -> list[str]:
    return [click.unstyle(line) for line in lines]


def rows(body: str, count: int = 8) -> list[str]:
    result = layer_rows(Resolved(gptailor.loads(HEAD + body), count).slots)
    return [f"{row.where} {row.what}" for row in result]


@pytest.mark.parametrize(
    ("body", "wanted"),
    [
        ("", ["L0..L7 base"]),
        ("L0..L3 from math; drop L4..L5", ["L0..L3 math", "L4..L5 dropped", "L6..L7 base"]),
        ("L0..L7 = L0..L7 math", ["L0..L7 math"]),
        ("L0..L1 = L3..L4 math; drop L2..L7", ["L0..L1 math L3..L4", "L2..L7 dropped"]),
        ("drop L0; drop L2..L7", ["L0 dropped", "L1 base", "L2..L7 dropped"]),
        ("scale L0..L1 by 0.5; drop L2..L7", ["L0..L1 base, scaled by 0.5", "L2..L7 dropped"]),
        ("L0..L3.mlp from math; drop L4..L7", ["L0..L3 attn: base; mlp: math", "L4..L7 dropped"]),
        ("L0.mlp = L3.mlp math; L1.mlp = L4.mlp math; drop L2..L7",
         ["L0 attn: base; mlp: math L3", "L1 attn: base; mlp: math L4", "L2..L7 dropped"]),
        ("drop any 2 of L0..L3", ["L0..L3 base, or dropped", "L4..L7 base"]),
        ("maybe L0..L7 from math", ["L0..L7 maybe math"]),
        ('drop L4..L7\nscale L3 by 2\nheal L1..L3 on "t"',
         ["L0 base", "L1..L2 base, learns", "L3 base, scaled by 2, learns", "L4..L7 dropped"]),
        ('drop L2..L7\nheal on "t"', ["L0..L1 base", "L2..L7 dropped"]),
        ('drop any 1 of L0..L7\nheal L5..L7 on "t"',
         ["L0..L4 base, or dropped", "L5..L7 base, learns, or dropped"]),
        ("L0..L3 from math; L2.mlp from base; drop L4..L7",
         ["L0..L1 math", "L2 attn: math; mlp: base", "L3 math", "L4..L7 dropped"]),
        ("others from math; L0.mlp from maths; L1 from base; drop L4..L7",
         ["L0 attn: math; mlp: maths", "L1 base", "L2..L3 math", "L4..L7 dropped"]),
        ("others.mlp from math; whole from maths; maybe L1 from base; drop L2..L7",
         ["L0 attn: maths; mlp: math",
          "L1 attn: maybe base, else maths; mlp: maybe base, else math", "L2..L7 dropped"]),
        ("maybe L0 from base; others from math; maybe drop L1; drop L2..L7",
         ["L0 maybe base, else math", "L1 math, or dropped", "L2..L7 dropped"]),
        ("let t = 0.5\nL5..L7 from base, math by slerp(curve(0, t))\n"
         "others from base, math by slerp(t)",
         ["L0..L4 base, math by slerp(0.5)", "L5 base, math by slerp(0.0)",
          "L6 base, math by slerp(0.25)", "L7 base, math by slerp(0.5)"]),
        ("let t = 0..1\nothers from base, math by slerp(t)", ["L0..L7 base, math by slerp(t)"]),
        ("scale L5..L7 by curve(1, 2)",
         ["L0..L4 base", "L5 base, scaled by 1.0", "L6 base, scaled by 1.5",
          "L7 base, scaled by 2.0"]),
        ("stack { L7 base; merge(L0..L1 base, L4..L5 math, curve(0.0, 1.0)) }",
         ["L0 base L7", "L1 merge(L0 base, L4 math, 0.0)", "L2 merge(L1 base, L5 math, 1.0)"]),
        ("stack { L4..L7 base; maybe L0..L1 math }",
         ["L0..L3 base L4..L7", "L4..L5 maybe math L0..L1"]),
    ],
)  # fmt: skip
def test_rows_join_adjacent_layers(body: str, wanted: list[str]) -> None:
    assert rows(body) == wanted


def test_names_with_equal_beginnings_have_different_letters() -> None:
    result = letters(["base", "math", "maths", "m", "b"])
    assert list(result.values())[:3] == ["b", "m", "a"]
    assert len(set(result.values())) == 5


@given(st.lists(st.from_regex(r"[ab_]{1,3}", fullmatch=True), unique=True, max_size=30))
def test_every_model_has_its_own_letter(names: list[str]) -> None:
    result = letters(names)
    assert list(result) == names
    assert len(set(result.values())) == len(names)


def test_each_model_has_its_colour() -> None:
    lines = shown("L0..L1 from math; merge(L2 base, L2 math, 0.5); drop L3", count=4)
    (row,) = [line for line in lines if "◆" in line and "merged" not in line]
    assert click.unstyle(row) == "  m m ◆ ·"
    assert row.count(click.style("m", fg="green", reverse=True)) == 2
    assert click.style("◆", fg="blue", bold=True, reverse=True) in row
    legend = next(line for line in lines if "merged" in line and "·" in line)
    assert click.style("m", fg="green", reverse=True) + " math" in legend


@pytest.mark.parametrize("width", [20, 46, 60, 80, 100, 200])
@pytest.mark.parametrize("count", [1, 10, 11, 40, 50, 126])
def test_a_map_fits_its_terminal_and_shows_every_layer(width: int, count: int) -> None:
    body = "L0 from math, maths by task_arithmetic(0.25, 0.3333); embed from math; dtype float16"
    lines = plain(shown(body, count, width))
    cells = "".join(line for line in lines if re.fullmatch(r"( +[bm◆])+", line))
    assert len(cells.replace(" ", "")) == count
    assert max(len(line) for line in lines) <= max(width, 33)
    rulers = [line for line in lines if re.fullmatch(r"( +L\d+)+", line)]
    numbers = re.findall(r"\d+", " ".join(rulers))
    assert [int(n) for n in numbers] == list(range(0, count, 10))
    assert "dtype" in lines[-1]


def test_lines_of_the_map_are_of_one_length() -> None:
    lines = plain(shown("", 40, 80))
    assert [line.count("b") for line in lines if line.startswith("  b b b")] == [20, 20]


def test_an_open_plan_counts_its_choices() -> None:
    body = "drop any 2 of L0..L7; merge(L0 base, L0 math, 0.1..0.5)\nL1 from one of base, math"
    lines = plain(shown(body, 8))
    assert lines[1] == "  2 open, 6 maybe there; 3 choices open"
    assert "  ? ? ○ ○ ○ ○ ○ ○" in lines
    assert lines[-1].split() == ["drop", "any", "2", "of", "L0..L7"]


def test_choices_in_others_are_counted_at_each_position() -> None:
    body = "others from one of base, math; drop any 2 of L0..L7"
    assert plain(shown(body, 8))[1] == "  8 open; 9 choices open"
    assert plain(shown(body, 8, known=False))[1] == "  8 open; 2 choices open"


def test_layers_of_a_stack_are_numbered_from_its_start() -> None:
    lines = plain(shown("stack { L0..L39 base; L30..L39 math }"))
    assert lines[0] == "p: a stack of 50 layers"
    assert lines[-2:] == ["  L0..L39   base", "  L40..L49  math L30..L39"]


def test_a_missing_base_is_reported() -> None:
    assert "at least 3 layers of './base'" in shown("drop L2", 3, known=False)[0]


def test_healing_has_its_own_row() -> None:
    lines = plain(shown('drop L3..L39\nheal L0 from math on "t.txt" seed 1 rank full'))
    assert '  heal     L0 from math on "t.txt" rank full seed 1' in lines


def test_a_let_has_a_row_and_layers_that_use_it_are_open() -> None:
    lines = plain(shown("let t = 0..1\nothers from base, math by slerp(t)\nwhole from math", 4))
    assert lines[1].strip() == "4 open; 1 choice open"
    assert [line.split(maxsplit=1) for line in lines[-5:]] == [
        ["L0..L3", "base, math by slerp(t)"], ["embed", "math"], ["norm", "math"], ["head", "math"],
        ["let", "t = 0..1"],
    ]  # fmt: skip


def test_a_made_model_has_a_row() -> None:
    lines = plain(shown("model mix = base, math by slerp(0.5)\nL0..L1 from mix", 4))
    assert lines[-1].split(maxsplit=1) == ["model", "mix = base, math by slerp(0.5)"]


def test_layers_that_run_again_are_marked() -> None:
    lines = plain(shown("drop L0; repeat L1..L2; repeat L5 times 11", 8))
    assert lines[0] == "p: 20 layers (the base './base' has 8)"
    assert "  · b²b²b b b⁺b b" in lines
    assert "  b base   · dropped   ² 2 runs   ⁺ 10 runs or more" in lines
    assert "repeat" not in plain(shown("maybe repeat L1", 8))[0]
    assert plain(shown("maybe repeat L1", 8))[0] == "p: 8 layers of './base'"


def test_a_stack_marks_repeated_layers() -> None:
    lines = plain(shown("stack { L0..L2 base; L1..L2 base; L1 math; maybe L0 base }"))
    assert "  b b²b²b²b²m ○" in lines
    assert "² 2 runs" in lines[6]


@pytest.mark.parametrize("width", [40, 41, 61, 62, 82, 83])
def test_marks_fit_into_the_terminal(width: int) -> None:
    lines = plain(shown("repeat L0..L39", 40, width))
    assert max(map(len, lines[:-1])) <= width
    assert "".join(lines).count("b²") == 40


def test_show_lists_repeated_layers_of_a_stack() -> None:
    lines = plain(shown("stack { L0..L3 base; L1..L3 base; L3 math; L2 base; L3 math }"))
    repeated = [line.split(maxsplit=1)[1] for line in lines if line.startswith("  again")]
    assert repeated == ["base L1, L3: 2 runs", "base L2: 3 runs", "math L3: 2 runs"]


def test_shares_of_merges_are_drawn_below_the_layers() -> None:
    body = "L0 from math; L1 from base, math by slerp(0.25)\nL2.mlp from maths; drop L3"
    lines = plain(shown(body, 5))
    start = lines.index("  L0")
    assert lines[start + 1 : start + 5] == ["  m ◆ ◧ · b", "b   ▆ ▄   █", "m █ ▂", "a     ▄"]
    assert "▁…█ a model's share" in lines[start + 7]
    assert "a maths" in lines[start + 6]


def test_a_gradient_of_each_branch_has_its_own_lines() -> None:
    body = "L0..L2.attn from base, math by slerp(curve(0, 1))\n"
    body += "L0..L2.mlp from base, math by slerp(curve(1, 0))"
    lines = plain(shown(body, 3))
    start = lines.index("       L0")
    assert lines[start + 1 : start + 6] == [
        "       ◆ ◆ ◆", "b attn █ ▄", "m attn   ▄ █", "b mlp    ▄ █", "m mlp  █ ▄",
    ]  # fmt: skip
    assert lines[start + 7] == "  b base   m math   ◆ merged   ▁…█ a model's share"


def test_no_shares_are_drawn_where_each_layer_is_one_models() -> None:
    lines = plain(shown("L0 from math; L1 = merge(L1 base, L2 base)", 3))
    assert not any("█" in line for line in lines)


def test_the_layers_that_learn_are_marked_below_the_others() -> None:
    lines = plain(shown('drop L2\nheal L1, L3 on "t"', 4))
    assert lines[lines.index("  L0") + 1 :][:2] == ["  b b · b", "    +   +"]
    lines = plain(shown('drop L2\nheal on "t"', 4))
    assert lines[lines.index("  L0") + 1 :][:2] == ["  b b · b", "  + +   +"]
    assert not any("learns" in line for line in plain(shown('heal on "t"', 4)))


@pytest.mark.parametrize("width", [40, 80, 120])
def test_shares_stay_below_their_layers_on_any_screen(width: int) -> None:
    body = "others from base, math by slerp(0.25)\nL35 from math"
    lines = plain(shown(body, 40, width))
    assert max(map(len, lines)) <= width
    drawn = [line for line in lines if line.startswith(("b ", "m ")) and "▁" not in line[:2]]
    assert "".join(line[2:] for line in drawn if line[0] == "b").count("▆") == 39
    row = next(i for i, line in enumerate(lines) if line.startswith("  ") and " m " in line)
    at = lines[row].index(" m ") + 1
    assert (lines[row + 1] + " " * width)[at] == " "
    assert lines[row + 2][at] == "█"


def test_entries_of_an_unreadable_base_are_shown_for_all_layers() -> None:
    body = "others.attn from base, math by slerp(curve(0.1, 0.4))\nmaybe others.mlp from math"
    lines = plain(shown(body, 0, known=False))
    assert lines[0] == "p: some layers of './base', which can't be read"
    entries = [line.split(maxsplit=1) for line in lines if " slerp" in line or "others.mlp" in line]
    assert entries == [["others.attn", "base, math by slerp(curve(0.1, 0.4))"],
                    ["others.mlp", "maybe math"]]  # fmt: skip
