"""The report of RUN: its trials and losses against another computation, and its databases."""

import json
import sqlite3
from contextlib import closing
from pathlib import Path
from urllib.parse import quote

import optuna
import pytest
from optuna.storages import JournalStorage, RDBStorage

import gptailor
from gptailor.checkpoint.files import CheckpointError
from gptailor.plugins.report.read_run import run_report
from gptailor.plugins.report.run_report import RunReport
from gptailor.searching.run.journal import JournalLines, journal_lines
from gptailor.searching.run.origin import origin_words
from gptailor.searching.run.trials import Ledger
from gptailor.searching.space.decode import decode
from tests.plugins.report import reported_run
from tests.plugins.report.reported_run import losses
from tests.searching import landscape
from tests.searching.written_run import ACCURACY, LAYERS, NLL, named_storage, run_of

run, report = reported_run.run, reported_run.report


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
    assert report.summary is None


def test_a_loss_over_several_objectives_is_a_mean_of_shares(tmp_path: Path) -> None:
    ledger = run_of(tmp_path, (NLL, ACCURACY), trials=12)
    report = run_report(tmp_path)
    assert report.loss_unit == "% of the base's score"
    base = ledger.references[64]
    full = next(t for t in report.trials if t.full)
    assert full.values is not None
    wanted = 50 * ((full.values[0] / base[0] - 1) + (1 - full.values[1] / base[1]))
    assert full.loss == pytest.approx(wanted)


def test_sizes_are_those_that_were_written_down(tmp_path: Path) -> None:
    ledger = run_of(tmp_path, trials=6)
    size = {"parameters": 6_000_000, "bytes": 12_000_000, "kv_cache": 64, "layers": 6}
    said = {"base": {**size, "parameters": 8_000_000}, "plans": {ledger.trials[0].plan: size}}
    (tmp_path / "sizes.json").write_text(json.dumps(said))
    report = run_report(tmp_path)
    assert {t.size.parameters for t in report.trials if t.size} == {6_000_000}  # as large as others
    assert report.base is not None
    assert report.base.parameters == 8_000_000


def test_plans_that_were_handed_over_have_their_text_without_the_space(tmp_path: Path) -> None:
    run_of(tmp_path, trials=2)
    (tmp_path / "space.tailor").unlink()
    (tmp_path / "front").mkdir()
    (tmp_path / "front" / "trial-0001.tailor").write_text("tailor 1\n")
    texts = [trial.text for trial in run_report(tmp_path).trials]
    assert texts[1] == "tailor 1\n"
    assert texts.count(None) == len(texts) - 1


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
    report = run_report(folder, storage=url, study="copied")
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
