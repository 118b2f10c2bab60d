"""`loops` and `ends` of models that are built to loop and to end."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

import gptailor
from gptailor.checkpoint.datasets import CalibrationError
from gptailor.evaluation.generate import loop_of
from gptailor.evaluation.objectives import prepare_objective
from gptailor.evaluation.objectives.base import ObjectiveContext, ObjectiveError
from gptailor.evaluation.objectives.generate import Generative
from gptailor.evaluation.objectives.tokens import TokenEncoder
from gptailor.evaluation.scores import Failure
from gptailor.plan.faults import PlanError
from gptailor.plan.plan import Objective
from tests.plugins.talk.talker import AFTER, talker


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("talking")
    talker(made / "base", AFTER)
    return made


def rows(folder: Path, *entries: dict[str, object]) -> Path:
    path = folder / "prompts.jsonl"
    path.write_text("\n".join(map(json.dumps, entries)))
    return path


def scores(base: Path, file: Path, *objectives: str) -> list[object]:
    evaluation = gptailor.evaluate(base, [text.replace("FILE", str(file)) for text in objectives])
    return [getattr(result.outcome, "value", result.outcome) for result in evaluation.results]


def test_shares_of_continuations_that_loop_and_end(folder: Path, tmp_path: Path) -> None:
    file = rows(tmp_path, {"text": "a"}, {"text": "x"}, {"context": "x"}, {"prompt": "m"})
    result = scores(
        folder / "base", file, 'loops("FILE", tokens=30)', 'ends("FILE", tokens=30)',
        'ends("FILE", tokens=2)', 'ends("FILE", tokens=3)', 'loops("FILE", tokens=4)',
    )  # fmt: skip
    assert result == [0.5, 0.25, 0.0, 0.25, 0.0]


def test_an_expectation_bounds_them_by_the_base(folder: Path, tmp_path: Path) -> None:
    talker(tmp_path / "other", {**AFTER, "a": "a"})
    rows(tmp_path, {"text": "a"}, {"text": "x"})
    plan = tmp_path / "p.tailor"
    plan.write_text(
        f'tailor 1\nmodel base = "{folder / "base"}"\nmodel other = "./other"\nhead from other\n'
        'expect loops("prompts.jsonl", tokens=30) <= 1 * base\n'
        'expect ends("prompts.jsonl", tokens=30) >= 0.5\n'
    )
    from gptailor.plugins.expect.expectations import evaluate_expectations

    result = evaluate_expectations(plan)
    assert [(each.value and each.value.value) for each in result] == [1.0, 0.0]


def context(
    folder: Path, file: Path, template: str | None = None, positions: int = 128
) -> tuple[Callable[..., object], PreTrainedTokenizerBase]:
    tokenizer = AutoTokenizer.from_pretrained(folder / "base")
    tokenizer.chat_template = template
    around = ObjectiveContext(TokenEncoder(tokenizer, positions), file.parent)

    def prepared(name: str = "ends", **arguments: object) -> object:
        given = {"file": file.name, **arguments}
        direction = "minimize" if name == "loops" else "maximize"
        return prepare_objective(Objective(direction=direction, name=name, arguments=given), around)

    return prepared, tokenizer


def test_only_chats_use_the_template(folder: Path, tmp_path: Path) -> None:
    chat = [{"role": "user", "content": "b"}, {"role": "assistant", "content": "no"}]
    file = rows(tmp_path, {"prompt": "a"}, {"messages": chat}, {"text": "c"}, {"context": "d"})
    prepare, tokenizer = context(folder, file, "<{{ messages[0]['content'] }}>")
    prepared = prepare(tokens=7)
    assert isinstance(prepared, Generative)
    assert sorted(tokenizer.decode(p.tokens) for p in prepared.prompts(None)) == sorted(
        [tokenizer.decode(tokenizer.encode(t)) for t in ("<a>", "<b>", "c", "d")]
    )
    assert {p.most for p in prepared.prompts(None)} == {7}
    assert (prepared.normalise, prepared.part(1, 3).size) == ("spread", 2)
    bare, tokenizer = context(folder, rows(tmp_path, {"prompt": "a"}), positions=500)
    [prompt] = bare().prompts(None)
    assert (tokenizer.decode(prompt.tokens), prompt.most) == ("a", 128)


@pytest.mark.parametrize(
    ("text", "code", "message"),
    [
        ("", "C802", "the file has no rows"),
        ('{"answer": "a"}', "C804", "the row has no 'context'"),
        ('{"prompt": ""}', "C804", "'prompt' is empty"),
        (json.dumps({"text": "a" * 99}), "C805",
         "the prompt and its continuation have 129 tokens, more than the model's 128"),
        ('{"messages": [{"role": "system", "content": "a"}, {"role": "user", "content": "b"}]}',
         "C812", "rows of 'messages' need a chat template"),
    ],
)  # fmt: skip
def test_a_file_of_another_form_is_refused(
    folder: Path, tmp_path: Path, text: str, code: str, message: str
) -> None:
    (file := tmp_path / "prompts.jsonl").write_text(text)
    prepare, _ = context(folder, file)
    with pytest.raises(CalibrationError) as caught:
        prepare(tokens=30)
    assert caught.value.code == code
    assert message in caught.value.message


def test_a_template_that_fails_and_plain_text_are_refused(folder: Path, tmp_path: Path) -> None:
    prepare, _ = context(folder, rows(tmp_path, {"prompt": "a"}), "{{ raise_exception('no') }}")
    with pytest.raises(CalibrationError, match="C812"):
        prepare()
    (tmp_path / "p.txt").write_text("a text")
    with pytest.raises(CalibrationError, match=r'(?s)C803.*or with "text" or "context"'):
        context(folder, tmp_path / "p.txt")[0]()
    for wrong in (0, 2.5):
        with pytest.raises(ObjectiveError, match="a whole number of at least 1 as 'tokens'"):
            prepare(tokens=wrong)


def test_a_model_without_an_end_token_has_no_share_of_ends(folder: Path, tmp_path: Path) -> None:
    talker(base := tmp_path / "base", AFTER, eos_token_id=None)
    for name in ("tokenizer_config.json", "generation_config.json"):
        if (path := base / name).exists():
            kept = json.loads(path.read_text())
            path.write_text(json.dumps({k: v for k, v in kept.items() if "eos" not in k}))
    file = rows(tmp_path, {"text": "a"})
    ends, loops = scores(base, file, 'ends("FILE", tokens=9)', 'loops("FILE", tokens=9)')
    assert isinstance(ends, Failure)
    assert "'ends' needs an end token, which the model and its tokenizer lack" in ends.message
    assert loops == 0.0


def test_arguments_of_the_objectives_are_checked(tmp_path: Path) -> None:
    for text, code in (
        ('minimize ends("p.jsonl")', "P602"),
        ('minimize loops("p.jsonl", tokens="a")', "P603"),
        ("minimize loops(tokens=3)", "P604"),
    ):
        with pytest.raises(PlanError, match=code):
            gptailor.loads(f'tailor 1\nmodel base = "./base"\nmaybe drop L1\nsearch {{ {text} }}\n')


def test_the_criterion_is_that_of_generated_texts() -> None:
    assert loop_of("the sea, the sea, the sea, the sea").startswith("loops: 62%")
    assert loop_of("") == loop_of("It is a short text about the sea.") == ""
