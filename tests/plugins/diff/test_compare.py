"""Two plans in two folders, compared as one."""

from pathlib import Path

import pytest

import gptailor
from tests.support.tiny import tiny_model


def test_plans_of_two_folders_know_that_embedding_and_head_are_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for seed, name in enumerate(("base", "math")):
        tiny_model("llama", tmp_path / name, layers=2, seed=seed, tie_word_embeddings=True)
    for folder, text in (("a", ""), ("b", "whole from math")):
        (tmp_path / folder).mkdir()
        head = 'tailor 1\nmodel base = "../base"\nmodel math = "../math"\n'
        (tmp_path / folder / "p.tailor").write_text(head + text)
    monkeypatch.chdir(tmp_path)
    said = ["embed: base → math", "norm: base → math", "L0..L1: base → math"]
    assert gptailor.diff("a/p.tailor", "b/p.tailor") == said
