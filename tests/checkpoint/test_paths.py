"""Paths as people write them."""

from pathlib import Path

import pytest

import gptailor
from gptailor.checkpoint.files import expanded
from gptailor.checkpoint.models import source_from_here


def test_a_tilde_is_the_home_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/somewhere/else")
    assert expanded("~/models/base") == Path("/somewhere/else/models/base")
    assert expanded(Path("~")) == Path("/somewhere/else")
    assert expanded("./~/models") == Path("~/models")


def test_the_home_of_an_unknown_user_is_not_expanded() -> None:
    assert expanded("~nobody-of-that-name/models") == Path("~nobody-of-that-name/models")


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("../models/base", "./models/base"),
        ("./base", "./run/base"),
        ("org/name", "org/name"),
        ("s3://bucket/base", "s3://bucket/base"),
        ("/models/base", "/models/base"),
        ("~/base", "~/base"),
    ],
)
def test_a_source_is_a_path_from_the_current_folder(
    source: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "p.tailor").write_text(f'tailor 1\nmodel base = "{source}"\n')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    plan = gptailor.load("run/p.tailor")
    assert source_from_here(plan, source) == expected


def test_a_source_far_away_is_named_by_its_whole_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "p.tailor").write_text('tailor 1\nmodel base = "./base"\n')
    plan = gptailor.load(tmp_path / "p.tailor")
    monkeypatch.chdir("/usr")
    assert source_from_here(plan, "./base") == str(tmp_path / "base")
    monkeypatch.chdir(tmp_path)
    assert source_from_here(plan, str(tmp_path / "base")) == "./base"
