"""The table of an evaluation: its contents, its marks, and its width."""

import math
from collections.abc import Sequence
from dataclasses import replace

import pytest

from gptailor.evaluation.result import EvaluationResult
from gptailor.evaluation.scores import (
    Failure,
    Outcome,
    Result,
    Score,
    Speed,
    TargetSize,
)
from gptailor.plan.output_size import OutputSize
from gptailor.reporting.measure import Estimate

LESS = "64 samples, less is better"


def marked(score: float | Outcome, more: float | None = None, error: float = 0.02) -> Result:
    """A result of the target and objective that `lines` names."""
    outcome = score if isinstance(score, Score | Failure) else Score(score, 0.1, 64)
    difference = None if more is None else Estimate(more, error)
    return Result("", "", "minimize", outcome, difference=difference)


def lines_of(
    objectives: Sequence[str],
    rows: Sequence[tuple[str, Sequence[Result]]],
    width: int,
    *,
    by_byte: bool = False,
) -> list[str]:
    """The lines above the table of sizes."""
    results = [
        replace(mark, target=target, objective=objective, against="base" if mark.difference else "")
        for target, marks in rows
        for objective, mark in zip(objectives, marks, strict=True)
    ]
    sizes = tuple(TargetSize(target, OutputSize(10, 40, 8, 2)) for target, _ in rows)
    lines = [*EvaluationResult(tuple(results), sizes, by_byte=by_byte).lines(width)]
    return lines[: -2 - len(rows)]


def test_one_objective_has_no_numbers_and_no_mean() -> None:
    rows = [("base", [marked(2.0)]), ("cut.tailor", [marked(2.25, 0.25)])]
    assert lines_of(["nll"], rows, 80) == [
        f"nll: {LESS}",
        "  base        2.00 ± 0.10",
        "  cut.tailor  2.25 ± 0.10",
        "difference from base, paired (* beyond two errors)",
        "  cut.tailor  +0.250 ± 0.020 *",
    ]


def test_several_of_a_kind_have_a_mean_with_equal_weights() -> None:
    columns = [f'nll("{name}")' for name in "ab"]
    rows = [
        ("base", [marked(2.0), marked(1.0)]),
        ("cut", [marked(2.5, 0.5), marked(0.96, -0.04, 0.03)]),
    ]
    assert lines_of(columns, rows, 80) == [
        f'(1) nll("a"): {LESS}',
        f'(2) nll("b"): {LESS}',
        "                (1)          (2)           mean",
        "  base  2.00 ± 0.10  1.00 ± 0.10  1.500 ± 0.071",
        "  cut   2.50 ± 0.10  0.96 ± 0.10  1.730 ± 0.071",
        "difference from base, paired (* beyond two errors)",
        "                    (1)               (2)              mean",
        "  cut  +0.500 ± 0.020 *  -0.040 ± 0.030    +0.230 ± 0.018 *",
    ]


def test_unlike_objectives_have_no_mean_and_accuracies_a_share() -> None:
    columns = ["nll", "multiple_choice"]
    half = replace(marked(0.25, -0.25, 0.2), retained=0.5, direction="maximize")
    loss = replace(marked(2.5, 0.5, 0.2), retained=0.8)
    best = replace(marked(0.5), direction="maximize")
    rows = [("base", [marked(2.0), best]), ("cut", [loss, half])]
    lines = lines_of(columns, rows, 80)
    assert not any("mean" in line for line in lines)
    assert lines[-3] == "of the base's score"
    assert lines[-2].split() == ["(2)"], "columns without a share are left out"
    assert lines[-1].split() == ["cut", "50.0", "%"], "nats have no share"


def test_objectives_of_one_kind_have_a_mean() -> None:
    columns = ['nll("a")', 'mc("x")', 'nll("b")', 'kl("c")']
    marks = [marked(2.0, 0.5), marked(7.0, 0.1), marked(1.0, 0.1), marked(9.0, 0.1)]
    lines = lines_of(columns, [("cut", marks)], 120)
    assert lines[4].split() == ["(1)", "(2)", "(3)", "(4)", "mean", "(1,3)"]
    assert lines[5].split()[-3:] == ["1.500", "±", "0.071"]
    assert lines[-1].split()[-4:] == ["+0.300", "±", "0.014", "*"]
    together = [columns[i] for i in (1, 0, 2)]
    head = next(line for line in lines_of(together, [("cut", marks[:3])], 120) if "mean" in line)
    assert head.split()[-2:] == ["mean", "(2..3)"]


def test_failures_are_reported_below_and_have_no_mean() -> None:
    columns = [f'nll("{name}")' for name in "ab"]
    rows = [("cut", [marked(Failure("nan", "NaN " * 40)), marked(2.0)])]
    lines = lines_of(columns, rows, 60)
    assert lines[3].split() == ["cut", "failed", "2.00", "±", "0.10"]
    assert lines[4].startswith("(1) cut failed: NaN")
    assert max(map(len, lines)) <= 60
    assert len(lines) == 4 + 4, "it is wrapped"
    long = lines_of(columns, [("cut", [marked(Failure("error", "no " * 999))] * 2)], 60)
    assert [line[-1] for line in long[4:]].count("…") == 2, "and cut after four lines"


@pytest.mark.parametrize("width", [60, 80, 120])
def test_columns_that_do_not_fit_come_below(width: int) -> None:
    columns = [f'nll("{name}")' for name in "abcdefg"]
    long = "a/very/long/path/" * 8 + "plan.tailor"
    rows = [
        ("base", [marked(1.0)] * 7),
        (long, [marked(1.5, 0.5)] * 6 + [marked(9, 0.5, math.inf)]),
    ]
    lines = lines_of(columns, rows, width)
    assert [line for line in lines if len(line) > width] == [f"  2  {long}"]
    assert sum(line.count("1.00 ± 0.10") for line in lines) == 7
    assert sum(line.count("*") for line in lines) == 6 + 1, "and what the star means"


def test_a_row_without_a_difference_names_its_reason_once() -> None:
    columns = ["nll", "size"]
    why = replace(marked(2.0), unpaired="its tokenizer is not the base's: merges differ")
    rows = [("base", [marked(2.0), marked(1.0)]), ("math", [why, why])]
    lines = lines_of(columns, rows, 100)
    assert lines[-1] == "math has no difference: its tokenizer is not the base's: merges differ"
    assert sum("no difference" in line for line in lines) == 1


@pytest.mark.parametrize("width", [60, 80, 120])
def test_the_sizes_fit(width: int) -> None:
    long = "a/very/long/path/" * 8 + "plan.tailor"
    speed, base = Speed(930, 36.2), Speed(812, 31.5)
    rows = [
        TargetSize("base", OutputSize(134_515_008, 0, 23040, 30), base),
        TargetSize(long, OutputSize(120_354_624, 0, 19968, 26), speed, base),
        TargetSize("none", OutputSize(12, 0, None, 2)),
    ]
    lines = sizes_of(rows, width)
    assert lines[:5] == ["  1  base", f"  2  {long}", "  3  none", "", ""]
    head, base, fast, slow = lines[5:]
    assert len({len(line) for line in (head, base, fast, slow)}) == 1
    assert len(head) <= width
    assert fast.split() == ["2", "26", "120.4", "M", "20.0", "kB", "930", "(×1.15)",
                            "36.2", "(×1.15)"]  # fmt: skip
    assert slow.split() == ["3", "2", "12", "?", "?", "?"]


def sizes_of(rows: Sequence[TargetSize], width: int) -> list[str]:
    """The lines from the targets' numbers on, if they have any, of targets with one score."""
    results = tuple(replace(marked(1.0), target=row.target, objective="nll") for row in rows)
    lines = [*EvaluationResult(results, tuple(rows)).lines(width)]
    scores = [line for line in lines if "±" in line]
    assert len(scores) == len(rows)
    return [line for line in lines[1:] if line not in scores]


def test_long_names_are_numbers_in_every_table() -> None:
    columns = [f'nll("{name}")' for name in "abc"]
    names = [f"a-search-with-a-long-name/front/trial-{n:04}.tailor" for n in range(2)]
    rows = [("base", [marked(2.0)] * 3), *((name, [marked(2.0, 0.5)] * 3) for name in names)]
    lines = lines_of(columns, rows, 80)
    assert lines[3:7] == ["  1  base", f"  2  {names[0]}", f"  3  {names[1]}", ""]
    assert [line.split()[0] for line in lines[7:]] == [
        "(1)", "1", "2", "3", "difference", "(1)", "2", "3",
    ]  # fmt: skip
    assert max(map(len, lines)) <= 80
    wide = lines_of(columns, rows, 140)
    assert [line.split()[0] for line in wide[4:7]] == ["base", *names]


def test_another_unit_is_named_above_the_table() -> None:
    first, second, *_ = lines_of(["nll"], [("base", [marked(1.09)])], 80, by_byte=True)
    assert first.startswith("The vocabularies differ: nll is in bits a byte")
    assert second == f"nll: {LESS}"


def test_missing_speeds_have_no_columns() -> None:
    _, head, row = sizes_of([TargetSize("base", OutputSize(10, 40, 8, 2))], 80)
    assert head.split() == ["layers", "parameters", "KV/token"]
    assert row.split() == ["base", "2", "10", "8", "B"]


@pytest.mark.parametrize(
    ("objective", "by_byte", "unit"),
    [
        ('nll("a")', False, "nats a token"),
        ('nll("a")', True, "bits a byte"),
        ('kl("a")', True, "nats a byte"),
        ("bytes()", True, "bytes"),
        ('perplexity("a")', False, None),
    ],
)
def test_a_row_has_the_unit_of_its_score(objective: str, by_byte: bool, unit: str | None) -> None:
    sizes = (TargetSize("cut", OutputSize(10, 40, 8, 2)),)
    results = (replace(marked(1.0), target="cut", objective=objective),)
    (row,) = EvaluationResult(results, sizes, by_byte=by_byte).records()
    assert row["unit"] == unit
