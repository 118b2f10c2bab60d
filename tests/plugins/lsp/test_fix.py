"""`gptailor check --fix`: faults with one remedy are corrected in the file, and nothing else."""

import json
from pathlib import Path

import pytest

from tests.support.said import Run, in_process

HEAD = 'tailor 1\nmodel base = "./base"\nmodel math = "./math"\n'


@pytest.fixture
def run(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    family: Path,
    tmp_path: Path,
) -> Run:
    for name in ("base", "math"):
        (tmp_path / name).symlink_to(family / name)
    monkeypatch.chdir(tmp_path)
    return in_process(capsys)


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("L1 from maths\n", "L1 from math\n"),
        ("L1 from base, math by lineer()\n", "L1 from base, math by linear()\n"),
        ("drop L3..L1\n", "drop L1..L3\n"),
        ("drop L1 to L3\n", "drop L1..L3\n"),
        ("drop L1-L3  # why\n", "drop L1..L3  # why\n"),
        ("L1 from base, math by slerp(t=.5)\n", "L1 from base, math by slerp(t=0.5)\n"),
        ("L1 from base, math by slerp\n", "L1 from base, math by slerp()\n"),
        ("drop L1 // why\n", "drop L1 # why\n"),
        ("L1 from maths\nL2 from math\ndrop L5-L3\n", "L1 from math\nL2 from math\ndrop L3..L5\n"),
    ],
)
def test_a_fault_with_one_remedy_is_corrected(run: Run, wrong: str, right: str) -> None:
    Path("p.tailor").write_text(HEAD + wrong)
    result = run("check", "p.tailor", "--fix")
    assert Path("p.tailor").read_text() == HEAD + right
    assert result.code == 0, result.err
    assert "p.tailor: fixed: " in result.err
    assert "no faults" in result.out


def test_the_version_is_added(run: Run) -> None:
    Path("p.tailor").write_text('model base = "./base"\ndrop L1\n')
    assert run("check", "p.tailor", "--fix").code == 0
    assert Path("p.tailor").read_text().startswith("tailor 1\nmodel base")


@pytest.mark.parametrize(
    "text",
    [
        "L1 from chat\n",
        "drop L1\nL1 from math\n",
        "drop L99\n",
    ],
)
def test_a_fault_with_other_remedies_stays(run: Run, text: str) -> None:
    Path("p.tailor").write_text(HEAD + text)
    result = run("check", "p.tailor", "--fix")
    assert (result.code, "fixed" in result.err) == (1, False)
    assert Path("p.tailor").read_text() == HEAD + text


def test_marks_and_line_ends_stay(run: Run) -> None:
    raw = (HEAD + "drop L3..L1\n").replace("\n", "\r\n").encode("utf-8-sig")
    Path("p.tailor").write_bytes(raw)
    run("check", "p.tailor", "--fix")
    assert Path("p.tailor").read_bytes() == raw.replace(b"L3..L1", b"L1..L3")


def test_a_number_with_a_misspelt_use_is_kept(run: Run) -> None:
    Path("p.tailor").write_text(HEAD + "let mixture = 0.5\nL1 from base, math by slerp(mixtur)\n")
    run("check", "p.tailor", "--fix")
    assert "let mixture = 0.5\n" in Path("p.tailor").read_text()


def test_a_version_is_added_after_the_byte_order_mark(run: Run) -> None:
    Path("p.tailor").write_bytes('model base = "./base"\ndrop L1\n'.encode("utf-8-sig"))
    run("check", "p.tailor", "--fix")
    wanted = 'tailor 1\nmodel base = "./base"\ndrop L1\n'
    assert Path("p.tailor").read_bytes() == wanted.encode("utf-8-sig")


def test_a_number_that_is_not_used_stays(run: Run) -> None:
    text = HEAD + "let mix = 0.4371\nL1 from math\n"
    Path("p.tailor").write_text(text)
    run("check", "p.tailor", "--fix")
    assert Path("p.tailor").read_text() == text


def test_a_sound_plan_is_not_written(run: Run) -> None:
    Path("p.tailor").write_text(HEAD + "L1 from math\n")
    before = Path("p.tailor").stat().st_mtime_ns
    assert run("check", "p.tailor", "--fix").err == ""
    assert Path("p.tailor").stat().st_mtime_ns == before


def test_json_stays_json(run: Run) -> None:
    Path("p.tailor").write_text(HEAD + "drop L3..L1\n")
    result = run("check", "p.tailor", "--fix", "--format", "json")
    assert {fault["severity"] for fault in json.loads(result.out)} == {"warning"}
    Path("p.json").write_text(run("json", "p.tailor").out)
    assert run("check", "p.json", "--fix").code == 0


def test_standard_input_cannot_be_fixed(run: Run) -> None:
    result = run("check", "-", "--fix")
    assert (result.code, "standard input (-)" in result.err) == (2, True)
