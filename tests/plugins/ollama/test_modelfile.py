"""The Modelfile beside a GGUF file."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

import gptailor
from gptailor.plugins.ollama.template import OllamaTemplate
from tests.plugins.ollama.test_template import CHAT, ollama
from tests.support.tiny_bytes import model
from tests.support.vocabularies import TEMPLATE

pytest.importorskip("gguf", reason="the package 'gguf' is not installed")

from gptailor.plugins.ollama.modelfile import modelfile_text

FACTS = {
    "tokenizer.ggml.tokens": ["a", "<s>", "</s>", "<|end|>", "<|end|>x"],
    "tokenizer.ggml.token_type": [1, 3, 3, 3, 1],
    "tokenizer.ggml.eos_token_id": 2,
}


def parsed(text: str) -> list[tuple[str, str]]:
    """The instructions of a Modelfile, as Ollama's parser reads their values."""
    results = re.findall(
        r'^([A-Z]+(?: (?<=PARAMETER )\w+)?) (?:"""(.*?)"""|(.*?))$', text, re.M | re.S
    )
    return [(name, long or short.strip('"')) for name, long, short in results]


@pytest.fixture
def here(tmp_path: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    base = model(tmp_path / "base", layers=2)
    settings = json.loads((base / "tokenizer_config.json").read_text())
    settings |= {"chat_template": TEMPLATE, "eos_token": "<|im_end|>"}
    (base / "tokenizer_config.json").write_text(json.dumps(settings))
    generation = {"temperature": 0.6, "top_k": 20, "repetition_penalty": 1.1, "do_sample": True}
    (base / "generation_config.json").write_text(json.dumps(generation))
    (tmp_path / "p.tailor").write_text('tailor 1\nmodel base = "./base"\ndrop L1\n')
    monkeypatch.chdir(tmp_path)
    return tmp_path


def compiled(**how: Any) -> gptailor.CompileResult:
    return gptailor.compile("p.tailor", "My model.gguf", **how)


def test_the_modelfile_has_template_stops_and_parameters(here: Path) -> None:
    assert compiled().notes == ()
    path = here / "My model.Modelfile"
    assert "ollama create my-model -f 'My model.Modelfile'" in path.read_text()
    entries = parsed(path.read_text())
    assert entries[0] == ("FROM", "./My model.gguf")
    assert entries[2:] == [
        ("PARAMETER stop", "<|im_end|>"), ("PARAMETER temperature", "0.6"),
        ("PARAMETER top_k", "20"), ("PARAMETER repeat_penalty", "1.1"),
    ]  # fmt: skip
    name, template = entries[1]
    assert name == "TEMPLATE"
    tokenizer = AutoTokenizer.from_pretrained(here / "base")
    for chat in (CHAT, CHAT[1:2], CHAT[1:]):
        wanted = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        assert ollama(OllamaTemplate(template, "", ""), chat) == wanted


def test_a_changed_file_is_kept_and_force_replaces_it(here: Path) -> None:
    compiled()
    path = here / "My model.Modelfile"
    first = path.read_text()
    (here / "p.tailor").write_text('tailor 1\nmodel base = "./base"\ndrop L0\n')
    compiled()
    assert path.read_text() == first
    path.write_text(changed := first.replace("0.6", "0.2"))
    kept = compiled()
    assert path.read_text() == changed
    note = "My model.Modelfile is kept, because it isn't as gptailor wrote it (--force replaces it)"
    assert note in kept.notes
    compiled(force=True)
    assert path.read_text() == first
    path.unlink()
    path.mkdir()
    assert note in compiled(force=True).notes


def test_a_model_without_a_chat_template_has_no_modelfile(here: Path) -> None:
    settings = json.loads((here / "base" / "tokenizer_config.json").read_text())
    del settings["chat_template"]
    (here / "base" / "tokenizer_config.json").write_text(json.dumps(settings))
    compiled()
    assert not [*here.glob("*Modelfile")]


def test_a_modelfile_without_a_template_refers_to_the_file() -> None:
    text = modelfile_text("x.gguf", FACTS, None, {"eos_token_id": [2, 3, 99], "top_p": True})
    assert "# Ollama uses the template in x.gguf itself.\n" in text
    assert parsed(text) == [
        ("FROM", "./x.gguf"), ("PARAMETER stop", "</s>"), ("PARAMETER stop", "<|end|>"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("end", "stop"), [("<|end|>\n", "<|end|>"), (" </s><s>[INST]", "</s>"), ("\n### ", "###")]
)
def test_the_end_of_a_turn_is_a_stop(end: str, stop: str) -> None:
    form = OllamaTemplate("{{ .Response }}" + end, "Be kind.", end)
    entries = parsed(
        modelfile_text("x.gguf", {**FACTS, "tokenizer.ggml.eos_token_id": 1}, form, {})
    )
    assert ("SYSTEM", "Be kind.") in entries
    assert [value for name, value in entries if name == "PARAMETER stop"] == ["<s>", stop]
