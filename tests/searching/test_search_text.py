"""A search's summary as a table and as a page."""

import json
import re
from typing import Any

import pytest

from gptailor.reporting.quantities import percent, shown_number
from gptailor.searching.run.records import Aim, SearchSummary, VerdictRecord
from gptailor.searching.search_text import markdown, summary_lines
from tests.searching.summary_file import AIM, WORSE, document, judged, row


def said(**changes: Any) -> SearchSummary:
    """Return a summary that went through its file."""
    return SearchSummary.model_validate_json(json.dumps(document(**changes)))


def test_long_names_are_whole() -> None:
    name = "block influence on uniform merge of math and code"
    names = [name, f"{name}, 5 layers"]
    text = list(summary_lines(said(starts=[row(3.0, each, stage="healed") for each in names]), 80))
    assert max(map(len, text[:12])) <= 80
    lines = [re.split(r" {2,}", line.strip()) for line in text]
    words = " ".join(first for first, *_ in lines)
    assert all(f"{each} (healed)" in words for each in names)
    ends = [line for line in lines if line[0] in ("of math and code (healed)", "(healed)")]
    assert [line[1] for line in ends] == ["3 ± 0.02"] * 2


@pytest.mark.parametrize(
    ("unit", "direction", "head"),
    [("", "maximize", "of the base's"), ("accuracy", "maximize", "of the base's"),
     ("nats", "minimize", "nats lost"), ("", "minimize", "lost")],
)  # fmt: skip
def test_the_head_of_a_share_is_not_that_of_a_loss(unit: str, direction: str, head: str) -> None:
    aim = AIM | {"unit": unit, "direction": direction}
    text = list(summary_lines(said(objectives=[aim]), 200))
    heads = next(line for line in text if line.lstrip().startswith("plan") or "score" in line)
    assert re.split(r" {2,}", heads.strip()).count(head) == 2


def test_a_healing_in_vain_is_not_shown_as_healed() -> None:
    healed = {"stage": "healed", "origin": "greedy removal"}
    starts = [row(3.0, before=[3.0], **healed), row(3.0, before=[3.5], **healed)]
    lines = [line.split("  ") for line in summary_lines(said(starts=starts), 200)]
    found = [line[1] for line in lines if len(line) > 1 and line[1].startswith("greedy removal")]
    assert found == ["greedy removal (healing changed nothing)", "greedy removal (healed)"]
    final = [row(2.5, "best window", trial=9, stage="healed", before=[2.5])]
    line = "trial 9 (best window), healing changed nothing: 2.5 → 2.5"
    assert line in list(summary_lines(said(final=final), 80))


def test_rows_name_the_dropped_layers() -> None:
    starts = [row(3.0, "best window on math", dropped="L3..L5")]
    shown = said(starts=starts, found=row(2.5, dropped="L4, L6"))
    names = [line.split("  ")[1] for line in summary_lines(shown, 200) if line.startswith("  ")]
    assert "best window on math, drop L3..L5" in names
    assert "found: run/best.tailor, drop L4, L6" in names


@pytest.mark.parametrize("width", [80, 200])
def test_rows_stand_in_columns(width: int) -> None:
    text = list(summary_lines(said(), width))
    assert text[0] == (
        "20 trials, with 12.5 times all samples, 2 failed, 1 with a plan seen before"
    )
    rows = [line for line in text if line.startswith("  ") and "±" in line]
    assert len({len(line) for line in rows[1:]}) == 1
    assert rows[1].split("  ")[1] == "best window on math (bridged)"
    assert "2.5 ± 0.02" in rows[-1]
    assert rows[-1].split()[-8:-4] == ["2.5", "±", "0.02", "0.5"]
    assert rows[-1].endswith("  3 ± 0.01       0.75")
    assert sum("nats lost     held out  nats lost" in line for line in text) == 1
    assert "3 ± 0.01" in rows[-1]
    whole = "\n".join(text)
    assert "%" not in whole
    assert "would be expected to reach 3.333 (found: 2.5)" in whole
    assert (
        "measuring layers 3.25 (41 s), 15.75 with the trials; scoring the base 1.25 more." in whole
    )
    assert (
        "Better than the best of 2 starting plans, 'greedy removal', by 0.250 ± 0.020 nats" in whole
    )
    assert "(on held-out samples, in pairs)." in whole
    assert text[-1].endswith("gptailor compile run/best.tailor -o DIR")


def test_what_was_spared_and_what_had_no_room_is_said() -> None:
    found = said(stopped=7, spared=4.5, left_out=["9 of 15 windows", "greedy removal"])
    first, *rest = summary_lines(found, 80)
    assert "7 given up early (spared: 4.5)" in first
    line = (
        "Starting plans beyond the budget: 9 of 15 windows, greedy removal. A larger `--trials`"
        " tries more."
    )
    assert line in rest
    assert line in markdown(found)
    assert "no room" not in markdown(said(stopped=0, left_out=[]))


def test_what_is_not_known_is_left_out() -> None:
    text = "\n".join(
        summary_lines(
            said(
                best=None,
                found=None,
                verdict=None,
                held=[0],
                starts=[],
                random={"trials": 0, "best": None, "expected": None},
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
    text = "\n".join(summary_lines(said(found=row(2.5, held={"failure": "nan"})), 80))
    [found] = [line for line in text.splitlines() if "found:" in line and "±" in line]
    assert found.endswith("failed")


def test_the_page_is_a_table_that_renders() -> None:
    page = markdown(said())
    table = [line for line in page.splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in table}) == 1
    assert table[1] == "|---|--:|--:|--:|--:|"
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


def test_the_worth_of_a_loss_before_repair_is_said() -> None:
    worth = {"slope": 0.4234, "correlation": 0.9, "plans": 6}
    line = (
        "A loss of 1 between plans before they were healed was 0.42 after it"
        " (6 plans, rank correlation 0.90)."
    )
    assert line in list(summary_lines(said(repair=worth, heals=True), 80))
    assert "rank correlation" not in markdown(said(heals=True))


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        (
            {"better": False},
            "A tie with 'greedy removal': better by 0.250 ± 0.020 nats (on held-out samples, in"
            " pairs). best.tailor is a simpler plan within one standard error, trial 2 (greedy"
            " removal).",
        ),
        (
            {"better": False, "worse": True, "held": False, "against": WORSE},
            "Worse than 'greedy removal', by 0.250 ± 0.020 nats (on the samples that it"
            " was chosen by, in pairs). best.tailor is a simpler plan within one standard error,"
            " trial 2 (greedy removal).",
        ),
        (
            {"better": False, "itself": True},
            "The search found nothing better than a starting plan, 'greedy removal'. best.tailor is"
            " a simpler plan within one standard error, trial 2 (greedy removal).",
        ),
        (
            {"against": None},
            "No starting plan repaired alike meets all requirements, so it is compared with none.",
        ),
    ],
)
def test_a_tie_is_called_a_tie(changes: dict[str, Any], wanted: str) -> None:
    found = said(verdict=judged(**changes), best=row(2.75, "greedy removal", trial=2))
    assert wanted in list(summary_lines(found, 80))
    assert wanted in markdown(found).splitlines()
    assert "found: trial 4" in markdown(found)


@pytest.mark.parametrize(("held", "few"), [(8, False), (7, True), (1, True)])
def test_too_few_samples_are_said_to_be_too_few(held: int, few: bool) -> None:
    for better in (True, False):
        found = said(held=[held], verdict=judged(better=better))
        assert ("too few to tell; use 8 or more." in "\n".join(summary_lines(found, 80))) == few


def test_a_base_that_is_no_larger_is_a_rival_too() -> None:
    base = {"gain": -0.02, "stderr": 0.01, "better": False, "no_larger": True}
    lines = summary_lines(said(verdict=judged(base=base)), 80)
    [line] = [line for line in lines if "Better" in line]
    wanted = " No better than the base, uncut, which is no larger: worse by 0.020 ± 0.010 nats."
    assert wanted in line


def test_objectives_of_several_kinds_are_compared_in_shares() -> None:
    counted = {"name": "acc", "direction": "maximize", "scale": "base", "unit": "accuracy",
               "size": False}  # fmt: skip
    rows = {
        "values": [2.5, 0.3],
        "stderrs": [0.1, 0.1],
        "retained": [0.8, 0.6],
        "lost": 30.0,
        "held": None,
    }
    found = said(
        objectives=[AIM, counted],
        held=[0, 0],
        base={"values": [2.0, 0.5], "held": None},
        starts=[],
        deciding=[0, 1],
        loss_unit="% of the base's score",
        found=row(2.5) | rows,
        best=row(2.5) | rows,
        random={"trials": 5, "best": None, "expected": 50.0},
        verdict=judged(unit="", held=False, numbers=[0, 1]),
    )
    text = "\n".join(summary_lines(found, 100))
    assert "by 25.0 ± 2.0 % of the base's scores (on the samples that it was chosen by" in text
    assert "mean of 2 objectives)" in text
    assert "60.0 %" in text
    assert "be expected to lose 50 % of the base's score on the mean (found: 30)" in text
    preferred = VerdictRecord.model_validate(judged(numbers=[0]))
    preferring = found.model_copy(update={"verdict": preferred})
    assert 'nll("a.txt") alone)' in "\n".join(summary_lines(preferring, 100))


def test_open_sizes_stand_beside_the_dropped_layers() -> None:
    found = said(best=row(2.5, dropped="L3", sizes="width 1280"), found=row(2.5, sizes="experts 4"))
    lines = "\n".join(summary_lines(found, 100))
    assert "found: run/best.tailor, experts 4" in lines
    assert "drop L3, width 1280" not in lines, "the same trial as the plan found"


def test_a_simpler_plan_has_a_row_of_its_own() -> None:
    found = said(best=row(2.75, "greedy removal", trial=2, dropped="L3"))
    lines = list(summary_lines(found, 100))
    [simpler] = [line for line in lines if line.startswith("  simpler: run/best.tailor, drop L3")]
    assert "2.75" in simpler
    assert not [line for line in summary_lines(said(), 100) if "simpler" in line]


def test_healing_in_vain_is_called_so_in_the_mean_too() -> None:
    aims = [AIM, AIM | {"name": 'nll("b.txt")'}]
    two = {"values": [2.5, 3.5], "stderrs": [0.3, 0.4], "retained": None, "stage": "healed"}
    mean = {"verdict": judged(numbers=[0, 1]), "held": [30, 30], "objectives": aims,
            "base": {"values": [2.0, 3.0], "held": None},
            "starts": [],
            "random": {"trials": 5, "best": None, "expected": 3.0}}  # fmt: skip
    for before, words in (([2.5, 3.5], "healing changed nothing"), ([2.6, 3.5], "healed")):
        healed = row(2.5) | two | {"before": before, "held": None}
        lines = "\n".join(summary_lines(said(best=healed, found=healed, **mean), 100))
        assert lines.count(f"found: run/best.tailor ({words})") == 3


def test_the_mean_over_objectives_has_a_table() -> None:
    aims = [AIM, AIM | {"name": 'nll("b.txt")'}]
    two = {"values": [2.5, 3.5], "stderrs": [0.3, 0.4], "retained": None,
           "held": {"values": [3.0, 5.0], "stderrs": [0.06, 0.08]}}  # fmt: skip
    found = said(
        objectives=aims, held=[30, 30], verdict=judged(numbers=[0, 1]),
        best=row(2.5) | two, found=row(2.5) | two,
        base={"values": [2.0, 3.0], "held": {"values": [2.5, 3.5], "stderrs": [0.0, 0.0]}},
        starts=[row(3.0) | two | {"values": [3.0, 4.0], "held": None}],
        random={"trials": 1, "best": row(4.0) | two, "expected": None},
    )  # fmt: skip
    lines = list(summary_lines(found, 100))
    at = lines.index("mean of 2 objectives: less is better")
    assert lines[at + 2].split() == ["the", "base,", "uncut", "2.5", "3", "±", "0"]
    assert lines[at + 4].startswith("  the best of 1 random plan ")
    assert lines[at + 5].split()[2:] == ["3", "±", "0.25", "0.5", "4", "±", "0.05", "1"]
    assert "| found: run/best.tailor | 3 ± 0.25 | 0.5 | 4 ± 0.05 | 1 |" in markdown(found)
    counted = aims[1] | {"direction": "maximize", "unit": "accuracy"}
    unlike = found.model_copy(update={"objectives": (Aim(**AIM), Aim(**counted))})
    assert "mean of 2 objectives:" not in "\n".join(summary_lines(unlike, 100))


def test_one_of_a_thing_is_no_plural() -> None:
    drawn = {"trials": 1, "best": None, "expected": None}
    without: dict[str, Any] = {"found": None, "best": None, "verdict": None, "starts": []}
    found = said(trials=1, cost=1, random=drawn, **without)
    text = "\n".join(summary_lines(found, 80))
    assert "1 trial," in text


def test_a_bound_by_a_model_is_another_on_held_out_samples() -> None:
    line = {"require": "nll <= base", "bound": 3.0, "value": 2.5, "held": 2.75, "held_bound": 3.25}
    required = {"evaluated": 3, "whole": True, "met": 2, "nearest": None, "rows": [line]}
    text = "\n".join(summary_lines(said(required=required), 80))
    assert "nll <= base (3): it has 2.5, held out 2.75 (3.25)" in text
    line["held_bound"] = 3.0
    assert "held out 2.75\n" in "\n".join(summary_lines(said(required=required), 80))


def test_a_size_has_a_row() -> None:
    size = {"file": "front/trial-0004.tailor", "parameters": 110_000_000, "bytes": 220_000_000,
            "kv_cache": 18_432, "layers": 24, "share": 0.25, "nats": 0.5,
            "loss": 0.25}  # fmt: skip
    found = said(sizes=[row(2.5) | size, row(2.25) | size | {"kv_cache": None, "layers": 26}])
    text = list(summary_lines(found, 120))
    at = text.index("quality over size: gptailor pick writes one of these")
    assert text[at + 1].split() == [
        "plan", "layers", "parameters", "weights", "KV/token", "score", "lost", "held", "out",
    ]  # fmt: skip
    assert text[at + 2].split()[1:8] == ["24", "110,000,000", "220.0", "MB", "18.4", "kB", "2.5"]
    assert text[at + 2].endswith("  0.5     3 ± 0.01")
    assert "  ?  " in text[at + 3]
    assert "## Quality over size" in markdown(found)


def test_numbers_are_short() -> None:
    assert shown_number(3.78512, 0.0412) == "3.785 ± 0.041"
    assert shown_number(None) == "?"
    assert shown_number(127_434_816.0, 0.0) == "127,434,816"
    assert shown_number(1234.5, 0.0) == "1234 ± 0"
    assert percent(0.7834) == "78.3 %"
    assert percent(None) == "?"


def test_numbers_at_their_bounds_are_named_on_the_page_and_the_terminal() -> None:
    numbers = [{"name": f"let n{i}", "value": i / 2, "bound": "high"} for i in range(10)]
    shown = said(at_bounds=numbers)
    for text in (markdown(shown), "\n".join(summary_lines(shown, 100))):
        assert "at a bound of their interval: let n0 = 0, the high end; let n1 = 0.5, the" in text
        assert "and 2 more" in text
        assert "let n8" not in text
    assert "at a bound" not in markdown(said())
