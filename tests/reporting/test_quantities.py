"""The tables of an evaluation fit the terminal, and show an error's two digits."""

import math

import pytest
from rich.cells import cell_len

from gptailor.reporting.quantities import (
    byte_count,
    bytes_in_words,
    clock,
    duration,
    speed_in_words,
    with_error,
)
from gptailor.reporting.table import shortened, table_lines
from gptailor.reporting.terminal_encoding import wrapped


def test_values_are_rounded_by_their_errors() -> None:
    given = [(2.90972, 0.0462), (3.7127, 0.0139), (3.0, math.inf), (0.0, 0.0), (-2e-15, 1e-15)]
    texts = [with_error(*item) for item in given]
    assert texts == ["2.910 ± 0.046", "3.713 ± 0.014", "3 ± ?", "0 ± 0", "0 ± 0"]


def test_shortened_names_lose_their_middle() -> None:
    assert shortened("abcdef", 4) == "ab…f"
    assert shortened("abcdef", 5) == "ab…ef"
    assert shortened("a\x1bb", 9) == "a b"


def test_names_of_wide_characters_are_as_wide_as_others() -> None:
    names = ["模型" * 6, "model" * 5, "a"]
    lines = list(table_lines(["", "score"], [[name, "1.5"] for name in names], 40))
    assert {cell_len(line) for line in lines if line} == {2 + 25 + 2 + 5}


def test_numbers_in_words() -> None:
    assert [bytes_in_words(n) for n in (12, 1234, 269_000_000)] == [
        "12 bytes",
        "1.2 kB",
        "269.0 MB",
    ]
    assert [bytes_in_words(8, "B"), bytes_in_words(None)] == ["8 B", "?"]
    assert [duration(n) for n in (95.4, 480.0)] == ["95 s", "8 min"]
    speeds = speed_in_words(930.1, 812.4), speed_in_words(31.46), speed_in_words(None)
    assert speeds == ("930 (×1.14)", "31.5", "?")


def test_columns_are_aligned_in_ascii() -> None:
    rows = [["runs/a-search-with-a-long-name/front/trial-12.tailor", "3.2 ± 0.1"], ["b", "failed"]]
    lines = [*table_lines(["", "score"], rows, 40, "ascii")]
    assert lines == [
        f"  1  {rows[0][0]}",
        "  2  b",
        "",
        "          score",
        "  1  3.2 +- 0.1",
        "  2      failed",
    ]


def test_names_without_room_have_one_row_each_below_a_legend() -> None:
    names = ["found 7: L12..L18 dropped, math 0.6", "base"]
    rows = [[name, "1.0 ± 0.1", "2.0 ± 0.1"] for name in names]
    whole = [*table_lines(["", "score", "held out"], rows, 80, labels=["found 7", "base"])]
    assert whole[1] == f"  {names[0]}  1.0 ± 0.1  2.0 ± 0.1"
    short = [*table_lines(["", "score", "held out"], rows, 50, labels=["found 7", "base"])]
    assert short == [
        "  found 7  L12..L18 dropped, math 0.6",
        "",
        "               score   held out",
        "  found 7  1.0 ± 0.1  2.0 ± 0.1",
        "  base     1.0 ± 0.1  2.0 ± 0.1",
    ]


def test_sentences_break_between_words() -> None:
    path = "a-long-name/of-a-folder/with-hyphens/in-it"
    text = f"the folder {path} is missing"
    assert wrapped(text, 30, later="  ") == ["the folder", f"  {path}", "  is missing"]
    assert wrapped("so many words " * 9, 30, most=2)[1].endswith(" …")


def test_a_number_of_bytes_may_be_a_text() -> None:
    assert byte_count(None) is None
    assert (byte_count(5), byte_count("2GB"), byte_count("1KiB")) == (5, 2 * 10**9, 1024)
    for size in (0, -1, "2 apples"):
        with pytest.raises(ValueError, match="expected a size such as 5GB"):
            byte_count(size)


@pytest.mark.parametrize(("seconds", "expected"), [(0, "0:00"), (59.6, "1:00"), (3723, "1:02:03")])
def test_seconds_become_a_clock(seconds: float, expected: str) -> None:
    assert clock(float(seconds)) == expected
