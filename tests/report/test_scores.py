"""The tables of an evaluation fit the terminal, and show an error's two digits."""

import math

import pytest

from gptailor.report.scores import Mark, Size, score_lines, shortened, sizes


def test_values_are_shown_as_far_as_they_are_sure() -> None:
    rows = [
        Mark("base", 2.90972, 0.0462),
        Mark("cut.tailor", 3.7127, 0.0139, 0.7837),
        Mark("one", 3.0, math.inf, 0.97),
        Mark("same", 0.0, 0.0),
    ]
    assert list(score_lines("nll", rows, 80)) == [
        "nll",
        "  base        2.910 ± 0.046",
        "  cut.tailor  3.713 ± 0.014  78.4 % of the base",
        "  one                 3 ± ?  97.0 % of the base",
        "  same                0 ± 0",
    ]


def test_a_failure_is_shown_as_one() -> None:
    rows = [Mark("base", 2.9, 0.1), Mark("cut.tailor", None, failure="NaN " * 40)]
    line = list(score_lines("nll", rows, 60))[2]
    assert line.startswith("  cut.tailor  failed: NaN NaN")
    assert line.endswith("…")
    assert len(line) == 60


@pytest.mark.parametrize("width", [60, 80, 120])
def test_the_sizes_fit(width: int) -> None:
    long = "a/very/long/path/" * 8 + "plan.tailor"
    rows = [
        Size("base", 30, 134_515_008, 23040, (812.4, None), (31.46, None)),
        Size(long, 26, 120_354_624, 19968, (930.1, 1.145), (36.2, 1.151)),
        Size("none", 2, None, None, None, None),
    ]
    lines = list(sizes(rows, width))
    assert max(map(len, lines)) <= max(width, 72)
    assert len({len(line) for line in lines}) == 1
    assert "120.4 M" in lines[2]
    assert "930 (×1.15)" in lines[2]
    assert "?" in lines[3]


def test_without_speeds_there_are_no_columns_of_them() -> None:
    head, row = sizes([Size("base", 2, 10, 8, None, None)], 80)
    assert head.split() == ["layers", "parameters", "KV/token"]
    assert row.split() == ["base", "2", "10", "8", "B"]


def test_names_lose_what_paths_share() -> None:
    assert shortened("abcdef", 4) == "…def"
    assert shortened("abcdef", 4, end=True) == "abc…"
    assert shortened("a\x1bb", 9) == "a b"
