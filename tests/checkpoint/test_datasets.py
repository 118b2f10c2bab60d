"""Calibration files: their rows, refusals and the places in them, and how samples are drawn."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptailor.checkpoint.datasets import (
    CalibrationError,
    Chat,
    Exchange,
    Passage,
    Question,
    StoredTexts,
    joined_text,
    order,
    read_rows,
)


def written(folder: Path, *lines: object, name: str = "rows.jsonl") -> Path:
    path = folder / name
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    path.write_text("\n".join(texts), encoding="utf-8")
    return path


def test_a_text_file_is_one_passage(tmp_path: Path) -> None:
    path = written(tmp_path, "one", '{"text": "two"}', name="text.txt")
    assert read_rows(path, "text") == [Passage('one\n{"text": "two"}')]


def test_rows_of_text_have_their_lines(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        {"text": "a\u2028b", "source": "web"},
        "",
        {"prompt": "p", "response": "r"},
        {"context": "c", "answer": "a", "aliases": ["b"]},
    )
    assert read_rows(path, "text") == [
        Passage("a\u2028b", 1),
        Exchange("p", "r", (), 3),
        Exchange("c", "a", ("b",), 4),
    ]


def test_a_mark_and_other_line_ends_change_nothing(tmp_path: Path) -> None:
    path = tmp_path / "rows.JSONL"
    path.write_bytes(b'\xef\xbb\xbf{"text": "a"}\r\n\r\n{"text": "b\xe2\x80\xa8"}\r\n')
    assert read_rows(path, "text") == [Passage("a", 1), Passage("b\u2028", 3)]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_rows_are_read_again_from_their_places(tmp_path: Path, end: str, mark: str) -> None:
    path = tmp_path / "rows.jsonl"
    lines = ['{"text": "é"}', "", '{"prompt": "a", "response": "b"}', " ",
             '{"messages": [{"role": "user", "content": "\u2028c"}]}']  # fmt: skip
    path.write_bytes((mark + end.join(lines)).encode())
    rows = StoredTexts(path)
    user = {"role": "user", "content": "\u2028c"}
    expected = [Passage("é", 1), Exchange("a", "b", (), 3), Chat((user,), 5)]
    assert read_rows(path, "chat") == expected
    assert [*rows.read([2, 0, 1])] == [expected[2], *expected[:2]]
    assert len(rows) == 3
    assert rows.kinds == {Passage, Exchange, Chat}
    assert not rows.whole


def test_a_file_that_changes_or_goes_while_its_rows_are_read_is_named(tmp_path: Path) -> None:
    path = written(tmp_path, {"text": "a"}, {"text": "b"})
    rows = StoredTexts(path)
    path.write_text("")
    with pytest.raises(CalibrationError, match="the file changed while it was read"):
        [*rows.read([1])]
    path.unlink()
    with pytest.raises(CalibrationError, match="can't be read"):
        [*rows.read([1])]


def test_the_offset_of_an_invalid_byte_counts_the_byte_order_mark(tmp_path: Path) -> None:
    for name in ("rows.jsonl", "text.txt"):
        (tmp_path / name).write_bytes(b'\xef\xbb\xbf{"text": "a"}\r\n{"text": "\xe2\x80"}')
        with pytest.raises(CalibrationError, match="invalid byte at offset 25"):
            StoredTexts(tmp_path / name)


def test_choices_follow_their_context_after_a_blank(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        {"query": "Is it?", "choices": ["yes", " no"], "gold": 1},
        {"context_options": ["The cat", "The dog "], "continuation": "ran", "gold": 0},
        {"query": "", "choices": ["yes", "no"], "gold": 0},
    )
    assert read_rows(path, "choice") == [
        Question((("Is it?", " yes"), ("Is it?", " no")), ("yes", " no"), 1, 1),
        Question((("The cat", " ran"), ("The dog ", "ran")), ("The cat", "The dog "), 0, 2),
        Question((("", "yes"), ("", "no")), ("yes", "no"), 0, 3),
    ]


@pytest.mark.parametrize(
    ("form", "row", "message"),
    [
        ("text", {"content": "a"}, "the row has no 'text'; it has 'content'"),
        ("text", {}, "the row has no 'text'; it is empty"),
        ("text", {"text": ""}, "'text' is empty"),
        ("text", {"text": 3}, "'text' is not a text"),
        ("text", {"prompt": "p"}, "the row has no 'text'; it has 'prompt'"),
        ("text", '{"text": "\\ud800"}', "half a surrogate pair"),
        ("choice", {"query": "q", "gold": 0}, "the row has no 'choices'"),
        ("choice", {"query": "q", "choices": ["a", "b"]}, "the row has no 'gold'"),
        ("choice", {"choices": ["a", "b"], "gold": 0}, "the row has no 'query'"),
        ("choice", {"query": "q", "choices": "ab", "gold": 0}, "must be a list of texts"),
        ("choice", {"query": "q", "choices": ["a", 1], "gold": 0}, "is not a text"),
        ("choice", {"query": "q", "choices": ["a", ""], "gold": 0}, "is empty"),
        (
            "choice",
            {"query": "q", "choices": ["a"], "gold": 0},
            "expected at least two choices, got one",
        ),
        ("choice", {"query": "q", "choices": ["a", "b"], "gold": 2}, "from 0 to 1"),
        ("choice", {"query": "q", "choices": ["a", "b"], "gold": -1}, "from 0 to 1"),
        ("choice", {"query": "q", "choices": ["a", "b"], "gold": True}, "from 0 to 1"),
        ("choice", {"context_options": ["a", "b"], "gold": 0}, "no 'continuation'"),
        ("answer", {"context": "c"}, "the row has no 'answer'"),
        ("answer", {"context": "c", "answer": "a", "aliases": "b"}, "must be a list of texts"),
    ],
)
def test_a_row_that_lacks_something_is_refused(
    tmp_path: Path, form: str, row: object, message: str
) -> None:
    sound = {"text": "t", "query": "q", "choices": ["a", "b"], "gold": 0}
    path = written(tmp_path, {**sound, "context": "c", "answer": "a"}, "", row)
    with pytest.raises(CalibrationError) as caught:
        read_rows(path, form)
    assert (caught.value.code, caught.value.line) == ("C804", 3)
    assert message in caught.value.message
    assert str(caught.value).startswith("error[C804]: ")
    assert f" --> {path}:3\n" in str(caught.value)


@pytest.mark.parametrize("form", ["text", "choice", "answer"])
@pytest.mark.parametrize(
    ("content", "code", "line"),
    [
        (b"", "C802", None),
        (b"\n \n", "C802", None),
        (b'\n{"text": ', "C803", 2),
        (b"[1]", "C803", 1),
        (b"[" * 100_000, "C803", 1),
        (b"\xff{}", "C801", None),
    ],
)
def test_a_file_that_has_no_rows_is_refused(
    tmp_path: Path, form: str, content: bytes, code: str, line: int | None
) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(content)
    with pytest.raises(CalibrationError) as caught:
        read_rows(path, form)
    assert (caught.value.code, caught.value.line) == (code, line)


def test_an_empty_text_and_an_absent_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match="C802"):
        read_rows(written(tmp_path, " ", "", name="text.txt"), "text")
    with pytest.raises(CalibrationError, match=r"C801.*No such file"):
        read_rows(tmp_path / "absent.txt", "text")
    with pytest.raises(CalibrationError, match=r"C801.*directory"):
        read_rows(tmp_path, "text")


def test_a_path_shows_without_control_characters(tmp_path: Path) -> None:
    with pytest.raises(CalibrationError) as caught:
        read_rows(tmp_path / "a\x1b[31m.txt", "text")
    assert "\x1b" not in str(caught.value)


@given(st.integers(0, 60), st.integers(0, 2**53))
def test_samples_are_drawn_once_each(size: int, seed: int) -> None:
    assert sorted(order(size, seed)) == list(range(size))


@given(st.integers(1, 60), st.integers(0, 2**53))
def test_more_rows_keep_the_order_of_the_first_rows(size: int, seed: int) -> None:
    longer = order(size + 1, seed)
    assert [number for number in longer if number < size] == order(size, seed)


def test_the_order_depends_on_the_seed() -> None:
    assert order(8, 0) == [3, 7, 5, 4, 2, 6, 0, 1]
    assert order(8, 0) != order(8, 1)


@given(st.text(), st.text(min_size=1))
def test_a_blank_separates_context_and_continuation(context: str, continuation: str) -> None:
    text = context + joined_text(context, continuation)
    assert not context or text[len(context) - 1].isspace() or text[len(context)].isspace()
    assert joined_text(context, continuation) in (continuation, f" {continuation}")
