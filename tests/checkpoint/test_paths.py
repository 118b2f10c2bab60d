"""Paths as people write them."""

from pathlib import Path

import pytest

from gptailor.checkpoint.files import expanded


def test_a_tilde_is_the_home_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/somewhere/else")
    assert expanded("~/models/base") == Path("/somewhere/else/models/base")
    assert expanded(Path("~")) == Path("/somewhere/else")
    assert expanded("./~/models") == Path("~/models")


def test_nobodys_home_is_a_folder_that_isnt_there() -> None:
    assert expanded("~nobody-of-that-name/models") == Path("~nobody-of-that-name/models")
