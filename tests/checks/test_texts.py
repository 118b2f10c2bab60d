"""Missing texts, models and layers are reported with a plan's other faults."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

import gptailor
from gptailor.cli import main as cli
from gptailor.lang.parse import read_text
from gptailor.plan.faults import Source, errors

HEAD = 'tailor 1\nmodel base = "./base"\nmodel math = "./math"\n'


def codes(folder: Path, text: str) -> list[tuple[str, str]]:
    """Return the code of each fault that `check` reports, and the words at its place."""
    (folder / "p.tailor").write_text(HEAD + text)
    plan = gptailor.loads(HEAD + text, folder=folder)
    return [
        (f.code, (HEAD + text)[f.span.start : f.span.end]) for f in gptailor.check(plan) if f.span
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('drop L1\nbridge on "gone.txt"', [("C801", '"gone.txt"')]),
        ('drop L1\nbridge on "a.txt"\nheal on "gone.txt"', [("C801", '"gone.txt"')]),
        ('drop L1\nbridge on "gone.txt"\nheal on "gone.txt"', [("C801", '"gone.txt"')]),
        ('drop L1\nheal on "a.txt", answers("gone.jsonl"), "no.txt" weight 2',
         [("C801", '"gone.jsonl"'), ("C801", '"no.txt"')]),
        ('drop L1\nbridge on "."', [("C801", '"."')]),
        ('drop L1\nheal on "gone.parquet"', [("C801", '"gone.parquet"')]),
        ('maybe drop L1\nsearch {\n  minimize nll("gone.txt")\n  trials 3\n}',
         [("C801", '"gone.txt"')]),
        ('maybe drop L1\nsearch {\n  minimize nll("a.txt")\n  require kl("no.txt") <= 1\n}',
         [("C801", '"no.txt"')]),
        ('expect nll("a.txt") <= 1\nexpect nll("no.txt") <= base',
         [("C801", '"no.txt"')]),
        ('drop L1\nbridge on "a.txt"', []),
    ],
)  # fmt: skip
def test_missing_texts_are_faults(family: Path, text: str, expected: list[tuple[str, str]]) -> None:
    missing = [fault for fault in codes(family, text) if fault[0] == "C801"]
    assert missing == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('bridge on "a.txt" tokens 7', []),
        ('bridge on "a.txt" tokens 8', ['"a.txt"']),
        ('heal on "a.txt" tokens 7', []),
        ('heal on "a.txt" tokens 512', ['"a.txt"']),
        ('heal on "a.txt" weight 3, "b.txt" tokens 28', ['"a.txt"']),
        ('heal on "a.txt", answers("t.txt") tokens 14', []),
        ('heal on "b.txt"', []),
    ],
)
def test_a_text_with_fewer_bytes_than_tokens_is_too_short(
    family: Path, text: str, expected: list[str]
) -> None:
    """The texts have seven bytes; one is enough only for as many tokens."""
    result = codes(family, f"drop L1\n{text}\n")
    assert [words for code, words in result if code == "C806"] == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("L9 from math\ndrop L4..L9", ["P208 L9", "M201 L9", "M202 L9", "M201 L4..L9"]),
        ('whole from maths\ndrop L1..2\nbridge on "gone.txt"',
         ["P106 maths", "S101 2", 'C801 "gone.txt"']),
        ("drop L1..2\nbridge on 5", ["S101 2", "S101 5"]),
        ('model code = "./nowhere"\nL1 from code\ndrop L9',
         ['C101 "./nowhere"', "M201 L9"]),
        ('model code = "./nowhere"\nL1 from code\nL1 from math\ndrop L9',
         ['C101 "./nowhere"', "P207 L1", "M201 L9"]),
        ('model code = "./nowhere"\nexpect nll("a.txt") <= code', ['C101 "./nowhere"']),
        ('model code = "./nowhere"\nexpect parameters() < 2 * code', ['C101 "./nowhere"']),
        ("modle code = 1\nL1 from code", ["S102 modle"]),
        ("let x = ?\nL1 from base, math by slerp(y)\nL2 from cod", ["S101 ?", "P106 cod"]),
    ],
)  # fmt: skip
def test_one_fault_hides_no_other(
    family: Path,
    text: str,
    expected: list[str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(family)
    Path("several.tailor").write_text(HEAD + text)
    monkeypatch.setattr("sys.argv", ["gptailor", "check", "several.tailor"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 1
    shown = capsys.readouterr()
    lines = (shown.out + shown.err).splitlines()
    reported = [line[6:10] for line in lines if line[:6] == "error["]
    assert reported == [fault.split()[0] for fault in expected]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('drop L1\nbridge on "chat.jsonl"', ["C804"]),
        ('drop L1\nheal on "chat.jsonl" tokens 9', []),
        ('drop L1\nheal on "chat.jsonl" tokens 9 loss answers', []),
        ('drop L1\nheal on "text.jsonl" tokens 9 loss answers', ["C804"]),
        ('drop L1\nheal on answers("text.jsonl") tokens 9', []),
        ('drop L1\nheal on answers("quiz.jsonl") tokens 9', ["C804"]),
        ('drop L1\nheal on answers("text.txt") tokens 9', ["C803"]),
        ('width 8 on "chat.jsonl"', ["C804"]),
        ('bridge on "chat.jsonl"', []),
        ('maybe drop L1\nsearch {\n  minimize nll("chat.jsonl")\n  minimize kl("text.jsonl")\n}',
         ["C804"]),
        ('expect multiple_choice("text.jsonl") >= 0.5\nexpect margin("quiz.jsonl") >= 0', ["C804"]),
        ('expect generate("text.jsonl") >= 0.5', ["C804"]),
        ('expect nll("broken.jsonl") <= 1\nexpect kl("empty.jsonl") <= 1', ["C803", "C802"]),
        ('expect nll("long.jsonl") <= 1', []),
    ],
)  # fmt: skip
def test_the_first_row_has_the_fields_that_are_read(
    family: Path, text: str, expected: list[str]
) -> None:
    rows = {
        "chat": '{"messages": [{"role": "user", "content": "ab"}, '
                '{"role": "assistant", "content": "c"}]}',
        "text": '\n{"text": "abcdefghij"}\nnothing',
        "quiz": '{"query": "a", "choices": ["b", "c"], "gold": 0}',
        "broken": "{",
        "empty": " \n",
        "long": '{"words": "' + "a" * 2**20 + '"}',
    }  # fmt: skip
    for name, row in rows.items():
        (family / f"{name}.jsonl").write_text(row)
    (family / "text.txt").write_text("abcdefghijkl")
    try:
        results = [(c, at) for c, at in codes(family, text) if c in {"C802", "C803", "C804"}]
    finally:
        for name in rows:
            (family / f"{name}.jsonl").unlink()
        (family / "text.txt").unlink()
    assert [code for code, _ in results] == expected
    assert all(at.strip('"').partition(".")[0] in (*rows, "text") for _, at in results)


def test_a_wrong_row_is_refused_before_anything_is_computed(family: Path, tmp_path: Path) -> None:
    (family / "words.jsonl").write_text('{"words": "a"}\n')
    plan = gptailor.loads(f'{HEAD}drop L1\nbridge on "words.jsonl"\n', folder=family)
    with pytest.raises(gptailor.PlanError, match=r"C804.*has no 'text'; it has 'words'"):
        gptailor.compile(plan, tmp_path / "out", dry_run=True)


@pytest.mark.parametrize(
    ("objective", "size"), [('nll("some.jsonl")', 3), ('multiple_choice("quiz.jsonl")', 2)]
)
def test_a_search_refuses_a_fidelity_beyond_its_samples(
    family: Path, tmp_path: Path, objective: str, size: int
) -> None:
    rows = {
        "some": [{"text": "ab"}, {"text": "cd"}, {"prompt": "a" * 99, "response": "b"}],
        "quiz": [{"query": "a", "choices": ["b", "c"], "gold": 0}] * 2,
    }
    for name, each in rows.items():
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, each)))
    text = f'tailor 1\nmodel base = "{family}/base"\nmaybe drop L1\nsearch {{\n'
    text += f"  {'minimize' if objective[0] == 'n' else 'maximize'} {objective}\n"
    text += f"  fidelity 1..{size + 1}\n}}\n"
    plan = gptailor.loads(text, folder=tmp_path)
    with pytest.raises(gptailor.PlanError) as refused:
        gptailor.search(plan, tmp_path / "run")
    [fault] = refused.value.faults
    assert fault.code == "C815"
    assert fault.span is not None
    assert text[fault.span.start : fault.span.end] == f"fidelity 1..{size + 1}"
    assert f"'{objective}' has {size} samples" in fault.message
    with pytest.raises(gptailor.PlanError) as refused:
        gptailor.search(plan, tmp_path / "run", gptailor.Flags(fidelity=(1, 200)))
    assert [(f.code, f.span) for f in refused.value.faults] == [("C815", None)]


@pytest.mark.parametrize(
    ("statements", "use"),
    [
        ('maybe drop L1\nsearch { minimize nll("rows.jsonl") }',
         lambda plan: gptailor.search(plan, "run")),
        ('drop L1\nexpect nll("rows.jsonl") <= 9', gptailor.evaluate_expectations),
    ],
)  # fmt: skip
def test_a_wrong_row_of_an_objective_is_a_fault_with_its_place(
    family: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    statements: str,
    use: Callable[[gptailor.Plan], object],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.jsonl").write_text('{"text": "ab"}\n{"words": "ab"}\n')
    text = f'tailor 1\nmodel base = "{family}/base"\n{statements}\n'
    with pytest.raises(gptailor.PlanError) as refused:
        use(gptailor.loads(text, folder=tmp_path))
    assert [(f.code, text[f.span.start : f.span.end]) for f in refused.value.faults if f.span] == [
        ("C804", '"rows.jsonl"')
    ]


def test_an_invalid_later_row_is_a_fault_with_its_place(family: Path, tmp_path: Path) -> None:
    good = '{"text": "' + "abcdefgh" * 20 + '"}\n'
    (family / "rows.jsonl").write_text(good + '{"words": "a"}\n')
    text = f'{HEAD}drop L1\nbridge on "rows.jsonl"\n'
    plan = gptailor.loads(text, folder=family)
    assert errors(gptailor.check(plan)) == []
    for use in (gptailor.stitch, lambda plan: gptailor.compile(plan, tmp_path / "out")):
        with pytest.raises(gptailor.PlanError) as refused:
            use(plan)
        [fault] = refused.value.faults
        assert fault.code == "C804"
        assert fault.message.endswith("rows.jsonl:2)")
        assert fault.span is not None
        assert text[fault.span.start : fault.span.end] == '"rows.jsonl"'


def test_a_part_of_an_unread_statement_is_not_reported_missing() -> None:
    def codes_alone(text: str) -> list[str]:
        source = Source("p.tailor", HEAD + text)
        return [fault.code for fault in read_text(source, Path())[1]]

    assert codes_alone('drop L1..2\nbridge on "t"') == ["S101"]
    assert codes_alone('L1..2 from math\nbridge on "t"') == ["S101", "P702"]
    assert codes_alone("model code = 5\nL1 from code") == ["S101"]
    assert codes_alone("L2..3 from math\nL1 from code") == ["S101", "P106"]
    assert codes_alone('heal on "t"\ndrop L1..2') == ["S101"]


def test_two_paths_of_one_text_are_the_same_objective() -> None:
    text = 'tailor 1\nmodel base = "./base"\nmaybe drop L1\nsearch {\n  minimize nll("t.jsonl")\n'
    with pytest.raises(gptailor.PlanError, match="P607"):
        gptailor.loads(text + '  minimize nll("./t.jsonl")\n}\n')


def test_a_text_of_a_bridge_without_a_gap_may_be_short(family: Path) -> None:
    assert "C806" not in [code for code, _ in codes(family, 'bridge on "a.txt" tokens 999\n')]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('bridge on "wide.txt" tokens 40', []),
        ('bridge on "wide.txt" tokens 50',
         ["the text has 40 tokens, expected at least 50 for 'bridge'"]),
        ('bridge L0 on "some.txt"\nheal on "wide.txt" tokens 50',
         ["the text has 20 tokens, expected at least 24 for a bridge",
          "the text has 40 tokens, expected at least 50 for 'heal'"]),
        ('heal on "chat.jsonl" tokens 60', []),
    ],
)  # fmt: skip
def test_tokens_are_counted_before_a_text_is_used(
    family: Path, tmp_path: Path, text: str, expected: list[str]
) -> None:
    """A character is a token here, of up to three bytes. A fit has 24 inputs."""
    (family / "wide.txt").write_text("…" * 40, encoding="utf-8")
    (family / "some.txt").write_text("…" * 20, encoding="utf-8")
    (family / "chat.jsonl").write_text('{"messages": [{"role": "user", "content": "…………"}]}\n')
    plan = gptailor.loads(f"{HEAD}drop L1\n{text}\n", folder=family)
    results = [fault for fault in gptailor.check(plan) if fault.code == "C806"]
    assert [fault.message.partition(" (")[0] for fault in results] == expected
    if expected:
        with pytest.raises(gptailor.PlanError) as refused:
            gptailor.compile(plan, tmp_path / "out", dry_run=True)
        assert [fault.message for fault in refused.value.faults] == [f.message for f in results]
