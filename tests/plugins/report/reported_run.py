"""A search's RUN and its contents, as fixtures."""

from pathlib import Path

import pytest

from gptailor.searching.run.trials import Ledger
from gptailor.searching.run_reading import RunReading, read_run
from tests.searching import written_run

run = written_run.run


@pytest.fixture(scope="module")
def reading(run: tuple[Path, Ledger]) -> RunReading:
    """Return the contents of the run."""
    return read_run(run[0])


def losses(ledger: Ledger) -> dict[int, float]:
    """Return the losses of trials on all samples, once for each evaluation."""
    [base] = ledger.references[64]
    return {
        t.number: t.values[0] - base
        for t in ledger.trials
        if t.values is not None and t.samples == 64 and t.same_as is None
    }
