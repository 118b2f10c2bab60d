"""A search's summary as a table and as a page, from the journal's trials and notes."""

import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gptailor
from gptailor.evaluation.scores import Failure
from gptailor.plan.output_size import OutputSize
from gptailor.reporting.quantities import percent, shown_number
from gptailor.searching.run.origin import (
    BestWindow,
    GreedyRemoval,
    ModelAlone,
    RandomPlan,
    SearchedRecipe,
    StrategyPlan,
    TrialOrigin,
    UniformMerge,
)
from gptailor.searching.run.records import (
    Aim,
    CurvePoint,
    HandedNote,
    RequiredNote,
    RequirementNote,
    ResultNote,
    RunRecord,
    RunSizes,
)
from gptailor.searching.run.scores import Scores
from gptailor.searching.run.study import HeldOutFailure, MeasuredNote, Study
from gptailor.searching.run.trials import (
    FINAL,
    RANDOM,
    RECIPES,
    SEARCH,
    STARTS,
    Ledger,
    Trial,
    TrialRequest,
)
from gptailor.searching.run_reading import RunReading
from gptailor.searching.search_text import headline, markdown, short_recipe, summary_lines
from gptailor.searching.space.genome import Genome
from gptailor.searching.space.space import Space, space_of
from gptailor.searching.summary import held_key
from tests.searching.written_run import record_of

SPACE = space_of(gptailor.loads('tailor 1\nmodel base = "./base"\ndrop any 1..9 of L0..L25\n'), 26)
NLL = Aim('nll("a.txt")', "minimize", "base", unit="nats", text="a.txt")
COUNTED = Aim("acc", "maximize", "base", unit="accuracy")
MATH = BestWindow(of=ModelAlone(model="math"))
STRATEGY = StrategyPlan(strategy="surrogate")
SIZE = OutputSize(110_000_000, 220_000_000, 18_432, 24)
COMMANDS = ("gptailor eval run/best.tailor", "gptailor compile run/best.tailor -o DIR")


def told(
    number: int,
    value: float | tuple[float, ...] | None,
    phase: str = SEARCH,
    origin: TrialOrigin = STRATEGY,
    dropped: tuple[int, ...] = (3,),
    **changes: Any,
) -> Trial:
    """Return a trial on 64 samples, with an error of 0.02."""
    bits = np.array([at in dropped for at in range(26)])
    genome = Genome(bits, np.zeros(0, np.int32), np.zeros(0, np.float32))
    stage = changes.pop("stage", "bare")
    request = TrialRequest(phase, 0, number, origin, genome, 64, stage, 0)
    values = (value,) if isinstance(value, float) else value
    errors = None if values is None else (0.02,) * len(values)
    fields = {
        "plan": str(dropped),
        "share": 1.0,
        "values": values,
        "stderrs": errors,
        "seconds": 0.5,
    }
    return Trial(number, request, **(fields | changes))


FOUND = told(0, 2.5, dropped=(4,))
START = told(1, 2.75, STARTS, GreedyRemoval())
WORSE = told(2, 3.0, STARTS, MATH, dropped=(3, 4, 5))
DRAWN = told(3, 3.5, RANDOM, RandomPlan(), dropped=(9,))


def ended(
    *trials: Trial,
    aims: tuple[Aim, ...] = (NLL,),
    held: int = 30,
    unseen: dict[int, Any] | None = None,
    prefer: int | None = None,
    base: float = 2.0,
    space: Space = SPACE,
    **changes: Any,
) -> RunReading:
    """Return a search that has ended; on held-out samples each score is half a nat higher."""
    study = Study(b"", Path("journal.jsonl"), lambda line: None)
    study.note("version", "0.3.0")
    ledger = Ledger(aims, 64, prefer)
    ledger.references[64] = (base,) * len(aims)
    for trial in trials or (FOUND, START, WORSE, DRAWN):
        study.add(trial)
        ledger.add(trial)
    notes: dict[str, Any] = {held_key(None): Scores((2.25,) * len(aims), (0.0,) * len(aims))}
    for trial in ledger.trials:
        scores = (unseen or {}).get(trial.number)
        if scores is None and trial.values is not None:
            moved = tuple(value + 0.5 for value in trial.values)
            scores = Scores(moved, (0.01,) * len(moved))
        notes |= {} if scores is None else {held_key(trial): scores}
    study.note("held_out", notes if held else {})
    larger = SIZE._replace(parameters=changes.pop("base_size", 130_000_000))
    study.note("sizes", RunSizes(base=larger, plans={t.plan: SIZE for t in ledger.trials}))
    record = record_of(aims, 20, space)
    record |= {name: changes.pop(name) for name in [*changes] if name in record}
    for name in [*changes]:
        if name in ("late", "measured", "conditions", "handed"):
            study.note(name, changes.pop(name))
    end = {"ended": "budget", "held": (held,) * len(aims), "required": None, "left_out": (),
           "beyond": ()}  # fmt: skip
    study.note("result", ResultNote(**(end | changes)))
    return RunReading(
        "run", RunRecord.model_validate_json(json.dumps(record)), study, space, ledger
    )


def words(run: RunReading) -> str:
    """Return the summary's words on a terminal, in one line."""
    return " ".join("\n".join(summary_lines(run, 80)).split())


def rows(run: RunReading, width: int = 80) -> list[list[str]]:
    """Return the cells of the rows of scores."""
    lines = list(summary_lines(run, width))
    table = lines[lines.index("") + 1 :]
    return [re.split(r" {2,}", line.strip()) for line in table[: table.index("")]]


# --------------------------------------------------------------------------------- the first lines


def test_the_first_lines_have_time_plans_loss_error_and_verdict() -> None:
    failed = told(4, None, failure=Failure("nan", "no"), dropped=(8,), seconds=2.0)
    again = told(5, 2.5, dropped=(4,), same_as=0, seconds=0.0)
    measured = MeasuredNote(seconds=40.0)
    run = ended(FOUND, START, WORSE, DRAWN, failed, again, measured=measured)
    assert headline(run) == (
        "6 trials in 0:44, 1 failed. Found plan: trial 0 (L4 dropped), 0.750 ± 0.010 nats lost, on"
        " 30 held-out samples. Better than the best of 2 starting plans, trial 1 (greedy removal),"
        " by 0.250 ± 0.014 nats."
    )
    assert headline(ended(FOUND, START, held=0)) == (
        "2 trials in 0:01. Found plan: trial 0 (L4 dropped), 0.500 ± 0.020 nats lost, on 64 samples"
        ", none held out. Better than trial 1 (greedy removal), by 0.250 ± 0.028 nats."
    )
    lines = list(summary_lines(run, 80))
    assert " ".join(lines[: lines.index("")]) == headline(run)
    assert headline(run) in markdown(run).splitlines()


@pytest.mark.parametrize(
    ("reason", "end"),
    [
        ("exhausted", "; the strategy found nothing new."),
        ("interrupted", "; interrupted, and the same command continues."),
    ],
)
def test_an_early_end_is_reported(reason: str, end: str) -> None:
    assert headline(ended(ended=reason)).startswith(f"4 trials in 0:02{end}")


SIMPLER = "best.tailor is a simpler plan within one standard error, trial 1 (L3 dropped)."


@pytest.mark.parametrize(
    ("unseen", "wanted"),
    [
        (
            3.005,
            "A tie with trial 1 (greedy removal): worse by 0.005 ± 0.014 nats on 30 held-out"
            f" samples; about 960 a text would decide it. {SIMPLER}",
        ),
        (3.25, f"Worse than trial 1 (greedy removal), by 0.250 ± 0.014 nats. {SIMPLER}"),
    ],
)
def test_a_tie_is_reported(unseen: float, wanted: str) -> None:
    scores = {0: Scores((unseen,), (0.01,)), 1: Scores((3.0,), (0.01,))}
    assert wanted in headline(ended(FOUND, START, unseen=scores))


def test_a_starting_plan_may_be_the_best_or_the_only_kind_that_is_missing() -> None:
    best = told(0, 2.25, STARTS, GreedyRemoval())
    wanted = "The search found nothing better than a starting plan, trial 0 (greedy removal)."
    assert headline(ended(best, told(1, 2.5, dropped=(4,)))).endswith(wanted)
    alone = "No starting plan was repaired in the same way, so it is compared with no plan."
    assert headline(ended(FOUND)).endswith(alone)
    met = RequiredNote(evaluated=1, whole=True, met=(0,), nearest=None, rows=())
    alone = "No starting plan was repaired in the same way and meets all requirements, so"
    assert alone in headline(ended(FOUND, required=met))


@pytest.mark.parametrize(("unseen", "verdict"), [
    (2.75, "Better than trial 1 (greedy removal), which is larger, by 0.250 ± 0.014 nats."),
    (3.01, "A tie with trial 1 (greedy removal), which is larger: worse by 0.010 ± 0.014 nats on"),
    (3.25, "Worse than trial 1 (greedy removal), which is larger, by 0.250 ± 0.014 nats."),
])  # fmt: skip
def test_a_smaller_plan_is_compared_with_larger_starting_plans(unseen: float, verdict: str) -> None:
    size = Aim("parameters()", "minimize", "base", unit="parameters", size=True)
    trials = [told(0, (2.5, 90.0), dropped=(4, 5)), told(1, (2.75, 95.0), STARTS, GreedyRemoval())]
    scores = {0: Scores((unseen, 90.0), (0.01, 0.0)), 1: Scores((3.0, 95.0), (0.01, 0.0))}
    run = ended(*trials, aims=(NLL, size), unseen=scores)
    smaller = {trials[0].plan: SIZE._replace(parameters=90), trials[1].plan: SIZE}
    run.study.note("sizes", RunSizes(base=SIZE, plans=smaller))
    assert verdict in headline(run)
    assert "simpler" not in headline(run), "a larger plan is never handed over"


@pytest.mark.parametrize(("held", "few"), [(8, False), (7, True), (1, True)])
def test_too_few_samples_are_reported(held: int, few: bool) -> None:
    for better in (True, False):
        scores = Scores((2.75 if better else 3.5,), (0.01,))
        first = headline(ended(FOUND, START, held=held, unseen={0: scores}))
        assert ("too few to tell; use 8 or more." in first) == few
        assert ("Ahead of" in first) == (few and better)
    assert "on 1 held-out sample. " in headline(ended(held=1))


@pytest.mark.parametrize(
    ("gain", "error", "held", "end"),
    [
        (
            0.23,
            0.12,
            4,
            "better by 0.23 ± 0.12 nats on 4 held-out samples; about 8 a text would decide",
        ),
        (
            0.2,
            0.5,
            30,
            "better by 0.20 ± 0.50 nats on 30 held-out samples; about 750 a text would decide",
        ),
        (
            -0.2,
            0.5,
            30,
            "worse by 0.20 ± 0.50 nats on 30 held-out samples; about 750 a text would decide",
        ),
        (
            0.2,
            0.101,
            30,
            "better by 0.20 ± 0.10 nats on 30 held-out samples; about 31 a text would decide",
        ),
        (0.01, 0.1, 30, "nats on 30 held-out samples; about 12,000 a text would decide it."),
        (0.0, 0.1, 4, "nats on 4 held-out samples; about 8 a text would decide it."),
        (0.0, 0.1, 30, "nats on 30 held-out samples."),
        (0.2, math.inf, 30, "nats on 30 held-out samples."),
        (0.2, math.inf, 1, "nats on 1 held-out sample; about 8 a text would decide it."),
    ],
)
def test_a_tie_has_the_number_of_samples_that_would_decide_it(
    gain: float, error: float, held: int, end: str
) -> None:
    scores = {0: Scores((3.0,), (0.0,)), 1: Scores((3.0 + gain,), (error,))}
    assert end in headline(ended(FOUND, START, unseen=scores, held=held))


@pytest.mark.parametrize(
    ("unseen", "verdict"),
    [
        (2.75, "Worse than the base, uncut, which isn't larger, by 0.500 ± 0.010 nats."),
        (2.0, "Better than the base, uncut, which isn't larger, by 0.250 ± 0.010 nats."),
        (2.24, "A tie with the base, uncut, which isn't larger: better by 0.010 ± 0.010 nats on 30"
               " held-out samples; about 120 a text would decide it."),
    ],
)  # fmt: skip
def test_the_headline_compares_with_a_base_of_equal_size(unseen: float, verdict: str) -> None:
    scores = {0: Scores((unseen,), (0.01,))}
    run = ended(FOUND, START, base_size=SIZE.parameters, unseen=scores)
    assert headline(run).endswith(f" {verdict}")


def test_a_base_that_scores_zero_has_its_losses_in_points() -> None:
    trials = [told(0, 0.25), told(1, 0.125, STARTS, GreedyRemoval(), dropped=(4,))]
    run = ended(*trials, aims=(COUNTED,), base=0.0, held=0)
    assert "Found plan: trial 0 (L3 dropped), 25.0 ± 2.0 points won, on 64 samples" in headline(run)
    assert rows(run)[1] == ["score", "points lost"]


def test_objectives_of_several_kinds_are_compared_in_shares() -> None:
    trials = [told(0, (2.5, 1.5), dropped=(4,)), told(1, (4.0, 1.0), STARTS, MATH)]
    trials += [told(n, (3.0, 1.0), RANDOM, RandomPlan(), (n,)) for n in range(5, 17)]
    trials = [replace(trial, number=number) for number, trial in enumerate(trials)]
    shown = ended(*trials, aims=(NLL, COUNTED), held=0)
    first = headline(shown)
    assert "25.00 ± 0.71 % of the base's score lost on the mean of 2 objectives, on 64" in first
    assert "by 50.0 ± 1.0 % of the base's score." in first
    assert "expected to lose 50 % of the base's score (found: 25)" in words(shown)
    head, _, result, *_ = rows(shown)[2:]
    assert head == ["(1)", "(2)", "% lost"]
    assert result == ["found 0: L4 dropped", "2.5 ± 0.02", "1.5 ± 0.02", "25"]
    preferring = ended(*trials, aims=(NLL, COUNTED), held=0, prefer=0)
    assert 'nats lost by nll("a.txt") alone, on' in headline(preferring)


UNMET = RequiredNote(evaluated=3, whole=True, met=(), nearest=None, rows=())


@pytest.mark.parametrize(
    ("required", "end"), [(None, "No plan has a score."), (UNMET, "There is no best plan.")]
)
def test_the_first_lines_report_a_missing_plan(required: RequiredNote | None, end: str) -> None:
    failed = told(0, None, failure=Failure("nan", "no"))
    shown = ended(failed, held=0, required=required)
    assert headline(shown).endswith(f" {end}")
    text = words(shown)
    assert "none held out" in text
    assert "found:" not in text
    assert "gptailor" not in text


# -------------------------------------------------------------------------------------- the tables


@pytest.mark.parametrize("width", [60, 80, 200])
def test_each_row_is_a_line_in_columns(width: int) -> None:
    mixed = BestWindow(of=UniformMerge(models=("math", "code"), coefficient=0.6))
    cuts = {n: (*range(3, 24, 2), 2 * n) for n in range(1, 5)}
    starts = [told(n, 3.0 + n / 10, STARTS, mixed, cut) for n, cut in cuts.items()]
    shown = ended(FOUND, *starts, told(5, 3.5, RANDOM, RandomPlan(), (9,)))
    lines = list(summary_lines(shown, width))
    assert max(map(len, lines)) <= width
    at = next(n for n, line in enumerate(lines) if line.endswith("nats lost"))
    table = lines[at + 1 : lines.index("", at)]
    assert len(table) == 2 + 4 + 1, "base and found; starts; random"
    assert len({len(line) for line in table[1:]}) == 1
    named = [line.split()[:2] for line in table if line.startswith("  start")]
    colon = ":" * (width == 200)
    assert named == [["start", f"{number}{colon}"] for number in range(1, 5)]
    legend = [line.split()[:3] for line in lines[:at] if line.startswith("  start")]
    cuts_of = ["L2..L3,", "L3..L5,", "L3,", "L3,"]
    numbered = [["start", str(n), cut] for n, cut in enumerate(cuts_of, 1)]
    assert legend == (numbered if width < 200 else [])


def test_rows_name_plans_by_number_and_cut() -> None:
    result = told(0, 2.5, dropped=(4, 6))
    assert rows(ended(result, told(1, 3.0, STARTS, MATH, (3, 4, 5)), told(
        2, 3.5, RANDOM, RandomPlan(), (9,))), 100) == [
        ['nll("a.txt"): less is better; 64 samples, 30 held out'],
        ["score", "held out", "nats lost"],
        ["base", "2", "2.25 ± 0"],
        ["found 0: L4, L6 dropped", "2.5 ± 0.02", "3 ± 0.01", "0.75"],
        ["start 1: L3..L5 dropped, math", "3 ± 0.02", "3.5 ± 0.01", "1.25"],
        ["random 2: L9 dropped", "3.5 ± 0.02", "4 ± 0.01", "1.75"],
    ]  # fmt: skip


def test_losses_by_byte_are_named_above_their_table() -> None:
    by_byte = NLL._replace(unit="bits a byte")
    table = rows(ended(aims=(by_byte,)), 120)
    unit = "in bits a byte, because the vocabularies differ"
    assert table[0] == [f'nll("a.txt"): {unit}; less is better; 64 samples, 30 held out']
    assert table[1][-1] == "bits a byte lost"


def test_the_recipe_of_cuts_has_a_row_with_nothing_dropped() -> None:
    merge = UniformMerge(models=("math", "code"), coefficient=0.6, every=True)
    recipe = told(0, 1.9, RECIPES, BestWindow(of=merge), (), stage="uncut")
    starts = [told(1, 3.0, STARTS, BestWindow(of=merge)), told(2, 3.5, STARTS, MATH, (5,))]
    run = ended(recipe, *starts, told(3, 2.5, dropped=(4,)), heals=True)
    shown = rows(run, 100)
    assert shown[3] == ["uncut 0: merge 0.6", "1.9 ± 0.02", "2.4 ± 0.01", "0.15"]
    assert [name for name, *_ in shown[5:7]] == ["start 1: L3 dropped", "start 2: L5 dropped, math"]
    compared = "The search compared 1 plan with nothing dropped, then cuts of the best one."
    assert f"{compared} The best plans were healed at the end." in words(run)


def test_trials_that_were_bridged_need_no_repair_in_the_end() -> None:
    result = told(0, 3.0, STARTS, BestWindow(), (5,))
    assert "compared cuts. All plans were bridged." in words(ended(result, bridge="each"))
    assert "The best plans were bridged at the end." in words(ended(result, bridge="finalists"))


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
    bare = [told(0, 2.75), told(1, 3.0, STARTS, dropped=(4,)), told(2, 3.5, STARTS, dropped=(5,)),
            told(3, 2.875, dropped=(6,))]  # fmt: skip
    final = [
        told(4, 2.25, FINAL, stage="healed"),
        told(5, 3.0, FINAL, dropped=(4,), stage="healed"),
        told(6, 2.5, FINAL, dropped=(6,), stage="healed"),
    ]
    run = ended(*bare, *final, heals=True, held=0)
    names = [cells[:2] for cells in rows(run, 100)[3:]]
    assert names == [
        ["found 4: L3 dropped", "2.75 → 2.25 ± 0.02"],
        ["start 5: L4 dropped, healing changed nothing", "3 → 3 ± 0.02"],
        ["finalist 6: L6 dropped", "2.875 → 2.5 ± 0.02"],
    ], "a plan that was repaired less is not compared"
    assert "Found plan: trial 4 (L3 dropped, healed), " in headline(run)
    line = "A loss of 1 between plans before they were healed was 3 after it (3 plans, rank"
    assert line in words(run)
    assert "rank correlation" not in markdown(ended(heals=True))


def test_a_finalist_that_failed_has_its_reason() -> None:
    failure = Failure("error", "error[C806]: too short\n  = help: more text")
    failed = told(1, None, FINAL, failure=failure, stage="healed")
    run = ended(told(0, 2.75), failed, heals=True)
    assert "2.75 → failed" in words(run)
    line = "- trial 1 (L3 dropped, healed): failed: error: error[C806]: too short"
    assert line in list(summary_lines(run, 80))
    assert line in markdown(run).splitlines()


def test_a_failure_on_held_out_samples_is_reported() -> None:
    run = ended(unseen={0: HeldOutFailure(failure="nan")})
    [result] = [cells for cells in rows(run) if "found" in cells[0]]
    assert result == ["found 0: L4 dropped", "2.5 ± 0.02", "failed"]


def test_a_simpler_plan_has_its_own_row() -> None:
    alike = {0: Scores((3.0,), (0.5,)), 1: Scores((2.99,), (0.5,))}
    result = told(0, 2.5, dropped=(4,))
    names = [cells[0] for cells in rows(ended(result, START, unseen=alike))]
    assert names[3:5] == ["found 0: L4 dropped", "simpler 1: L3 dropped"]
    assert not [cells for cells in rows(ended()) if "simpler" in cells[0]]


def test_the_page_is_a_table_that_renders() -> None:
    page = markdown(ended())
    table = [line for line in page.splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in table}) == 1
    assert table[1] == "|---|--:|--:|--:|"
    assert len(table) == 2 + 5


def test_a_size_has_a_row() -> None:
    larger = SIZE._replace(kv_cache=None, layers=26)
    points = [CurvePoint(trial=n, size=size, lost=0.5, share=0.25, nats=0.5)
              for n, size in ((0, SIZE), (1, larger))]  # fmt: skip
    run = ended(handed=HandedNote(best=0, curve=tuple(points)))
    text = list(summary_lines(run, 80))
    at = text.index("quality over size: gptailor pick writes one of these")
    cells = [re.split(r" {2,}", line.strip()) for line in text[at + 1 : at + 4]]
    assert cells == [
        ["layers", "parameters", "weights", "KV/token", "nats lost", "held out"],
        ["0: L4 dropped", "24", "110.0 M", "220.0 MB", "18.4 kB", "0.5", "0.75"],
        ["1: L3 dropped", "26", "110.0 M", "220.0 MB", "?", "0.75", "1"],
    ]
    assert "- quality over size: gptailor pick writes one of these" in markdown(run)


# --------------------------------------------------------------------------------------- the notes


def test_the_last_line_has_the_cost() -> None:
    stopped = told(2, 3.0, share=0.25, stopped=16, dropped=(8,))
    again = told(3, 2.5, dropped=(4,), same_as=0)
    run = ended(FOUND, START, stopped, again, late=2, packages=["tpe of mine 1.0"],
                measured=MeasuredNote(evaluations=3.25))  # fmt: skip
    line = (
        "Cost in evaluations on all samples: 2.25 for 4 trials; 3.25 for measuring layers; 1"
        " for the base; 1 repeated plan; 1 given up early (saved: 0.75); a slow worker was not"
        " waited for 2 times: the same seed may give other trials; with tpe of mine 1.0."
    )
    assert words(run).endswith(line)
    assert markdown(run).splitlines()[-1] == line
    assert words(ended(FOUND)).endswith("samples: 1 for 1 trial; 1 for the base.")


def test_untried_starting_plans_are_reported() -> None:
    run = ended(left_out=("9 of 15 windows", "greedy removal"), beyond=("math",))
    for line in (
        "Starting plans beyond the budget: 9 of 15 windows, greedy removal. A larger `--trials`"
        " tries more.",
        "Starting plans that a `require` line for a size excludes: math.",
    ):
        assert line in words(run)
        assert line in markdown(run)
    assert "beyond" not in markdown(ended())


def test_commands_are_not_broken() -> None:
    run, line = ended(), "    gptailor compile run/best.tailor -o DIR"
    assert line in list(summary_lines(run, 30, commands=COMMANDS))
    assert line in markdown(run, COMMANDS).splitlines()
    assert "gptailor" not in markdown(run)
    unseen = "The first command scores it on the search's 64 samples, not on held-out ones."
    assert unseen in markdown(run, COMMANDS)
    assert "first command" not in markdown(ended(held=0), COMMANDS)


def test_a_bound_by_a_model_is_another_on_held_out_samples() -> None:
    row = RequirementNote(require="nll <= base", measure="nll", bound=3.0, held_bound=3.25)
    required = RequiredNote(evaluated=3, whole=True, met=(0, 1), nearest=None, rows=(row,))
    values = {FOUND.plan: {"nll": (2.5, 2.75)}}
    text = list(summary_lines(ended(required=required, conditions=values), 80))
    assert "- 2 of 3 evaluated plans meet the requirements" in text
    assert "- nll <= base (3): it has 2.5, held out 2.75 (3.25)" in text
    alike = required.model_copy(update={"rows": (row.model_copy(update={"held_bound": 3.0}),)})
    text = list(summary_lines(ended(required=alike, conditions=values), 80))
    assert "- nll <= base (3): it has 2.5, held out 2.75" in text


def test_the_nearest_plan_has_values_if_none_meets_the_requirements() -> None:
    row = RequirementNote(require="nll <= 1", measure="nll", bound=1.0, held_bound=1.0)
    required = RequiredNote(evaluated=1, whole=True, met=(), nearest=1, rows=(row,))
    text = words(ended(required=required, conditions={START.plan: {"nll": (2.75, None)}}))
    nearest = "the nearest is front/trial-0001.tailor"
    assert f"- 0 of 1 evaluated plans meet the requirements; {nearest}" in text
    assert "- nll <= 1 (1): it has 2.75" in text
    assert "There is no best plan." in text


def test_numbers_are_rounded() -> None:
    assert shown_number(3.78512, 0.0412) == "3.785 ± 0.041"
    assert shown_number(None) == "?"
    assert shown_number(127_434_816.0, 0.0) == "127,434,816"
    assert shown_number(1234.5, 0.0) == "1234 ± 0"
    assert percent(0.7834) == "78.3 %"
    assert percent(None) == "?"


def test_an_error_that_is_not_known_is_not_shown() -> None:
    result = told(0, 2.5, dropped=(4,), stderrs=(math.inf,))
    [shown] = [cells for cells in rows(ended(result, START, held=0)) if "found" in cells[0]]
    assert shown == ["found 0: L4 dropped", "2.5", "0.5"]


def test_numbers_at_their_bounds_are_named_on_the_page_and_the_terminal() -> None:
    lets = "".join(f"let n{i} = 0.0..1.0\n" for i in range(10))
    numbers = ", ".join(f"n{i}" for i in range(10))
    models = "".join(f'model m{i} = "./m{i}"\n' for i in range(10))
    names = ", ".join(f"m{i}" for i in range(10))
    text = f'tailor 1\nmodel base = "./base"\n{models}{lets}'
    text += f"L0 from {names} by task_arithmetic(weight=({numbers}))\n"
    space = space_of(gptailor.loads(text), 4)
    genome = Genome(np.zeros(0, bool), np.zeros(0, np.int32), np.ones(10, np.float32))
    request = TrialRequest(SEARCH, 0, 0, STRATEGY, genome, 64, "bare", 0)
    run = ended(Trial(0, request, "plan", 1.0, (2.5,), (0.02,)), space=space)
    for shown in (markdown(run), words(run)):
        assert "at a bound of their interval: let n0 = 1, the high end; let n1 = 1, the" in shown
        assert "and 2 more" in shown
        assert "let n8" not in shown
    assert "at a bound" not in markdown(ended())
