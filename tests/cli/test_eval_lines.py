"""The lines of `eval` while it evaluates."""

import time

import pytest

from gptailor.cli.event_lines import RepairLines
from gptailor.plan.events import Progress


def test_each_line_has_the_time_of_the_remaining_repairs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = [10.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    lines = RepairLines()
    now[0] = 100.0
    lines(Progress("evaluating", 0, 3))
    for number in (1, 2, 3):
        now[0] += 30.0
        lines(Progress("evaluating", number, 3, f"plan {number}"))
    assert capsys.readouterr().err.splitlines() == [
        "1/3 plan 1, 1:00 left", "2/3 plan 2, 0:30 left", "3/3 plan 3",
    ]  # fmt: skip
