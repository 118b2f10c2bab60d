"""The tables of an evaluation fit the terminal, and show an error's two digits."""

import math

import pytest

from gptailor.report.scores import Size, beside_base, shortened, sizes, with_error


def test_values_are_shown_as_far_as_they_are_sure() -> None:
    given = [(2.90972, 0.0462), (3.7127, 0.0139), (3.0, math.inf), (0.0, 0.0)]
    said = [with_error(*one) for one in given]
    assert said == ["2.910 ± 0.046", "3.713 ± 0.014", "3 ± ?", "0 ± 0"]


@pytest.mark.parametrize(
    ("direction", "unit", "share", "lost", "said"),
    [
        ("minimize", "nats", 0.96, 0.0812, "0.0812 nats lost"),
        ("minimize", "nats", 1.04, -0.0812, "0.0812 nats won"),
        ("minimize", "", 0.5, 12.34567, "12.35 lost"),
        ("maximize", "accuracy", 0.784, 0.1, "78.4 % of the base"),
        ("maximize", "", 0.784, 0.1, "78.4 % of the base"),
        ("maximize", "nats a byte", None, 0.25, "0.25 nats a byte lost"),
        ("maximize", "accuracy", None, None, ""),
        ("minimize", "nats", 0.5, None, ""),
    ],
)
def test_only_what_is_counted_has_a_share(
    direction: str, unit: str, share: float | None, lost: float | None, said: str
) -> None:
    assert beside_base(direction, unit, share, lost) == said


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
