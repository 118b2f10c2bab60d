"""The charts of a search's trials: their numbers against another computation."""

import math
import shutil
from dataclasses import replace
from itertools import cycle
from pathlib import Path
from statistics import fmean, variance
from typing import Any

import pytest

import gptailor
from gptailor.plan.resolved import Resolved
from gptailor.plugins.report import search_charts
from gptailor.plugins.report.effects import Effects, LayerState, WindowLoss
from gptailor.plugins.report.layer_effects import (
    layer_states,
    learned_effects,
    run_effects,
    seen_effects,
    window_losses,
)
from gptailor.plugins.report.page import page_html
from gptailor.plugins.report.progress_charts import best_so_far
from gptailor.plugins.report.run_sections import run_sections
from gptailor.plugins.report.section import Section
from gptailor.searching.run.trials import ORDER, RECIPES, Ledger, Trial
from gptailor.searching.run_reading import RunReading, read_run
from gptailor.searching.space.decode import decode
from gptailor.searching.space.genome import Genome
from gptailor.searching.space.hash_random import key_of
from gptailor.searching.space.space import space_of
from gptailor.searching.space.table import sample
from tests.plugins.report import reported_run
from tests.plugins.report.reported_run import losses
from tests.searching import landscape
from tests.searching.written_run import ACCURACY, LAYERS, NLL, run_of

run, reading = reported_run.run, reported_run.reading


@pytest.fixture(scope="module")
def effects(run: tuple[Path, Ledger]) -> Effects:
    """Return the effects of layers in the run."""
    return run_effects(read_run(run[0]))


def section(reading: RunReading, anchor: str) -> Section:
    """A section of the page."""
    return next(item for item in run_sections(reading, Effects()) if item.anchor == anchor)


def rows_of(made: Section) -> list[dict[str, Any]]:
    """Return the rows of a chart's layers."""
    assert made.chart is not None
    chart = made.chart.to_dict()
    layers = chart.get("layer", [chart])
    values = [layer.get("data", chart.get("data", {})).get("values") for layer in layers]
    values += chart.get("datasets", {}).values()
    return [row for rows in values if rows is not None for row in rows]


def test_effects_are_differences_of_means(effects: Effects, run: tuple[Path, Ledger]) -> None:
    space, known = landscape.space(), losses(run[1])
    dropped = {
        t.number: {drop.position for drop in decode(space, t.request.genome).drops}
        for t in run[1].trials
    }
    shown = {item.layer: item for item in effects.seen if item.state == "dropped"}
    for layer in range(LAYERS):
        without = [loss for n, loss in known.items() if layer in dropped[n]]
        there = [loss for n, loss in known.items() if layer not in dropped[n]]
        assert shown[layer].count == len(without) > 1
        assert shown[layer].others == len(there)
        assert shown[layer].mean == pytest.approx(fmean(without) - fmean(there))
        wanted = math.sqrt(variance(without) / len(without) + variance(there) / len(there))
        assert shown[layer].error == pytest.approx(wanted)
    middle = shown[3].mean  # the landscape's cheapest layer to leave out
    assert middle < min(shown[0].mean, shown[7].mean)


def test_one_trial_shows_no_effect() -> None:
    states: list[list[LayerState]] = [["dropped", "kept"], ["kept", "dropped"], ["kept", "dropped"]]
    assert seen_effects(states, [1.0, 2.0, 4.0]) == []
    states.append(["dropped", "kept"])
    first, *_ = seen_effects([*states], [1.0, 2.0, 4.0, 3.0])
    assert (first.mean, first.count, first.others) == (-1.0, 2, 2)


def test_missing_sections_are_reported(reading: RunReading, effects: Effects) -> None:
    assert effects.learned == []
    [why] = effects.missing
    assert "drifting, which has no model of the layers" in why
    [words] = [item.words for item in run_sections(reading, effects) if item.anchor == "missing"]
    assert words.startswith("The search hasn't ended")
    assert words.endswith(why)


def test_each_kind_of_effect_has_a_section(reading: RunReading, effects: Effects) -> None:
    windows = [WindowLoss(1, 2, 0.5, 0.25, 3), WindowLoss(2, 3, 0.75, 0.5, 2)]
    shown = run_sections(reading, Effects(windows, effects.seen, effects.seen))
    assert [item.anchor for item in shown][-4:-1] == ["layers", "layers-learned", "windows"]


def test_each_layer_has_a_state() -> None:
    plan = gptailor.loads(landscape.BASE + 'model math = "./math"\ndrop L1\nL2.attn from math\n')
    assert layer_states(Resolved(plan, 4).slots) == ["kept", "dropped", "changed", "kept"]
    stack = gptailor.loads(landscape.BASE + "stack {\n  L0..L3 base\n}\n")
    assert layer_states(Resolved(stack, 4).slots) is None


def test_the_best_so_far_equals_a_naive_loop(reading: RunReading, run: tuple[Path, Ledger]) -> None:
    spent, best, wanted = 0.0, math.inf, []
    for told in run[1].trials:
        spent += 0.0 if told.same_as is not None else told.share
        if told.values is not None and told.share == 1.0 and told.values[0] < best:
            best = told.values[0]
            wanted.append((pytest.approx(spent), told.number))
    result = best_so_far(reading, ("start", "random", "search"))
    assert [(cost, trial.number) for cost, trial in result] == wanted
    assert len(wanted) > 2
    drawn = [
        row for row in rows_of(section(reading, "progress")) if row.get("line") == "the search"
    ]
    assert drawn[-1]["value"] == pytest.approx(best)
    assert drawn[-1]["cost"] == pytest.approx(spent)


def test_every_trial_with_a_score_has_a_mark_and_its_plan(reading: RunReading) -> None:
    made, trials = section(reading, "trials"), reading.ledger.trials
    marks = {row["plan"]: row for row in rows_of(made) if "plan" in row}
    drawn = {f"trial {t.number}": t for t in trials if t.values is not None and t.same_as is None}
    assert marks.keys() == made.plans.keys() == drawn.keys()
    for name, trial in drawn.items():
        assert marks[name]["whole"] is trial.full
        assert made.plans[name] == gptailor.format(decode(reading.space, trial.request.genome))
    ringed = {row["plan"] for row in marks.values() if row["front"]}
    assert ringed == {f"trial {trial.number}" for trial in reading.front} != set()
    assert made.table is not None
    assert len(made.table.rows) == len(trials)


def test_a_ruined_plan_is_drawn_at_the_edge(run: tuple[Path, Ledger]) -> None:
    reading = read_run(run[0])
    last = next(t for t in reversed(reading.ledger.trials) if t.full and t.same_as is None)
    ruined = (1e6 + reading.ledger.references[64][0],)
    reading.ledger.trials[last.number] = replace(last, values=ruined)
    made = section(reading, "trials")
    marks = [row for row in rows_of(made) if row.get("plan") == f"trial {last.number}"]
    assert {row["loss"] for row in marks} == {"1e+06 nats"}
    assert max(row["y"] for row in marks) < 1e3
    assert "An arrow is over a plan that loses more than" in made.words


def test_several_objectives_have_axes_to_choose(tmp_path: Path) -> None:
    ledger = run_of(tmp_path, (NLL, ACCURACY), trials=12)
    made = section(read_run(tmp_path), "objectives")
    chart = made.chart.to_dict() if made.chart is not None else {}
    assert [item["name"] for item in chart["params"]] == ["across", "up"]
    marks = {row["plan"]: row for row in rows_of(made) if "plan" in row}
    for trial in ledger.trials:
        if trial.share == 1.0 and trial.values is not None and trial.same_as is None:
            row = marks[f"trial {trial.number}"]
            assert (row["objective_0"], row["objective_1"]) == trial.values


def test_failed_trials_are_in_the_table_alone(tmp_path: Path) -> None:
    run_of(tmp_path, trials=20, fails=lambda plan: plan.drops[0].position == 0)
    reading = read_run(tmp_path)
    trials = reading.ledger.trials
    failed = [trial for trial in trials if trial.failure is not None]
    assert failed
    made = section(reading, "trials")
    drawn = {row.get("plan") for row in rows_of(made)}
    assert not {f"trial {t.number}" for t in failed} & drawn
    assert f"{len(failed)} of {len(trials)} trials failed" in made.words
    assert made.table is not None
    assert sum("failed: too bad" in cells for row in made.table.rows for cells in row) == len(
        failed
    )


def test_a_run_without_scores_has_a_report(tmp_path: Path) -> None:
    with pytest.raises(gptailor.TailorError):
        run_of(tmp_path, fails=lambda plan: True)
    (tmp_path / "other").mkdir()
    run_of(tmp_path / "other", trials=1)
    shutil.copyfile(tmp_path / "other" / "run.json", tmp_path / "run.json")
    reading = read_run(tmp_path)
    assert reading.front == []
    assert section(reading, "trials").words == "No trial has a score."
    assert section(reading, "progress").chart is None
    assert "No trial has a score." in page_html("Search", "", run_sections(reading, Effects()))


def test_trials_of_recipes_have_no_effects_of_layers(run: tuple[Path, Ledger]) -> None:
    recipes = Ledger(run[1].aims, run[1].full)
    for trial in run[1].trials[:3]:
        recipes.add(replace(trial, request=replace(trial.request, phase=RECIPES)))
    assert learned_effects(landscape.space(), recipes, None) == []


def test_learned_effects_follow_the_landscape(run: tuple[Path, Ledger]) -> None:
    effects = learned_effects(landscape.space(), run[1], None)
    dropped = {effect.layer: effect for effect in effects if effect.state == "dropped"}
    assert dropped.keys() == set(range(LAYERS))
    assert max(dropped[3].mean, dropped[2].mean) < min(dropped[0].mean, dropped[7].mean)
    assert all(effect.error is not None and 0 < effect.error < 2 for effect in effects)
    assert all(effect.count + effect.others == 128 for effect in effects)


def test_windows_are_means_over_the_plans_without_them(run: tuple[Path, Ledger]) -> None:
    text = landscape.BASE + "drop window 2..3 of L0..L7\n"
    space = space_of(gptailor.loads(text), LAYERS)
    drawn = sample(space.table, key_of(1), 30)
    plans = [decode(space, Genome(*genes)) for genes in zip(*drawn, strict=True)]
    request = run[1].trials[0].request
    trials = [
        Trial(n, replace(request, genome=Genome(*genes)), str(n), 1.0, (float(n),), (0.1,))
        for n, genes in enumerate(zip(*drawn, strict=True))
    ]
    result = window_losses(space, trials, {n: float(n) for n in range(30)})
    for item in result:
        window = list(range(item.first, item.last + 1))
        there = [n for n in range(30) if [drop.position for drop in plans[n].drops] == window]
        assert (item.count, item.least) == (len(there), min(there))
        assert item.mean == pytest.approx(fmean(there))
    assert sum(item.count for item in result) == 30


def test_five_hundred_trials_fit_a_page(run: tuple[Path, Ledger], effects: Effects) -> None:
    many = read_run(run[0])
    whole = [t for t in many.ledger.trials if search_charts.is_whole(t)]
    many.ledger.trials[:] = [
        replace(trial, number=n, request=replace(trial.request, asked_after=0))
        for n, trial in zip(range(500), cycle(whole), strict=False)
    ]
    page = page_html("Search", "", run_sections(many, effects))
    assert len(page.encode()) < 8_000_000
    assert '"trial 499"' in page


def test_the_report_has_a_mark_for_each_phase_of_a_search() -> None:
    assert {*search_charts._KINDS} == {*ORDER}
    assert len(search_charts._KINDS) == len(search_charts._SHAPES) == len(search_charts._COLOURS)
    assert len({*search_charts._SHAPES}) == len({*search_charts._COLOURS}) == len(ORDER)


def test_trials_stand_at_their_sizes(tmp_path: Path) -> None:
    ledger = run_of(tmp_path, trials=6)
    size = {"parameters": 6_000_000, "bytes": 12_000_000, "kv_cache": 64, "layers": 6}
    sizes = {"base": {**size, "parameters": 8_000_000}, "plans": {ledger.trials[0].plan: size}}
    landscape.study_of(tmp_path).note("sizes", sizes)
    rows = rows_of(section(read_run(tmp_path), "trials"))
    assert {row["x"] for row in rows if "plan" in row} == {6.0}
    assert {row["x"] for row in rows if row.get("name") == "the base, uncut"} == {8.0}
