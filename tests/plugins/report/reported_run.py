"""A search's RUN and its report, as fixtures."""

from pathlib import Path

import pytest

from gptailor.plugins.report.read_run import report_of
from gptailor.plugins.report.run_report import RunReport
from gptailor.searching.run.trials import Ledger
from gptailor.searching.run_reading import RunReading
from tests.searching import written_run

run = written_run.run


def run_report(run: Path) -> RunReport:
    """Return the report of a RUN."""
    return report_of(RunReading(run))


@pytest.fixture(scope="module")
def report(run: tuple[Path, Ledger]) -> RunReport:
    """Return the report of the run."""
    return run_report(run[0])


def losses(ledger: Ledger) -> dict[int, float]:
    """Return the losses of trials on all samples, once for each evaluation."""
    [base] = ledger.references[64]
    return {
        t.number: t.values[0] - base
        for t in ledger.trials
        if t.values is not None and t.samples == 64 and t.same_as is None
    }
