"""Short answers to one prompt, and the signs of ruined models in them."""

import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from transformers import PreTrainedTokenizerBase

from gptailor.checkpoint.models import Opened
from gptailor.evaluation.evaluate import evaluate
from gptailor.evaluation.fits.repair import stitch
from gptailor.evaluation.generate import SHORT_PROMPT, GeneratedText, generate, short_answers_of
from gptailor.evaluation.meter import Meter, Placement
from gptailor.evaluation.objectives.tokens import tokenizer_of
from tests.support.healing import two_models

CUT = 'tailor 1\nmodel base = "./base"\ndrop L2\n'


@pytest.mark.parametrize(
    ("text", "sign"),
    [
        (" \n", "ends at once"),
        (" ".join(f"{n}." for n in range(4, 17)), "loops: 91% of its four-grams occur earlier"),
        ("the sea, the sea, the sea, the sea", "loops: 62% of its four-grams occur earlier"),
        ("天空是藍的天空是藍的天空是藍的", "loops: 58% of its four-grams occur earlier"),
        ("it was a 1" + "0" * 35, "loops: '0' 35 times in a row"),
        ("The " + "ha" * 20, "loops: 'ha' 20 times in a row"),
        ("It is 1" + "0" * 19, ""),
        ("The sky is blue because light is scattered by molecules of the air.", ""),
        ("1. Wash them.\n2. Cut them.\n3. Eat them.", ""),
        ("It is.", ""),
    ],
)
def test_the_signs_of_a_ruined_model(text: str, sign: str) -> None:
    result = GeneratedText("out", text).sign
    assert result.startswith(sign)
    assert bool(result) == bool(sign)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = two_models(tmp_path_factory.mktemp("asked"))
    (made / "cut.tailor").write_text(CUT)
    return made


def test_short_answers_are_those_of_the_base_and_of_the_plan(folder: Path) -> None:
    result = short_answers_of(folder / "cut.tailor", Meter(Placement()))
    wanted = generate([folder / "base", folder / "cut.tailor"], SHORT_PROMPT, tokens=40)
    assert [answer.target for answer in result] == ["base", str(folder / "cut.tailor")]
    assert [answer.text for answer in result] == [answer.text for answer in wanted]


def test_a_model_that_overflows_in_float16_is_refused_with_a_remedy(
    folder: Path, tmp_path: Path, own_cache: Path
) -> None:
    shutil.copytree(folder / "base", tmp_path / "base")
    file = tmp_path / "base" / "model.safetensors"
    tensors = load_file(file)
    for name in ("up", "down"):
        tensors[f"model.layers.1.mlp.{name}_proj.weight"] *= 1e4
    save_file(tensors, file, metadata={"format": "pt"})
    (tmp_path / "a.txt").write_text("the cat sat on the mat and the dog sat on the log " * 40)
    remedy = "NaN; all stored tensors are finite; float16 overflows; use --dtype bfloat16"
    [halves] = generate(tmp_path / "base", "the cat", tokens=2, dtype="float16")
    [floats] = generate(tmp_path / "base", "the cat", tokens=2, dtype="float32")
    assert (halves.failure, floats.failure) == (f"the model's predictions are {remedy}", None)
    objective = f'nll("{tmp_path / "a.txt"}")'
    scored = evaluate(tmp_path / "base", objective, samples=2, dtype="float16")
    assert [str(r.outcome).count(remedy) for r in scored.results] == [1]


def test_a_chat_template_of_the_tokenizer_has_the_prompt(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[object] = []

    def rendered(_: object, chats: list[object], *__: object) -> list[str]:
        asked.extend(chats)
        return ["the cat"]

    def with_template(model: Opened) -> PreTrainedTokenizerBase:
        tokenizer = tokenizer_of(model)
        tokenizer.chat_template = "{{ messages }}"
        return tokenizer

    monkeypatch.setattr("gptailor.evaluation.generate.tokenizer_of", with_template)
    monkeypatch.setattr("gptailor.evaluation.generate.chat_texts", rendered)
    short_answers_of(folder / "cut.tailor", Meter(Placement()))
    assert asked == [([{"role": "user", "content": SHORT_PROMPT}], True)] * 2


def test_short_answers_need_memory_and_a_tokenizer(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = folder / "cut.tailor"
    (whole := folder / "whole.tailor").write_text(CUT.replace("drop L2\n", ""))
    most, least = (4 * stitch(each).num_parameters() for each in (whole, plan))
    for memory, count in ((most, 2), (most - 1, 1), (least - 1, 0)):
        assert len(short_answers_of(plan, Meter(Placement(memory=memory)))) == count
    monkeypatch.setattr("gptailor.evaluation.objectives.tokens.tokenizer_files", lambda _: {})
    assert short_answers_of(plan, Meter(Placement())) == ()
