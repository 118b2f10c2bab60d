"""A search's summary as a table and as a page."""

import json
import re
from typing import Any

import pytest

from gptailor.reporting.quantities import percent, shown_number
from gptailor.searching.run.origin import (
    BestWindow,
    ModelAlone,
    SearchedRecipe,
    StrategyPlan,
    TrialOrigin,
    UniformMerge,
)
from gptailor.searching.run.records import SearchSummary
from gptailor.searching.search_text import headline, markdown, short_recipe, summary_lines
from tests.searching.summary_file import AIM, WORSE, document, judged, row

ITSELF = WORSE | {"trial": 4, "gain": 0.0}


def said(**changes: Any) -> SearchSummary:
    """Return a summary that went through its file."""
    return SearchSummary.model_validate_json(json.dumps(document(**changes)))


def words(summary: SearchSummary) -> str:
    """Return the summary's words on a terminal, in one line."""
    return " ".join("\n".join(summary_lines(summary, 80)).split())


def rows(summary: SearchSummary, width: int = 80) -> list[list[str]]:
    """Return the cells of the rows of scores."""
    lines = list(summary_lines(summary, width))
    table = lines[lines.index("") + 1 :]
    return [re.split(r" {2,}", line.strip()) for line in table[: table.index("")]]


# --------------------------------------------------------------------------------- the first lines


def test_the_first_lines_have_time_plans_loss_error_and_verdict() -> None:
    assert headline(said(found=row(2.5, cut="L4 dropped"))) == (
        "19 plans tried in 0:44, 2 failed. Found plan 4 (L4 dropped): 0.750 ± 0.010 nats lost, on"
        " 30 held-out samples. Better than the best of 2 starting plans, plan 2 (greedy removal),"
        " by 0.250 ± 0.020 nats."
    )
    unseen = said(held=[0], verdict=judged(held=False, starts=1), failed=0)
    assert headline(unseen) == (
        "19 plans tried in 0:44. Found plan 4 (surrogate): 0.500 ± 0.020 nats lost, on 64 samples,"
        " none held out. Better than plan 2 (greedy removal), by 0.250 ± 0.020 nats."
    )
    lines = list(summary_lines(said(), 80))
    assert " ".join(lines[: lines.index("")]) == headline(said())
    assert headline(said()) in markdown(said()).splitlines()


@pytest.mark.parametrize(
    ("ended", "end"),
    [
        ("exhausted", "; the strategy found nothing new any more."),
        ("interrupted", "; interrupted, and the same command goes on."),
    ],
)
def test_a_search_that_ended_before_its_budget_is_called_so(ended: str, end: str) -> None:
    assert headline(said(ended=ended)).startswith(f"19 plans tried in 0:44, 2 failed{end}")


SIMPLER = "best.tailor is a simpler plan within one standard error, plan 2 (L3 dropped)."


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        (
            {"better": False},
            f"A tie with plan 2 (greedy removal): better by 0.250 ± 0.020 nats. {SIMPLER}",
        ),
        (
            {"better": False, "worse": True, "held": False, "against": WORSE},
            f"Worse than plan 2 (greedy removal), by 0.250 ± 0.020 nats. {SIMPLER}",
        ),
        (
            {"better": False, "against": ITSELF},
            "The search found nothing better than a starting plan, plan 4 (greedy removal). "
            + SIMPLER,
        ),
        (
            {"against": None},
            "No starting plan repaired alike meets all requirements, so it is compared with none.",
        ),
    ],
)
def test_a_tie_is_called_a_tie(changes: dict[str, Any], wanted: str) -> None:
    best = row(2.75, "greedy removal", trial=2, cut="L3 dropped")
    assert wanted in headline(said(verdict=judged(**changes), best=best))


@pytest.mark.parametrize(("held", "few"), [(8, False), (7, True), (1, True)])
def test_too_few_samples_are_said_to_be_too_few(held: int, few: bool) -> None:
    for better in (True, False):
        first = headline(said(held=[held], verdict=judged(better=better)))
        assert ("too few to tell; use 8 or more." in first) == few
        assert ("Ahead of" in first) == (few and better)
    assert "on 1 held-out sample. " in headline(said(held=[1]))


def test_a_base_that_is_no_larger_is_a_rival_too() -> None:
    base = {"gain": -0.02, "stderr": 0.01, "better": False, "no_larger": True}
    wanted = " No better than the base, uncut, which is no larger: worse by 0.020 ± 0.010 nats."
    assert headline(said(verdict=judged(base=base))).endswith(wanted)


def test_objectives_of_several_kinds_are_compared_in_shares() -> None:
    counted = AIM | {"name": "acc", "direction": "maximize", "unit": "accuracy"}
    found = row(2.5) | {
        "values": [2.5, 0.3], "stderrs": [0.1, 0.1], "lost": 30.0,
        "lost_stderr": 5.0, "held": None, "held_lost": None,
    }  # fmt: skip
    shown = said(
        objectives=[AIM, counted],
        held=[0, 0],
        base={"values": [2.0, 0.5], "held": None},
        starts=[],
        deciding=[0, 1],
        loss_unit="% of the base's score",
        found=found,
        best=found,
        random={"trials": 5, "best": None, "expected": 50.0},
        verdict=judged(held=False),
    )
    first = headline(shown)
    assert "30.0 ± 5.0 % of the base's score lost on the mean of 2 objectives, on 64" in first
    assert "by 0.250 ± 0.020 % of the base's score." in first
    assert "expected to lose 50 % of the base's score (found: 30)" in words(shown)
    head, *_, last = rows(shown)[2:]
    assert head == ["(1)", "(2)", "% lost"]
    assert last == ["found 4: surrogate", "2.5 ± 0.1", "0.3 ± 0.1", "30"]
    verdict = judged(held=False)
    preferring = said(**document(objectives=[AIM, counted], held=[0, 0], verdict=verdict,
                                 base={"values": [2.0, 0.5], "held": None}, starts=[], found=found,
                                 random={"trials": 0, "best": None, "expected": None},
                                 best=found))  # fmt: skip
    assert 'nats lost by nll("a.txt") alone, on' in headline(preferring)


@pytest.mark.parametrize(
    ("required", "end"),
    [
        (None, "No plan has a score."),
        ({"evaluated": 3, "whole": True, "met": 0, "nearest": None, "rows": []},
         "There is no best plan."),
    ],
)  # fmt: skip
def test_without_a_plan_the_first_lines_say_so(required: dict[str, Any] | None, end: str) -> None:
    without: dict[str, Any] = {"best": None, "found": None, "verdict": None, "starts": []}
    shown = said(**without, held=[0], random={"trials": 0, "best": None, "expected": None},
                 required=required)  # fmt: skip
    assert headline(shown).endswith(f" {end}")
    text = words(shown)
    assert "none held out" in text
    assert "found:" not in text
    assert "gptailor" not in text


# -------------------------------------------------------------------------------------- the tables


@pytest.mark.parametrize("width", [60, 80, 200])
def test_each_row_is_a_line_and_stands_in_columns(width: int) -> None:
    cut = ", ".join(f"L{number}" for number in range(3, 25, 2)) + " dropped"
    names = [row(3.0 + n / 10, trial=n, cut=cut, recipe="math+code 0.6") for n in range(5, 9)]
    shown = said(starts=names)
    lines = list(summary_lines(shown, width))
    table = lines[lines.index("") + 1 :]
    table = table[: table.index("")]
    assert len(table) == 2 + 2 + 4 + 1, "legend and head; base and found; starts; random"
    assert max(map(len, table)) <= width
    assert len({len(line) for line in table[3:]}) == 1
    starts = [line.split()[:3] for line in table if line.startswith("  start")]
    assert starts == [["start", f"{number}:", "L3,"] for number in range(5, 9)]


def test_rows_name_plans_by_number_and_cut() -> None:
    starts = [row(3.0, "best window on math", trial=7, cut="L3..L5 dropped", recipe="math")]
    found = row(2.5, cut="L4, L6 dropped, width 1280")
    assert rows(said(starts=starts, found=found), 100) == [
        ['nll("a.txt"): less is better; 64 samples, 30 held out'],
        ["score", "held out", "nats lost"],
        ["base", "2", "2.25 ± 0"],
        ["found 4: L4, L6 dropped, width 1280", "2.5 ± 0.02", "3 ± 0.01", "0.75"],
        ["start 7: L3..L5 dropped, math", "3 ± 0.02", "3.5 ± 0.01", "1.25"],
        ["random 3: random", "3.5 ± 0.02", "4 ± 0.01", "1.75"],
    ]


def test_the_recipe_of_cuts_stands_once_above_them() -> None:
    recipe = row(1.9, "uniform merge by 0.6", trial=1, stage="uncut", recipe="merge 0.6",
                 lost=-0.1)  # fmt: skip
    starts = [row(3.0, trial=7, cut="L3 dropped", recipe="merge 0.6"),
              row(3.5, trial=8, cut="L3 dropped", recipe="math")]  # fmt: skip
    shown = rows(said(recipe=recipe, recipes=11, starts=starts, heals=True), 100)
    line = "recipe of cuts: uniform merge by 0.6 (plan 1), uncut 0.100 ± 0.020 nats won"
    assert shown[1] == [line]
    assert [name for name, *_ in shown[5:7]] == ["start 7: L3 dropped", "start 8: L3 dropped, math"]
    compared = "The search compared 11 recipes with nothing dropped, then cuts of the best recipe."
    text = words(said(recipe=recipe, recipes=11, heals=True))
    assert f"{compared} The best plans were healed at the end." in text


@pytest.mark.parametrize(
    ("origin", "short"),
    [
        (BestWindow(of=ModelAlone(model="math")), "math"),
        (BestWindow(of=UniformMerge(models=("math", "code"), coefficient=0.6)), "math+code 0.6"),
        (BestWindow(of=UniformMerge(models=("math", "code"), every=True)), "merge"),
        (BestWindow(of=SearchedRecipe()), ""),
        (BestWindow(), ""),
        (StrategyPlan(strategy="surrogate"), ""),
    ],
)
def test_a_recipe_has_short_words(origin: TrialOrigin, short: str) -> None:
    assert short_recipe(origin) == short


def test_repaired_plans_have_their_scores_before_it() -> None:
    healed = {"stage": "healed", "before": [2.75]}
    found = row(2.5, cut="L3 dropped", **healed)
    starts = [row(3.0, trial=7, cut="L4 dropped", **healed | {"before": [3.0]}),
              row(3.5, trial=8, cut="L5 dropped", stage="bridged")]  # fmt: skip
    final = [found, row(2.25, trial=9, cut="L6 dropped", **healed)]
    shown = said(found=found, best=found, starts=starts, final=final, heals=True)
    names = [cells[:2] for cells in rows(shown, 100)[3:6]]
    assert names == [
        ["found 4: L3 dropped", "2.75 → 2.5 ± 0.02"],
        ["start 7: L4 dropped, healing changed nothing", "3 → 3 ± 0.02"],
        ["finalist 9: L6 dropped", "2.75 → 2.25 ± 0.02"],
    ], "a plan that was repaired less is not compared"
    assert "Found plan 4 (L3 dropped, healed): " in headline(shown)


def test_a_finalist_that_failed_has_its_reason() -> None:
    failure = "error: error[C806]: too short\n  = help: more text"
    failed = row(2.0, trial=10, cut="L3 dropped", stage="healed", before=[2.75], values=None,
                 failure=failure)  # fmt: skip
    shown = said(final=[failed], heals=True)
    assert "2.75 → failed" in words(shown)
    line = "- plan 10 (L3 dropped, healed): failed: error: error[C806]: too short"
    assert line in list(summary_lines(shown, 80))
    assert line in markdown(shown).splitlines()


def test_a_failure_on_what_was_held_out_is_said() -> None:
    unseen = {"held": {"failure": "nan"}, "held_lost": None}
    [found] = [cells for cells in rows(said(found=row(2.5, **unseen))) if "found" in cells[0]]
    assert found == ["found 4: surrogate", "2.5 ± 0.02", "failed"]


def test_a_simpler_plan_has_a_row_of_its_own() -> None:
    best = row(2.75, "greedy removal", trial=2, cut="L3 dropped")
    names = [cells[0] for cells in rows(said(best=best))]
    assert names[3:5] == ["simpler 2: L3 dropped", "found 4: surrogate"][::-1]
    assert not [cells for cells in rows(said()) if "simpler" in cells[0]]


def test_the_page_is_a_table_that_renders() -> None:
    page = markdown(said(starts=[row(3.0, trial=7)]))
    table = [line for line in page.splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in table}) == 1
    assert table[1] == "|---|--:|--:|--:|"
    assert len(table) == 2 + 4


def test_a_size_has_a_row() -> None:
    size = {"file": "front/trial-0004.tailor", "parameters": 110_000_000, "bytes": 220_000_000,
            "kv_cache": 18_432, "layers": 24, "share": 0.25, "nats": 0.5,
            "cut": "L3..L8 dropped"}  # fmt: skip
    found = said(sizes=[row(2.5) | size, row(2.25) | size | {"kv_cache": None, "layers": 26}])
    text = list(summary_lines(found, 80))
    at = text.index("quality over size: gptailor pick writes one of these")
    cells = [re.split(r" {2,}", line.strip()) for line in text[at + 1 : at + 4]]
    assert cells == [
        ["layers", "parameters", "weights", "KV/token", "nats lost", "held out"],
        ["4: L3..L8 dropped", "24", "110.0 M", "220.0 MB", "18.4 kB", "0.5", "0.75"],
        ["4: L3..L8 dropped", "26", "110.0 M", "220.0 MB", "?", "0.25", "0.5"],
    ]
    assert "- quality over size: gptailor pick writes one of these" in markdown(found)


# --------------------------------------------------------------------------------------- the notes


def test_the_last_line_has_the_cost() -> None:
    shown = said(stopped=7, spared=4.5, late=2, packages=["tpe of mine 1.0"])
    line = (
        "Cost in evaluations on all samples: 12.5 for 20 trials; 3.25 for measuring layers; 1.25"
        " for the base; 1 repeated plan; 7 given up early (spared: 4.5); a slow worker was not"
        " waited for 2 times: the same seed may give other trials; with tpe of mine 1.0."
    )
    assert words(shown).endswith(line)
    assert markdown(shown).splitlines()[-1] == line
    spent = {"evaluations": 0.0, "seconds": 0.0, "base": 0.0}
    short = said(measured=spent, hits=0, trials=1, cost=1, found=None, best=None, verdict=None,
                 starts=[], random={"trials": 0, "best": None, "expected": None})  # fmt: skip
    assert words(short).endswith("samples: 1 for 1 trial.")


def test_what_had_no_room_is_said() -> None:
    found = said(left_out=["9 of 15 windows", "greedy removal"], beyond=["math"])
    for line in (
        "Starting plans beyond the budget: 9 of 15 windows, greedy removal. A larger `--trials`"
        " tries more.",
        "Starting plans beyond what is required of sizes: math.",
    ):
        assert line in words(found)
        assert line in markdown(found)
    assert "beyond" not in markdown(said())


def test_random_search_is_estimated_and_commands_stay_whole() -> None:
    found = said()
    wanted = "would be expected to lose 3.333 nats (found: 0.5): an estimate from 5 random plans."
    assert wanted in words(found)
    assert "    gptailor compile run/best.tailor -o DIR" in list(summary_lines(found, 30))
    assert "    gptailor compile run/best.tailor -o DIR" in markdown(found).splitlines()


def test_the_worth_of_a_loss_before_repair_is_said() -> None:
    worth = {"slope": 0.4234, "correlation": 0.9, "plans": 6}
    line = (
        "A loss of 1 between plans before they were healed was 0.42 after it"
        " (6 plans, rank correlation 0.90)."
    )
    assert line in words(said(repair=worth, heals=True))
    assert "rank correlation" not in markdown(said(heals=True))


def test_a_bound_by_a_model_is_another_on_held_out_samples() -> None:
    line = {"require": "nll <= base", "bound": 3.0, "value": 2.5, "held": 2.75, "held_bound": 3.25}
    required = {"evaluated": 3, "whole": True, "met": 2, "nearest": None, "rows": [line]}
    text = list(summary_lines(said(required=required), 80))
    assert "- 2 of 3 evaluated plans meet the requirements" in text
    assert "- nll <= base (3): it has 2.5, held out 2.75 (3.25)" in text
    line["held_bound"] = 3.0
    text = list(summary_lines(said(required=required), 80))
    assert "- nll <= base (3): it has 2.5, held out 2.75" in text


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
    for text in (markdown(shown), words(shown)):
        assert "at a bound of their interval: let n0 = 0, the high end; let n1 = 0.5, the" in text
        assert "and 2 more" in text
        assert "let n8" not in text
    assert "at a bound" not in markdown(said())
