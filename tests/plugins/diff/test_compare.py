"""Two plans in two folders, compared as one."""

from pathlib import Path

import pytest

import gptailor
from gptailor.checkpoint.token_cut import WholeTokenizer
from gptailor.lang.plan_of import plan_of
from gptailor.plugins.diff.compare import diff_lines
from tests.support.tiny import tiny_model
from tests.support.tiny_bytes import model


def test_plans_of_two_folders_have_a_tied_head_in_the_difference(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for seed, name in enumerate(("base", "math")):
        tiny_model("llama", tmp_path / name, layers=2, seed=seed, tie_word_embeddings=True)
    for folder, text in (("a", ""), ("b", "whole from math")):
        (tmp_path / folder).mkdir()
        head = 'tailor 1\nmodel base = "../base"\nmodel math = "../math"\n'
        (tmp_path / folder / "p.tailor").write_text(head + text)
    monkeypatch.chdir(tmp_path)
    expected = ["embed: base → math", "norm: base → math", "L0..L1: base → math"]
    assert gptailor.diff("a/p.tailor", "b/p.tailor") == expected


def test_plans_of_two_vocabularies_are_compared_without_their_tokenizer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_model("llama", tmp_path / "base", layers=2)
    plans = [
        gptailor.loads(
            f'tailor 1\nmodel base = "./base"\nvocabulary {n} on "t.txt"\n', folder=tmp_path
        )
        for n in (20, 30)
    ]
    (tmp_path / "t.txt").write_text("the cat sat")
    monkeypatch.delattr(WholeTokenizer, "ids")
    removed, added = gptailor.diff(*plans)
    assert ("20" in removed, "30" in added) == (True, True)


def test_a_folder_and_its_gguf_file_are_compared_by_size_and_types(tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    model(tmp_path / "base", layers=2)
    plan = gptailor.loads('tailor 1\nmodel base = "./base"\ndrop L1\n', folder=tmp_path)
    folder = gptailor.compile(plan, tmp_path / "out", dtype="bfloat16", gguf=["q8_0"]).folder
    file = tmp_path / "out-Q8_0.gguf"
    sides = [(str(path), plan_of(path)[1]) for path in (folder, file)]
    (alike, sizes), differ = diff_lines(sides[0], sides[1], 200)
    assert (alike, differ) == ("the plans are equal", False)
    before, after = sizes.split(" → ")
    assert before.startswith("folder: ")
    assert before.endswith(" BF16")
    assert after.startswith(f"GGUF: {file.stat().st_size:,} bytes; tensors: ")
    [alike], _ = diff_lines(sides[0], sides[0], 200)
    assert alike == "the plans are equal"
