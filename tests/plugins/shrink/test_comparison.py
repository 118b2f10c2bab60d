"""Predictions, plans that are built, and the choice, with made-up losses."""

from dataclasses import replace
from typing import Any

import pytest

from gptailor.plugins.shrink.candidates import CutStep, ShrinkCandidate
from gptailor.plugins.shrink.comparison import ShrinkRow, interpolated
from gptailor.plugins.shrink.goal import PlanCost, ShrinkGoal
from gptailor.plugins.shrink.results import ShrinkResult, choice
from gptailor.reporting.measure import Estimate

COST = PlanCost(97_500_000, 124_000_000, 23_040, is_gguf=True)
TOKENS = CutStep("vocabulary", 36_864, ('vocabulary 36864 on "t"',), "36,864 tokens")
GOAL = ShrinkGoal(to=100_000_000)


def row(*cuts: CutStep, loss: float | None, met: bool = True, **more: Any) -> ShrinkRow:
    estimate = None if loss is None else Estimate(loss, 0.004)
    return ShrinkRow(ShrinkCandidate(cuts, "Q4_K_M"), COST, met, estimate, **more)


@pytest.mark.parametrize(("at", "loss"), [(1, 0.1), (2, 0.2), (3, 0.4), (8, 0.6 * 2**1.5)])
def test_a_loss_between_measured_cuts_is_interpolated(at: int, loss: float) -> None:
    assert interpolated({2: 0.2, 4: 0.6}, at) == pytest.approx(loss)


def test_the_best_plan_is_chosen_and_compared_with_the_whole() -> None:
    whole, cut = row(loss=0.06), row(TOKENS, loss=0.03)
    chosen, reason = choice([whole, cut], [cut], GOAL)
    assert chosen is cut
    assert reason == (
        "choice: 36,864 tokens, q4_k_m: it loses 0.0300 ± 0.0040 bits a byte, "
        "the whole model, q4_k_m 0.0600 ± 0.0040"
    )
    chosen, reason = choice([whole, cut], [whole], GOAL)
    assert "quantisation alone wins" in reason


def test_the_simplest_plan_within_an_error_is_chosen() -> None:
    whole, cut = row(loss=0.031), row(TOKENS, loss=0.03)
    chosen, reason = choice([whole, cut], [cut, whole], GOAL)
    assert chosen is whole
    assert reason.endswith("and changes less")


def test_a_goal_that_nothing_meets_names_the_nearest() -> None:
    small = replace(row(TOKENS, loss=None, met=False), cost=replace(COST, bytes=60_000_000))
    chosen, reason = choice([row(loss=0.1, met=False), small], [], ShrinkGoal(to=1000))
    assert chosen is None
    assert reason == (
        "nothing meets the goal of at most 1.0 kB; the nearest is 36,864 tokens, q4_k_m: "
        "60.0 MB as a GGUF file, 124.0 M parameters. Ask for that, or begin with a smaller model"
    )


def test_the_table_marks_the_choice_predictions_and_missed_goals() -> None:
    rows = (
        row(loss=0.06, met=False),
        row(TOKENS, loss=0.03, decoding=1.2, llama=(1.1, 1.3)),
        row(replace(TOKENS, words="24,576 tokens"), loss=None, predicted=0.2),
    )
    result = ShrinkResult(GOAL, COST, 0.9, rows, rows[1], "choice: this")
    lines = [*result.lines(80)]
    assert max(map(len, lines[2:])) <= 80
    text = "\n".join(lines)
    assert "the whole model (misses the goal)" in text
    assert "→ 36,864 tokens" in text
    assert "≈ 0.200" in text
    assert "×1.20 ×1.30" in text
    assert '"chosen": 1' in result.record()
