"""Code that a model's files name (`auto_map`): never run, and in no output."""

import json
import sys
from pathlib import Path

import pytest
from transformers import AutoTokenizer

import gptailor
from gptailor.cli.main import run
from tests.conftest import names_code
from tests.support.tiny import tiny_model
from tests.support.tiny_vision import tiny_vision

pytestmark = pytest.mark.usefixtures("no_progress_bars", "one_thread")

NAMED = ("config.json", "generation_config.json", "tokenizer_config.json")
PROCESSOR = ("preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json")


@pytest.fixture(autouse=True)
def no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever asks at the terminal whether to run code fails."""

    class Closed:
        def readline(self) -> str:
            raise AssertionError("a question was asked")

    monkeypatch.setattr(sys, "stdin", Closed())


def coded(folder: Path, *, vision: bool) -> Path:
    if vision:
        tiny_vision("qwen3_vl", folder)
    else:
        tiny_model("llama", folder, layers=2)
    for name in (*NAMED, *(PROCESSOR if vision else ())):
        names_code(folder / name)
    return folder


@pytest.mark.parametrize("vision", [False, True])
def test_no_output_names_code_and_each_file_is_reported(vision: bool, tmp_path: Path) -> None:
    coded(tmp_path / "base", vision=vision)
    plan = gptailor.loads('tailor 1\nmodel base = "./base"\ndrop L1', folder=tmp_path)
    messages = [fault.message for fault in gptailor.check(plan) if fault.code == "M313"]
    names = sorted((*NAMED, *(PROCESSOR if vision else ())))
    assert sorted(message.split()[0] for message in messages) == names
    out = tmp_path / "out"
    gptailor.compile(plan, out, locking=True)
    texts = {path.name: path.read_text() for path in out.glob("*.json")}
    assert texts.keys() >= set(names)
    assert not [name for name, text in texts.items() if "auto_map" in text]
    assert json.loads(texts["generation_config.json"])["inner"] == {"list": [{"a": 1}]}
    assert AutoTokenizer.from_pretrained(out).encode("a cat")
    assert gptailor.verify(out).result == "verified"
    (tmp_path / "base").rename(tmp_path / "gone")  # only the lock is left
    assert not gptailor.verify(out).differences
    kept = texts["tokenizer_config.json"]
    (out / "tokenizer_config.json").write_text(kept.replace("128", "129"))
    assert [difference.name for difference in gptailor.verify(out).differences] == [
        "tokenizer_config.json"
    ]


def test_a_tokenizer_of_code_alone_is_one_message(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = coded(tmp_path / "base", vision=False)
    assert run(["generate", str(base), "a cat", "--tokens", "2"]) == 0  # transformers has a class
    path = base / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"tokenizer_class": "Own"}))
    (base / "tokenizer.json").rename(base / "vocab.json")
    (base / "vocab.json").write_text('{"a": 1}')
    (base / "a.txt").write_text("a cat" * 99)
    wish = f'nll("{base / "a.txt"}")'
    for arguments in (["generate", str(base), "a"], ["eval", str(base), "-O", wish]):
        capsys.readouterr()
        assert run(arguments) == 3
        output = capsys.readouterr()
        words = " ".join((output.out + output.err).split())
        assert "needs code of its own ('auto_map' in tokenizer_config.json)" in words
        assert "Traceback" not in output.err
        assert "trust_remote_code" not in output.out + output.err


@pytest.mark.parametrize("text", ["[1]", "", '{"a": ' + "[" * 900 + "]" * 900 + "}"])
def test_settings_that_arent_an_object_are_refused(text: str, tmp_path: Path) -> None:
    tiny_model("llama", tmp_path / "base", layers=2)
    (tmp_path / "base" / "generation_config.json").write_text(text)
    plan = gptailor.loads('tailor 1\nmodel base = "./base"\ndrop L1', folder=tmp_path)
    assert [fault.code for fault in gptailor.check(plan)] == ["C604"]
