"""The table of an evaluation: what stands in it, what is marked, and that it fits."""

import math

import pytest

from gptailor.reporting.evaluation import Column, Mark, evaluation_lines
from gptailor.reporting.measure import Estimate

LESS = "64 samples, less is better"


def marked(score: float, more: float | None = None, error: float = 0.02) -> Mark:
    difference = None if more is None else Estimate(more, error)
    return Mark(Estimate(score, 0.1), difference)


def test_one_objective_has_no_numbers_and_no_mean() -> None:
    rows = [("base", [marked(2.0)]), ("cut.tailor", [marked(2.25, 0.25)])]
    assert list(evaluation_lines([Column("nll", LESS, "nll")], rows, "base", 80)) == [
        f"nll: {LESS}",
        "  base        2.00 ± 0.10",
        "  cut.tailor  2.25 ± 0.10",
        "difference from base, paired (* beyond two errors)",
        "  cut.tailor  +0.250 ± 0.020 *",
    ]


def test_several_of_a_kind_have_a_mean_with_equal_weights() -> None:
    columns = [Column(f'nll("{name}")', LESS, "nll") for name in "ab"]
    rows = [
        ("base", [marked(2.0), marked(1.0)]),
        ("cut", [marked(2.5, 0.5), marked(0.96, -0.04, 0.03)]),
    ]
    assert list(evaluation_lines(columns, rows, "base", 80)) == [
        f'(1) nll("a"): {LESS}',
        f'(2) nll("b"): {LESS}',
        "                    (1)          (2)           mean",
        "  base      2.00 ± 0.10  1.00 ± 0.10  1.500 ± 0.071",
        "  cut       2.50 ± 0.10  0.96 ± 0.10  1.730 ± 0.071",
        "difference from base, paired (* beyond two errors)",
        "                         (1)               (2)              mean",
        "  cut       +0.500 ± 0.020 *  -0.040 ± 0.030    +0.230 ± 0.018 *",
    ]


def test_unlike_objectives_have_no_mean_and_accuracies_a_share() -> None:
    columns = [
        Column("nll", LESS, "nll"),
        Column("multiple_choice", "8 samples, more is better", "multiple_choice", share=True),
    ]
    half = Mark(Estimate(0.25, 0.1), Estimate(-0.25, 0.2), retained=0.5)
    loss = Mark(Estimate(2.5, 0.1), Estimate(0.5, 0.2), retained=0.8)
    rows = [("base", [marked(2.0), Mark(Estimate(0.5, 0.1))]), ("cut", [loss, half])]
    lines = list(evaluation_lines(columns, rows, "base", 80))
    assert not any("mean" in line for line in lines)
    assert lines[-3] == "of the base's score"
    assert lines[-2].split() == ["(2)"], "columns without a share are left out"
    assert lines[-1].split() == ["cut", "50.0", "%"], "nats have no share"


def test_those_of_a_kind_have_their_mean_beside_another_kind() -> None:
    names = [("nll(a)", "nll"), ("mc(x)", "mc"), ("nll(b)", "nll"), ("kl(c)", "kl")]
    columns = [Column(name, LESS, kind) for name, kind in names]
    marks = [marked(2.0, 0.5), marked(7.0, 0.1), marked(1.0, 0.1), marked(9.0, 0.1)]
    lines = list(evaluation_lines(columns, [("cut", marks)], "base", 120))
    assert lines[4].split() == ["(1)", "(2)", "(3)", "(4)", "mean", "(1,3)"]
    assert lines[5].split()[-3:] == ["1.500", "±", "0.071"]
    assert lines[-1].split()[-4:] == ["+0.300", "±", "0.014", "*"]
    together = [columns[i] for i in (1, 0, 2)]
    head = next(one for one in evaluation_lines(together, [("cut", marks[:3])], "base", 120)
                if "mean" in one)  # fmt: skip
    assert head.split()[-2:] == ["mean", "(2..3)"]


def test_failures_are_told_below_and_have_no_mean() -> None:
    columns = [Column(f'nll("{name}")', LESS, "nll") for name in "ab"]
    rows = [("cut", [Mark(None, failure="NaN " * 40), marked(2.0)])]
    lines = list(evaluation_lines(columns, rows, "base", 60))
    assert lines[3].split() == ["cut", "failed", "2.00", "±", "0.10"]
    assert lines[4].startswith("(1) cut failed: NaN")
    assert max(map(len, lines)) <= 60
    assert len(lines) == 4 + 4, "it is wrapped"
    long = list(evaluation_lines(columns, [("cut", [Mark(None, failure="no " * 999)] * 2)], "", 60))
    assert [line[-1] for line in long[4:]].count("…") == 2, "and cut after four lines"


@pytest.mark.parametrize("width", [60, 80, 120])
def test_columns_that_do_not_fit_come_below(width: int) -> None:
    columns = [Column(f'nll("{name}")', LESS, "nll") for name in "abcdefg"]
    long = "a/very/long/path/" * 8 + "plan.tailor"
    rows = [
        ("base", [marked(1.0)] * 7),
        (long, [marked(1.5, 0.5)] * 6 + [marked(9, 0.5, math.inf)]),
    ]
    lines = list(evaluation_lines(columns, rows, "base", width))
    assert max(map(len, lines)) <= width
    assert sum(line.count("1.00 ± 0.10") for line in lines) == 7
    assert sum(line.count("*") for line in lines) == 6 + 1, "and what the star means"


def test_a_row_without_a_difference_names_its_reason_once() -> None:
    columns = [Column("nll", "less is better"), Column("size", "less is better")]
    why = Mark(Estimate(2.0, 0.1), unpaired="its tokenizer is not the base's: merges differ")
    rows = [("base", [marked(2.0), marked(1.0)]), ("math", [why, why])]
    lines = list(evaluation_lines(columns, rows, "base", 100))
    assert lines[-1] == "math has no difference: its tokenizer is not the base's: merges differ"
    assert sum("no difference" in line for line in lines) == 1
