"""`generate`: a batch has the model's answer to each prompt alone; answers are compared."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from transformers.utils import logging

from gptailor.evaluation.objectives import prepare_objective
from gptailor.evaluation.objectives.base import ObjectiveContext
from gptailor.evaluation.objectives.generate import Generative, greedy, normalised_answer
from gptailor.evaluation.objectives.tokens import Prompt, TokenEncoder
from gptailor.evaluation.scores import NotANumberError
from gptailor.plan.plan import Objective
from tests.support.tiny import tiny_model

TEXTS = ("the cat", "a", "one and two and three", "the dog sat")


@pytest.fixture(scope="module", params=["llama", "gemma2", "gpt2"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    logging.disable_progress_bar()
    return tiny_model(request.param, tmp_path_factory.mktemp(request.param), layers=2)


@pytest.fixture(scope="module")
def model(folder: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(folder).eval()


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> AutoTokenizer:
    return AutoTokenizer.from_pretrained(folder)


def alone(model: PreTrainedModel, tokens: tuple[int, ...], most: int) -> list[int]:
    """The likeliest token after all tokens so far, by a whole forward pass each."""
    said: list[int] = []
    while len(said) < most:
        with torch.no_grad():
            logits = model(torch.tensor([[*tokens, *said]]), use_cache=False).logits[0, -1]
        said.append(int(logits.argmax()))
        if said[-1] == 2:
            return said[:-1]
    return said


def test_a_batch_generates_the_same_as_each_prompt_alone(
    model: PreTrainedModel, tokenizer: AutoTokenizer
) -> None:
    model.generation_config.repetition_penalty = 9.0  # a model's own taste counts for nothing
    own = model.generation_config
    prompts = [Prompt(tuple(tokenizer.encode(text)), 4 + n) for n, text in enumerate(TEXTS)]
    generated = [alone(model, p.tokens, p.most) for p in prompts]
    wanted = [tokenizer.decode(tokens, skip_special_tokens=True) for tokens in generated]
    for batch_tokens in (1, 4096):
        assert greedy(model, tokenizer, prompts, batch_tokens) == wanted
    assert model.generation_config is own


def test_predictions_that_are_nan_are_an_error(folder: Path, tokenizer: AutoTokenizer) -> None:
    broken = AutoModelForCausalLM.from_pretrained(folder).eval()
    with torch.no_grad():
        broken.get_input_embeddings().weight.fill_(torch.nan)
    with pytest.raises(NotANumberError, match="predictions are NaN"):
        greedy(broken, tokenizer, [Prompt(tuple(tokenizer.encode("the cat")), 4)], 4096)


def test_text_ends_before_a_stop(model: PreTrainedModel, tokenizer: AutoTokenizer) -> None:
    tokens = tuple(tokenizer.encode("the cat"))
    [whole] = greedy(model, tokenizer, [Prompt(tokens, 12)], 64)
    stop = whole[3:5]
    answers = greedy(model, tokenizer, [Prompt(tokens, 12, (stop, "€")), Prompt(tokens, 12)], 64)
    assert answers == [whole[: whole.index(stop)], whole]


def test_answers_end_at_the_models_end_token(
    model: PreTrainedModel, tokenizer: AutoTokenizer, tmp_path: Path
) -> None:
    for text in TEXTS[:2]:
        generated = alone(model, tuple(tokenizer.encode(text)), 6)
        after = next(
            (i for i, token in enumerate(generated) if i and token not in generated[:i]), None
        )
        if after is None:
            continue
        model.generation_config.eos_token_id = [2, generated[after]]
        answer = tokenizer.decode(generated[:after], skip_special_tokens=True).split("\n")[0]
        right = {"context": f"{text} ", "answer": "no", "aliases": [f" {answer}\t"]}
        wrong = {"context": text, "answer": f"{answer}?"}
        (tmp_path / "answers.jsonl").write_text("\n".join(map(json.dumps, (right, wrong, wrong))))
        prepared = prepare_objective(
            Objective(direction="maximize", name="generate", arguments={"file": "answers.jsonl"}),
            ObjectiveContext(encoder=TokenEncoder(tokenizer, 128), folder=tmp_path),
        )
        assert isinstance(prepared, Generative)
        assert prepared.evaluate(model).value == pytest.approx(1 / 3)


def test_a_text_has_a_line_and_eight_tokens_more_than_the_longest_answer(
    folder: Path, tokenizer: AutoTokenizer, tmp_path: Path
) -> None:
    """As `docs/extending.md` and the docstring of `gptailor.objective` tell."""
    rows = [
        {"context": "the", "answer": " cat", "aliases": [" cat sat on"]},
        {"context": "the", "answer": "cat\ndog"},
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    prepared = prepare_objective(
        Objective(direction="maximize", name="generate", arguments={"file": "rows.jsonl"}),
        ObjectiveContext(encoder=TokenEncoder(tokenizer, 128), folder=tmp_path),
    )
    assert isinstance(prepared, Generative)
    line, lines = prepared.prompts(None)
    longest = len(tokenizer.encode(" cat sat on", add_special_tokens=False))
    assert (line.most, line.stops, lines.stops) == (longest + 8, ("\n",), ())


def test_blanks_are_ignored_and_case_is_kept() -> None:
    assert normalised_answer("  a \t b\n") == "a b"
    assert normalised_answer("e\u0301") == normalised_answer("\u00e9")
    assert normalised_answer("A") != normalised_answer("a")
