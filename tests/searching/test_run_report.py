"""RUN read for a report, and the report's charts: their numbers against another computation."""

import json
import math
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from statistics import fmean, variance
from typing import Any
from urllib.parse import quote

import optuna
import pytest
from optuna.storages import JournalStorage, RDBStorage

import gptailor
from gptailor.checkpoint.files import CheckpointError
from gptailor.plan.plan import Plan
from gptailor.plan.resolved import Resolved
from gptailor.reporting.page import search_charts
from gptailor.reporting.page.page import page_html
from gptailor.reporting.page.progress_charts import best_so_far
from gptailor.reporting.page.run_report import RunReport
from gptailor.reporting.page.run_sections import run_sections
from gptailor.reporting.page.section import Section
from gptailor.reporting.summary import Aim
from gptailor.searching.layer_effects import layer_states, learned_effects, window_losses
from gptailor.searching.run.journal import JournalLines, journal_lines
from gptailor.searching.run.origin import origin_words
from gptailor.searching.run.schedule import ORDER, Budget
from gptailor.searching.run.trials import RECIPES, Ledger, Trial
from gptailor.searching.run_report import run_report
from gptailor.searching.space.decode import decode
from gptailor.searching.space.genome import Genome
from gptailor.searching.space.hash_random import key_of
from gptailor.searching.space.space import space_of
from gptailor.searching.space.table import sample
from tests.reporting.test_search_table import BEGUN
from tests.searching import landscape

NLL, ACCURACY = landscape.NLL._replace(unit="nats"), landscape.ACCURACY
LAYERS = 8


def run_of(
    folder: Path,
    aims: tuple[Aim, ...] = (NLL,),
    trials: int = 40,
    fails: Callable[[Plan], bool] = lambda plan: False,
) -> Ledger:
    """Write a RUN as a search leaves it that was killed; what was told."""
    chosen = landscape.setting(aims=aims, budget=Budget(trials, 16, 64))
    evaluator = landscape.Counting(aims, fails=fails)
    found = landscape.search(folder, chosen, evaluator)
    found.study.note("samples", "16..64")
    found.run()
    (folder / "space.tailor").write_text(landscape.TEXT)
    record = {
        **BEGUN,
        "objectives": [f"{aim.direction} {aim.name}" for aim in aims],
        "aims": [aim._asdict() for aim in aims],
        "layers": LAYERS,
        "strategy": "drifting",
        "trials": trials,
    }
    (folder / "run.json").write_text(json.dumps(record))
    return found.ledger


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Ledger]:
    """A RUN of one objective."""
    folder = tmp_path_factory.mktemp("run")
    return folder, run_of(folder)


@pytest.fixture(scope="module")
def report(run: tuple[Path, Ledger]) -> RunReport:
    """Return the report of the run."""
    return run_report(run[0])


def section(report: RunReport, anchor: str) -> Section:
    """A section of the page."""
    return next(one for one in run_sections(report) if one.anchor == anchor)


def rows_of(made: Section) -> list[dict[str, Any]]:
    """Return the rows of a chart's layers."""
    assert made.chart is not None
    said = made.chart.to_dict()
    layers = said.get("layer", [said])
    values = [layer.get("data", said.get("data", {})).get("values") for layer in layers]
    values += said.get("datasets", {}).values()
    return [row for rows in values if rows is not None for row in rows]


def losses(ledger: Ledger) -> dict[int, float]:
    """Return the losses of trials on all samples, once for each evaluation."""
    [base] = ledger.references[64]
    return {
        t.number: t.values[0] - base
        for t in ledger.trials
        if t.values is not None and t.samples == 64 and t.same_as is None
    }


def test_each_trial_is_as_the_study_has_it(report: RunReport, run: tuple[Path, Ledger]) -> None:
    space = landscape.space()
    assert len(report.trials) == len(run[1].trials) > 40
    for shown, told in zip(report.trials, run[1].trials, strict=True):
        assert (shown.number, shown.values, shown.stderrs) == (
            told.number, told.values, told.stderrs
        )  # fmt: skip
        assert shown.origin == origin_words(told.request.origin)
        assert shown.share == told.share
        assert shown.text == gptailor.format(decode(space, told.request.genome))
        assert shown.layers == LAYERS - 2
    known = losses(run[1])
    shown_losses = {t.number: t.loss for t in report.trials if t.full}
    assert shown_losses == pytest.approx(known)
    assert report.loss_unit == "nats"


def test_what_is_not_there_is_said(report: RunReport) -> None:
    assert any("hasn't come to its end" in one for one in report.missing)
    assert any("drifting, which has no model of what layers do" in one for one in report.missing)
    assert report.summary is None
    assert report.learned == []


def test_effects_are_differences_of_means(report: RunReport, run: tuple[Path, Ledger]) -> None:
    space, known = landscape.space(), losses(run[1])
    dropped = {
        t.number: {drop.position for drop in decode(space, t.request.genome).drops}
        for t in run[1].trials
    }
    shown = {one.layer: one for one in report.effects if one.state == "dropped"}
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


def test_states_are_what_became_of_each_layer() -> None:
    plan = gptailor.loads(landscape.BASE + 'model math = "./math"\ndrop L1\nL2.attn from math\n')
    assert layer_states(Resolved(plan, 4).slots) == ["kept", "dropped", "changed", "kept"]
    stack = gptailor.loads(landscape.BASE + "stack {\n  L0..L3 base\n}\n")
    assert layer_states(Resolved(stack, 4).slots) is None


def test_the_best_so_far_is_that_of_a_loop(report: RunReport, run: tuple[Path, Ledger]) -> None:
    spent, best, wanted = 0.0, math.inf, []
    for told in run[1].trials:
        spent += 0.0 if told.same_as is not None else told.share
        if told.values is not None and told.share == 1.0 and told.values[0] < best:
            best = told.values[0]
            wanted.append((pytest.approx(spent), told.number))
    found = best_so_far(report, ("start", "random", "search"))
    assert [(cost, trial.number) for cost, trial in found] == wanted
    assert len(wanted) > 2
    drawn = [row for row in rows_of(section(report, "progress")) if row.get("line") == "the search"]
    assert drawn[-1]["value"] == pytest.approx(best)
    assert drawn[-1]["cost"] == pytest.approx(spent)


def test_every_trial_with_a_score_has_a_mark_and_its_plan(report: RunReport) -> None:
    made = section(report, "trials")
    marks = {row["plan"]: row for row in rows_of(made) if "plan" in row}
    drawn = [t for t in report.trials if t.values is not None and t.same_as is None]
    assert marks.keys() == made.plans.keys() == {trial.name for trial in drawn}
    for trial in drawn:
        assert marks[trial.name]["whole"] is trial.full
        assert made.plans[trial.name] == trial.text
    ringed = {row["plan"] for row in marks.values() if row["front"]}
    assert ringed == {f"trial {number}" for number in report.front} != set()
    assert made.table is not None
    assert len(made.table.rows) == len(report.trials)


def test_what_is_ruined_stands_at_the_edge(report: RunReport) -> None:
    last = next(trial for trial in reversed(report.trials) if trial.full)
    ruined = replace(last, loss=1e6)
    trials = [ruined if trial is last else trial for trial in report.trials]
    made = section(replace(report, trials=trials), "trials")
    marks = [row for row in rows_of(made) if row.get("plan") == ruined.name]
    assert {row["loss"] for row in marks} == {"1e+06 nats"}
    assert max(row["y"] for row in marks) < 1e3
    assert "An arrow is over one that loses more than" in made.words


def test_several_objectives_have_axes_to_choose(tmp_path: Path) -> None:
    ledger = run_of(tmp_path, (NLL, ACCURACY), trials=12)
    report = run_report(tmp_path)
    assert report.loss_unit == "% of the base's score"
    made = section(report, "objectives")
    said = made.chart.to_dict() if made.chart is not None else {}
    assert [one["name"] for one in said["params"]] == ["across", "up"]
    marks = {row["plan"]: row for row in rows_of(made) if "plan" in row}
    for told in ledger.trials:
        if told.share == 1.0 and told.values is not None and told.same_as is None:
            row = marks[f"trial {told.number}"]
            assert (row["objective_0"], row["objective_1"]) == told.values
    base = ledger.references[64]
    full = next(t for t in report.trials if t.full)
    assert full.values is not None
    wanted = 50 * ((full.values[0] / base[0] - 1) + (1 - full.values[1] / base[1]))
    assert full.loss == pytest.approx(wanted)


def test_failed_trials_are_in_the_table_alone(tmp_path: Path) -> None:
    run_of(tmp_path, trials=20, fails=lambda plan: plan.drops[0].position == 0)
    report = run_report(tmp_path)
    failed = [trial for trial in report.trials if trial.failure is not None]
    assert failed
    made = section(report, "trials")
    assert not {t.name for t in failed} & {row.get("plan") for row in rows_of(made)}
    assert f"{len(failed)} of {len(report.trials)} trials failed" in made.words
    assert made.table is not None
    assert sum("failed: too bad" in cells for row in made.table.rows for cells in row) == len(
        failed
    )


def test_a_run_without_a_score_is_a_page_too(tmp_path: Path) -> None:
    with pytest.raises(gptailor.TailorError):
        run_of(tmp_path, fails=lambda plan: True)
    (tmp_path / "other").mkdir()
    run_of(tmp_path / "other", trials=1)
    for name in ("run.json", "space.tailor"):
        (tmp_path / name).write_bytes((tmp_path / "other" / name).read_bytes())
    report = run_report(tmp_path)
    assert report.front == ()
    assert section(report, "trials").words == "No trial has a score."
    assert section(report, "progress").chart is None
    assert "No trial has a score." in page_html("Search", "", run_sections(report))


def test_a_search_that_goes_on_is_left_alone(run: tuple[Path, Ledger]) -> None:
    journal = run[0] / "study.journal"
    before = journal.read_bytes()
    torn = before + b'{"op_code": 4, "stud'
    journal.write_bytes(torn)
    try:
        assert len(run_report(run[0]).trials) == len(run[1].trials)
        assert journal.read_bytes() == torn
        assert {path.name for path in run[0].iterdir()} == {
            "run.json", "space.tailor", "study.journal"
        }  # fmt: skip
    finally:
        journal.write_bytes(before)


def test_a_run_of_another_version_is_one_message(tmp_path: Path) -> None:
    run_of(tmp_path, trials=2)
    record = json.loads((tmp_path / "run.json").read_text())
    del record["aims"]
    (tmp_path / "run.json").write_text(json.dumps({**record, "version": "0.1.9"}))
    with pytest.raises(
        CheckpointError, match=r"gptailor '0.1.9'.*'aims': field required"
    ) as caught:
        run_report(tmp_path)
    assert (caught.value.code, "writes it anew" in caught.value.help) == ("C903", True)


def test_a_run_without_its_space_has_trials_without_plans(tmp_path: Path) -> None:
    run_of(tmp_path, trials=6)
    (tmp_path / "space.tailor").unlink()
    report = run_report(tmp_path)
    assert all(trial.text is None and trial.layers is None for trial in report.trials)
    assert any("RUN has no space.tailor" in one for one in report.missing)
    made = section(report, "trials")
    assert "sizes are unknown" in made.words
    assert {row["x"] for row in rows_of(made) if "plan" in row} <= set(range(len(report.trials)))


def test_sizes_are_those_that_were_written_down(tmp_path: Path) -> None:
    ledger = run_of(tmp_path, trials=6)
    size = {"parameters": 6_000_000, "bytes": 12_000_000, "kv_cache": 64, "layers": 6}
    said = {"base": {**size, "parameters": 8_000_000}, "plans": {ledger.trials[0].plan: size}}
    (tmp_path / "sizes.json").write_text(json.dumps(said))
    report = run_report(tmp_path)
    assert {t.size.parameters for t in report.trials if t.size} == {6_000_000}  # as large as others
    rows = rows_of(section(report, "trials"))
    assert {row["x"] for row in rows if "plan" in row} == {6.0}
    assert {row["x"] for row in rows if row.get("name") == "the base, uncut"} == {8.0}


@pytest.mark.parametrize(
    ("name", "raw", "message"),
    [
        ("run.json", None, "holds no search"),
        ("run.json", b"{", "is damaged: expected JSON"),
        ("study.journal", None, "has no study.journal"),
        ("study.journal", b"", "has no study.journal with a line"),
        ("study.journal", b"[]\n", "line 1 of the journal is damaged"),
    ],
)
def test_what_holds_no_search_is_one_message(
    tmp_path: Path, name: str, raw: bytes | None, message: str
) -> None:
    run_of(tmp_path, trials=2)
    if raw is None:
        (tmp_path / name).unlink()
    else:
        (tmp_path / name).write_bytes(raw)
    with pytest.raises(CheckpointError, match=message):
        run_report(tmp_path)


def test_recipes_alone_teach_nothing_of_layers(run: tuple[Path, Ledger]) -> None:
    recipes = Ledger(run[1].aims, run[1].full)
    for trial in run[1].trials[:3]:
        recipes.add(replace(trial, request=trial.request._replace(phase=RECIPES)))
    assert learned_effects(landscape.space(), recipes, None) == []


def test_what_the_surrogate_learned_goes_the_way_of_the_landscape(run: tuple[Path, Ledger]) -> None:
    effects = learned_effects(landscape.space(), run[1], None)
    dropped = {one.layer: one for one in effects if one.state == "dropped"}
    assert dropped.keys() == set(range(LAYERS))
    assert max(dropped[3].mean, dropped[2].mean) < min(dropped[0].mean, dropped[7].mean)
    assert all(one.error is not None and 0 < one.error < 2 for one in effects)
    assert all(one.count + one.others == 128 for one in effects)


def test_windows_are_means_over_the_plans_without_them(run: tuple[Path, Ledger]) -> None:
    text = landscape.BASE + "drop window 2..3 of L0..L7\n"
    space = space_of(gptailor.loads(text), LAYERS)
    drawn = sample(space.table, key_of(1), 30)
    plans = [decode(space, Genome(*genes)) for genes in zip(*drawn, strict=True)]
    request = run[1].trials[0].request
    trials = [
        Trial(n, request._replace(genome=Genome(*genes)), str(n), 1.0, (float(n),), (0.1,))
        for n, genes in enumerate(zip(*drawn, strict=True))
    ]
    found = window_losses(space, trials, {n: float(n) for n in range(30)})
    for one in found:
        window = list(range(one.first, one.last + 1))
        there = [n for n in range(30) if [drop.position for drop in plans[n].drops] == window]
        assert (one.count, one.least) == (len(there), min(there))
        assert one.mean == pytest.approx(fmean(there))
    assert sum(one.count for one in found) == 30


def test_a_summary_of_another_version_is_one_message(tmp_path: Path) -> None:
    run_of(tmp_path, trials=2)
    (tmp_path / "summary.json").write_text('{"objectives": []}')
    with pytest.raises(CheckpointError, match=r"summary\.json") as caught:
        run_report(tmp_path)
    assert "is damaged: 'version': field required" in caught.value.message


def test_plans_that_were_handed_over_have_their_text_without_the_space(tmp_path: Path) -> None:
    run_of(tmp_path, trials=2)
    (tmp_path / "space.tailor").unlink()
    (tmp_path / "front").mkdir()
    (tmp_path / "front" / "trial-0001.tailor").write_text("tailor 1\n")
    texts = [trial.text for trial in run_report(tmp_path).trials]
    assert texts[1] == "tailor 1\n"
    assert texts.count(None) == len(texts) - 1


def test_five_hundred_trials_fit_a_page(report: RunReport) -> None:
    whole = [trial for trial in report.trials if trial.full]
    trials = [replace(whole[n % len(whole)], number=n, loss=n / 500) for n in range(500)]
    page = page_html("Search", "", run_sections(replace(report, trials=trials, front=(0,))))
    assert len(page.encode()) < 8_000_000
    assert '"trial 499"' in page


def named_storage(run: Path, folder: Path, storage: str) -> None:
    """Write a copy of a RUN whose `run.json` names a storage."""
    shutil.copytree(run, folder)
    record = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps({**record, "storage": storage}))


@pytest.mark.parametrize(
    "scheme", ["sqlite", "sqlite+pysqlite", "sqlite+pysqlcipher", "postgresql"]
)
@pytest.mark.parametrize("journal", [True, False])
def test_a_storage_that_run_json_names_is_never_opened(
    run: tuple[Path, Ledger], tmp_path: Path, scheme: str, journal: bool
) -> None:
    victim = tmp_path / "victim.db"
    with closing(sqlite3.connect(victim)) as database:
        database.execute("create table mine (a)")
        database.commit()
    before = victim.read_bytes()
    for name in ("victim.db", "new.db"):
        folder = tmp_path / f"run-{name}"
        named_storage(run[0], folder, f"{scheme}:///{tmp_path}/{name}")
        if journal:
            assert len(run_report(folder, learned=False).trials) == len(run[1].trials)
            continue
        (folder / "study.journal").unlink()
        with pytest.raises(CheckpointError, match="names a storage, which is not opened") as caught:
            run_report(folder)
        assert "--storage URL" in caught.value.help
    assert victim.read_bytes() == before
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"victim.db", "run-victim.db", "run-new.db"}


def test_a_database_that_the_user_names_is_only_read(
    run: tuple[Path, Ledger], tmp_path: Path
) -> None:
    file = tmp_path / "st%udy {a}.db"
    lines = journal_lines((run[0] / "study.journal").read_bytes(), run[0])
    optuna.copy_study(
        from_study_name="gptailor",
        from_storage=JournalStorage(JournalLines(lines)),
        to_storage=RDBStorage(f"sqlite:///file:{quote(str(file))}?uri=true"),
        to_study_name="copied",
    )
    before = file.read_bytes()
    folder = tmp_path / "run"
    named_storage(run[0], folder, "sqlite:///other.db")
    (folder / "study.journal").unlink()
    url = f"sqlite:///{file}"
    report = run_report(folder, learned=False, storage=url, study="copied")
    assert [trial.values for trial in report.trials] == [trial.values for trial in run[1].trials]
    with pytest.raises(CheckpointError, match="holds no study"):
        run_report(folder, storage=url)
    assert file.read_bytes() == before
    assert {path.name for path in tmp_path.iterdir()} == {file.name, "run"}


def test_a_database_without_a_study_stays_as_it_is(
    run: tuple[Path, Ledger], tmp_path: Path
) -> None:
    file = tmp_path / "mine.db"
    with closing(sqlite3.connect(file)) as database:
        database.execute("create table mine (a)")
        database.commit()
    before = file.read_bytes()
    with pytest.raises(CheckpointError, match="C903"):
        run_report(run[0], storage=f"sqlite:///{file}")
    with pytest.raises(CheckpointError, match="there is no such database"):
        run_report(run[0], storage=f"sqlite:///{tmp_path}/new.db")
    with pytest.raises(CheckpointError, match="opened to read only") as caught:
        run_report(run[0], storage="postgresql://me:secret@nowhere/db")
    assert "secret" not in str(caught.value)
    assert file.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["mine.db"]


@pytest.mark.parametrize("name", ["run.json", "study.journal", "space.tailor"])
def test_a_link_out_of_run_is_refused(run: tuple[Path, Ledger], tmp_path: Path, name: str) -> None:
    folder = tmp_path / "run"
    shutil.copytree(run[0], folder)
    shutil.move(folder / name, tmp_path / "outside")
    (folder / name).symlink_to(tmp_path / "outside")
    with pytest.raises(CheckpointError, match=f"holds '{name}', which leads out of it"):
        run_report(folder)


def test_the_report_has_a_mark_for_each_phase_of_a_search() -> None:
    assert {*search_charts._KINDS} == {*ORDER}
    assert len(search_charts._KINDS) == len(search_charts._SHAPES) == len(search_charts._COLOURS)
    assert len({*search_charts._SHAPES}) == len({*search_charts._COLOURS}) == len(ORDER)
