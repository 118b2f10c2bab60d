"""A search's summary as a table and as a page."""

from typing import Any

import pytest

from gptailor.report.scores import markdown, percent, shown_number, summary_lines


def row(value: float, origin: str = "surrogate", **changes: Any) -> dict[str, Any]:
    held = {"values": [value + 0.5], "stderrs": [0.01]}
    said = {"trial": 4, "origin": origin, "samples": 64, "stage": "bare", "values": [value],
            "stderrs": [0.02], "retained": [2 / value], "held": held}  # fmt: skip
    return said | changes


def said(**changes: Any) -> dict[str, Any]:
    found = {
        "plan": "space.tailor",
        "ended": "budget",
        "objectives": [{"name": 'nll("a.txt")', "direction": "minimize", "scale": "base"}],
        "trials": 20,
        "cost": 12.5,
        "hits": 1,
        "failed": 2,
        "held": [30],
        "base": {"values": [2.0], "held": None},
        "best": row(2.5),
        "best_file": "run/best.tailor",
        "front": [],
        "final": [],
        "starts": [row(2.75, "best window on math", stage="bridged"), row(3.0, "greedy removal")],
        "random": {"trials": 5, "whole": False, "best": row(3.5, "random"), "expected": 0.6},
        "commands": ["gptailor eval run/best.tailor", "gptailor compile run/best.tailor -o DIR"],
    }
    return found | changes


@pytest.mark.parametrize("width", [80, 200])
def test_rows_stand_in_columns(width: int) -> None:
    text = list(summary_lines(said(), width))
    assert text[0] == "20 trials at the cost of 12.5 whole ones, 2 failed, 1 known before"
    head = next(line for line in text if "of the base's" in line)
    rows = [line for line in text if "±" in line]
    assert len({len(line) for line in [head, *rows]}) == 1
    assert rows[0].split("  ")[1] == "best window on math (bridged)"
    assert "2.5 ± 0.02" in rows[-1]
    assert "80.0 %" in rows[-1]
    assert "3 ± 0.01" in rows[-1]
    assert "would be expected to keep 60.0 % (found: 80.0 %)" in "\n".join(text)
    assert text[-1].endswith("gptailor compile run/best.tailor -o DIR")


def test_what_is_not_known_is_left_out() -> None:
    text = "\n".join(
        summary_lines(
            said(
                best=None,
                held=[0],
                starts=[],
                random={"trials": 0, "whole": False, "best": None, "expected": None},
                ended="interrupted",
            ),
            80,
        )
    )
    assert "nothing was held out" in text
    assert "interrupted" in text
    assert "found:" not in text
    assert "gptailor" not in text


def test_a_failure_on_what_was_held_out_is_said() -> None:
    text = "\n".join(summary_lines(said(best=row(2.5, held={"failure": "nan"})), 80))
    [found] = [line for line in text.splitlines() if "found:" in line and "±" in line]
    assert found.endswith("failed")


def test_whole_random_search_is_said() -> None:
    drawn = {"trials": 12, "whole": True, "best": row(3.5, "random"), "expected": None}
    assert "evaluated 12 plans" in "\n".join(summary_lines(said(random=drawn), 80))


def test_the_page_is_a_table_that_renders() -> None:
    page = markdown(said())
    table = [line for line in page.splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in table}) == 1
    assert table[1] == "|---|--:|--:|--:|"
    assert len(table) == 2 + 5


def test_what_was_healed_is_said_with_what_it_was_before() -> None:
    failed = {"values": None, "failure": "error: error[C806]: too short\n  = help: more text"}
    final = [
        row(2.25, "best window", trial=9, stage="healed", before=[2.5]),
        row(2.0, trial=10, stage="healed", before=[2.75]) | failed,
    ]
    wanted = [
        "trial 9 (best window), healed: 2.5 → 2.25",
        "trial 10 (surrogate), healed: failed: error: error[C806]: too short",
    ]
    lines = list(summary_lines(said(final=final), 80))
    assert [line for line in lines if line.startswith("trial ")] == wanted
    page = markdown(said(final=final)).splitlines()
    assert [line.removeprefix("- ") for line in page if line.startswith("- ")] == wanted


def test_numbers_are_short() -> None:
    assert shown_number(3.78512, 0.0412) == "3.785 ± 0.041"
    assert shown_number(None) == "?"
    assert percent(0.7834) == "78.3 %"
    assert percent(None) == "?"
