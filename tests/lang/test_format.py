"""The canonical form: identity on plans, idempotent on texts, comments kept."""

import re
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gptailor.lang.format import format_plan, format_text
from gptailor.lang.parse import read_json, read_text
from gptailor.plan.faults import Source, errors, to_text
from gptailor.plan.plan import Plan
from tests.support.strategies import plans
from tests.support.thorough import drawn

GOLDEN = sorted((Path(__file__).parents[1] / "golden").glob("*.canonical.tailor"))


def source(text: str) -> Source:
    return Source("drawn.tailor", text)


def accepted(text: str) -> Plan:
    """The plan of a text that has no faults."""
    plan, faults = read_text(source(text), Path())
    assert not errors(faults), "\n".join(to_text(fault) for fault in faults) + "\n" + text
    return plan


def canonical(text: str) -> str:
    made, faults = format_text(source(text))
    assert made is not None, "\n".join(to_text(fault) for fault in faults) + "\n" + text
    return made


@given(plans())
def test_reading_what_was_formatted_gives_the_same_plan(plan: Plan) -> None:
    assert accepted(format_plan(plan)) == plan


@given(plans())
def test_a_formatted_plan_is_in_canonical_form(plan: Plan) -> None:
    text = format_plan(plan)
    assert canonical(text) == text


@given(plans())
def test_json_gives_the_same_plan(plan: Plan) -> None:
    assert Plan.model_validate_json(plan.model_dump_json()) == plan
    read_back, faults = read_json(source(plan.model_dump_json(exclude_defaults=True)), Path())
    assert not errors(faults)
    assert read_back == plan


# ---------------------------------------------------------------------------------------- comments

COMMENTS = st.from_regex(r"#[ \w;{}()\"#]{0,6}", fullmatch=True).map(str.rstrip)


@st.composite
def commented(draw, lines: list[str]) -> str:
    """The lines with comments above, behind and between them, and blank lines."""
    text = []
    for line in lines:
        text += draw(st.lists(st.one_of(COMMENTS, st.just("")), max_size=2))
        opens_or_closes = line.endswith(("{", "}"))
        behind = "" if opens_or_closes or not draw(st.booleans()) else f" {draw(COMMENTS)}"
        text.append(f"{line}{behind}")
    text += draw(st.lists(COMMENTS, max_size=2))
    return "\n".join(text)


def comments_of(text: str) -> Counter[str]:
    """Every comment of a text, found without the parser under test."""
    strings_out = re.sub(r'"[^"\n#]*"', '""', text)
    return Counter(match.rstrip() for match in re.findall(r"#[^\n]*", strings_out))


PLAIN = [
    "tailor 1",
    'model base = "./b"',
    'model math = "./m"',
    "dtype bfloat16",
    "L3 from math",
    "L1..L2 from math",
    "L7.mlp = L3.mlp math",
    "tied L8..L9 from one of base, math",
    "drop L5",
    "drop L4",
    "scale L1 by 0.5",
    "scale L2 by 0.5",
    'bridge L3 on "t"',
    "search {",
    "trials 3",
    'minimize nll("d")',
    "}",
]
STACKED = [
    "stack {",
    "L0..L3 base",
    "L4 base",
    "maybe L4 math",
    "tied maybe L1..L2 math",
    "limit 9 layers",
    "}",
]


@given(st.permutations(PLAIN[1:13]).flatmap(lambda rest: commented([PLAIN[0], *rest, *PLAIN[13:]])))
@settings(max_examples=drawn(50))
def test_formatting_keeps_every_comment_and_the_plan(text: str) -> None:
    made = canonical(text)
    assert comments_of(made) == comments_of(text)
    assert accepted(made) == accepted(text)
    assert canonical(made) == made


@given(commented([*PLAIN[:3], *STACKED]))
@settings(max_examples=drawn(50))
def test_formatting_keeps_every_comment_of_a_stack(text: str) -> None:
    made = canonical(text)
    assert comments_of(made) == comments_of(text)
    assert accepted(made) == accepted(text)
    assert canonical(made) == made


@given(st.permutations(PLAIN[1:13]), st.data())
def test_a_comment_moves_with_its_statement(rest: list[str], data: st.DataObject) -> None:
    chosen = data.draw(st.sampled_from(rest))
    lines = [PLAIN[0], *rest]
    lines.insert(lines.index(chosen), "# above")
    lines[lines.index(chosen)] += "  # behind"
    made = canonical("\n".join(lines)).splitlines()
    assert made[made.index("# above") + 1] == f"{chosen}  # behind"


def test_comments_in_parentheses_stay_with_their_statement() -> None:
    text = 'tailor 1\nmodel base = "./b"\nL1 = merge(L2 base,  # one\n  L3 base  # two\n)  # end\n'
    made = canonical(text)
    assert made.endswith("# one\n# two\nL1 = merge(L2 base, L3 base)  # end\n")
    assert canonical(made) == made


# ------------------------------------------------------------------------------------------ golden


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.name.partition(".")[0])
def test_formatting_gives_the_golden_text(path: Path) -> None:
    written = path.with_name(path.name.replace(".canonical.", ".input.")).read_text()
    made = canonical(written)
    assert made == path.read_text()
    assert canonical(made) == made
    assert accepted(made) == accepted(written)


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.name.partition(".")[0])
def test_without_comments_a_text_is_formatted_as_its_plan_is(path: Path) -> None:
    text = re.sub(r" *#.*", "", path.read_text())
    assert canonical(text) == format_plan(accepted(text))


def test_a_tied_list_is_put_in_order() -> None:
    text = 'tailor 1\nmodel base = "./b"\ntied maybe L8, L7 = L3, L4 base\ntied maybe drop L2, L1\n'
    assert "tied maybe L7..L8 = L4, L3 base\n" in canonical(text)
    assert canonical(text) == format_plan(accepted(text))


def test_there_are_six_golden_pairs_or_more() -> None:
    assert len(GOLDEN) >= 6


@pytest.mark.parametrize("comment", ["", "  # why"])
@pytest.mark.parametrize(("written", "kept"), [("1", "1"), ("1.0", "1.0"), ("1e0", "1.0")])
def test_a_text_keeps_its_version_as_a_number(written: str, kept: str, comment: str) -> None:
    rest = f'{comment}\n\nmodel base = "./b"\n\ndrop L1\n'
    assert canonical(f"tailor {written}{rest}") == f"tailor {kept}{rest}"
    assert format_plan(accepted(f"tailor {written}{rest}")).startswith("tailor 1\n")
