"""The report of RUN: its trials and losses against another computation."""

from pathlib import Path

import pytest

import gptailor
from gptailor.plugins.report.run_report import RunReport
from gptailor.searching.run.origin import origin_words
from gptailor.searching.run.trials import Ledger
from gptailor.searching.space.decode import decode
from tests.plugins.report import reported_run
from tests.plugins.report.reported_run import losses, run_report
from tests.searching import landscape
from tests.searching.written_run import ACCURACY, LAYERS, NLL, run_of

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
    landscape.study_of(tmp_path).note("sizes", said)
    report = run_report(tmp_path)
    assert {t.size.parameters for t in report.trials if t.size} == {6_000_000}  # as large as others
    assert report.base is not None
    assert report.base.parameters == 8_000_000
