"""A teacher's own answers: drawn by a seed, kept, and learned from."""

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from gptailor.checkpoint.datasets import CalibrationError
from gptailor.checkpoint.files import CheckpointError
from gptailor.evaluation.fits.heal import train
from gptailor.evaluation.live.stitch import Stitcher
from gptailor.evaluation.objectives.generate import continued
from gptailor.evaluation.objectives.tokens import Prompt
from gptailor.plan.events import Event, Progress
from gptailor.plan.faults import TailorError
from gptailor.plugins.teach import answers
from gptailor.plugins.teach.answers import drawn
from tests.support.events import progress
from tests.support.healing import HealedLayers, heal, said
from tests.support.tiny import letters, tiny_model

pytestmark = pytest.mark.usefixtures("no_progress_bars", "one_thread", "own_cache", "renders_here")

TEMPLATE = (
    "{% for m in messages %}{{ m['role'][0] + m['content'] + '.' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'a' }}{% endif %}"
)
HEAL = 'drop L2\nheal on answers("prompts.jsonl", tokens=24, temperature=1) tokens 256 rank 4'


@pytest.fixture(autouse=True)
def _settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, "LOW_RANK_RATE", 0.006)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("answers")
    tiny_model("llama", folder / "base", layers=4)
    tiny_model("llama", folder / "other", layers=4, seed=1)
    write(folder, [{"prompt": letters(5 + n % 4, seed=n)} for n in range(80)])
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "work"))


def write(folder: Path, rows: list[dict[str, object]]) -> None:
    (folder / "prompts.jsonl").write_text("\n".join(map(json.dumps, rows)))


def count_draws(monkeypatch: pytest.MonkeyPatch, asked: list[int]) -> None:
    """Note in `asked` how many prompts the teacher answers at each call."""
    draw = answers.drawn

    def counted(model: Any, tokenizer: Any, prompts: Any, *more: Any, **named: Any) -> Any:
        asked.append(len(prompts))
        return draw(model, tokenizer, prompts, *more, **named)

    monkeypatch.setattr(answers, "drawn", counted)


def same(one: HealedLayers, other: HealedLayers) -> bool:
    return one.result.numbers["healed"] == other.result.numbers["healed"] and all(
        torch.equal(tensor, other.tensors[index][name])
        for index, its in one.tensors.items()
        for name, tensor in its.items()
    )


# ------------------------------------------------------------------------------------- drawing


def test_tokens_are_drawn_by_their_probabilities(folder: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder / "base")
    tokenizer = AutoTokenizer.from_pretrained(folder / "base")
    prompt = Prompt(tuple(tokenizer.encode("the cat")), 1)
    texts = drawn(model, tokenizer, [prompt] * 2000, 8192, temperature=0.5, seeds=range(2000))
    counts = Counter(made.tokens[0] if made.tokens else made.end for made in texts)
    with torch.no_grad():
        logits = model(torch.tensor([prompt.tokens])).logits[0, -1]
    expected = (logits.double() / 0.5).softmax(-1)
    result = torch.tensor([counts[token] / 2000 for token in range(len(expected))])
    assert float((result - expected).abs().sum()) < 0.2


def test_the_answer_of_a_row_depends_on_its_seed_alone(folder: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder / "base")
    tokenizer = AutoTokenizer.from_pretrained(folder / "base")
    prompts = [Prompt(tuple(tokenizer.encode(letters(4 + n, seed=n))), 9) for n in range(6)]
    together = drawn(model, tokenizer, prompts, 8192, temperature=1.0, seeds=range(6))
    alone = [
        drawn(model, tokenizer, [prompt], 1, temperature=1.0, seeds=[n])[0]
        for n, prompt in enumerate(prompts)
    ]
    assert together == alone
    other = drawn(model, tokenizer, prompts, 8192, temperature=1.0, seeds=range(9, 15))
    assert other != together
    likeliest = continued(model, tokenizer, prompts, 8192)
    cold = drawn(model, tokenizer, prompts, 8192, temperature=1e-4, seeds=range(6))
    assert cold == likeliest


# ------------------------------------------------------------------------------------ learning


def test_a_plan_learns_from_its_teachers_answers(folder: Path) -> None:
    events: list[Progress] = []
    result = heal(said(folder, HEAL), on_event=progress("answering", events.append))
    assert sum(text.tokens for text in result.result.texts) == 256
    assert result.result.numbers["healed"] < result.result.numbers["start"]
    assert [event.done for event in events] == sorted(event.done for event in events)
    assert events[0].done == 0
    assert {event.total for event in events} == {384}
    assert events[0].at.endswith("prompts.jsonl")
    only_answers = heal(said(folder, f"{HEAL} loss answers"))
    assert not same(only_answers, result)


def test_answers_are_made_once_for_a_teacher_and_again_for_another(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    count_draws(monkeypatch, asked)
    first = heal(said(folder, HEAL))
    times = len(asked)
    assert times > 0
    assert same(heal(said(folder, HEAL)), first)
    heal(said(folder, HEAL.replace("L2", "L1")))
    assert len(asked) == times, "another cut has the same teacher"
    other = HEAL.replace("heal on", "heal from other on")
    heal(said(folder, f'model other = "./other"; {other}'))
    again = len(asked)
    assert again > times
    heal(said(folder, f"{HEAL} seed 1"))
    assert len(asked) > again


def test_answers_depend_on_the_teachers_end_tokens(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    count_draws(monkeypatch, asked)
    heal(said(folder, HEAL))
    times = len(asked)
    (folder / "base" / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 5]}))
    heal(said(folder, HEAL))
    assert len(asked) > times


def test_an_end_token_that_isnt_a_number_is_one_message(folder: Path) -> None:
    (folder / "base" / "generation_config.json").write_text(json.dumps({"eos_token_id": "abc"}))
    with pytest.raises(TailorError) as error:
        heal(said(folder, HEAL))
    assert str(error.value) == (
        "the teacher fails: expected token numbers as 'eos_token_id', got 'abc'; "
        "correct generation_config.json of the model"
    )


def test_an_end_token_beyond_the_vocabulary_never_ends_an_answer(folder: Path) -> None:
    file = folder / "base" / "generation_config.json"
    results = []
    for end in ([2], [10**9, 2]):
        file.write_text(json.dumps({"eos_token_id": end}))
        results.append(heal(said(folder, HEAL)))
    assert same(*results)


def test_prompts_that_change_while_the_teacher_answers_are_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = (folder / "prompts.jsonl").read_text()

    def edited(_: Progress) -> None:
        write(folder, [{"prompt": letters(8, seed=n)} for n in range(80)])

    with pytest.raises(CheckpointError, match="C304"):
        heal(said(folder, HEAL), on_event=progress("answering", edited))
    (folder / "prompts.jsonl").write_text(old)
    asked: list[int] = []
    count_draws(monkeypatch, asked)
    heal(said(folder, HEAL))
    assert not asked, "they are kept as the answers to the old prompts"


@pytest.mark.parametrize(("tokens", "length"), [(60, 100), (60, 40), (128, 100), (30, 100)])
def test_an_answer_is_shorter_before_its_prompt_is_cut(
    folder: Path, monkeypatch: pytest.MonkeyPatch, tokens: int, length: int
) -> None:
    file = folder / "base" / "config.json"
    config = json.loads(file.read_text()) | {"max_position_embeddings": 128}
    file.write_text(json.dumps(config))
    write(folder, [{"prompt": letters(length, seed=n)} for n in range(80)])
    seen: list[Prompt] = []
    draw = answers.drawn

    def looked(model: Any, t: Any, asked: list[Prompt], *more: Any, **named: Any) -> Any:
        seen.extend(asked)
        return draw(model, t, asked, *more, **named)

    monkeypatch.setattr(answers, "drawn", looked)
    heal(said(folder, HEAL.replace("tokens=24", f"tokens={tokens}")))
    most = min(tokens, max(128 - length, 64))
    assert {item.most for item in seen} == {most}
    assert {len(item.tokens) for item in seen} == {min(length, 128 - most)}


def test_a_run_that_is_killed_while_the_teacher_answers_resumes(
    folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(answers, "_AT_ONCE", 4)
    plan = said(folder, HEAL)

    def stopping(after: int) -> list[int]:
        counts: list[int] = []

        def answered(event: Progress) -> None:
            counts.append(event.done)
            if len(counts) == after:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            heal(plan, on_event=progress("answering", answered))
        return counts

    stopping(3)
    asked: list[int] = []
    count_draws(monkeypatch, asked)
    result = heal(plan)
    gone_on = len(asked)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other"))
    asked.clear()
    assert same(heal(plan), result)
    assert gone_on == len(asked) - 2
    [file] = (tmp_path / "other" / "gptailor" / "answers").iterdir()
    raw = bytearray(file.read_bytes())
    raw[-9] ^= 4
    file.write_bytes(raw)
    assert same(heal(plan), result), "damaged answers are made again"


def test_one_teacher_answers_and_predicts_while_it_is_loaded(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[int] = []
    live = Stitcher.live
    monkeypatch.setattr(
        Stitcher, "live", lambda self, contents: loaded.append(1) or live(self, contents)
    )
    heal(said(folder, HEAL))
    assert len(loaded) == 2, "the teacher, and the student"


def test_a_streamed_teacher_gives_the_same_answers(folder: Path) -> None:
    whole, streamed = heal(said(folder, HEAL)), heal(said(folder, HEAL), memory=2**40)
    assert streamed.result.texts == whole.result.texts
    assert streamed.result.numbers["start"] == pytest.approx(
        whole.result.numbers["start"], rel=1e-3
    )


# -------------------------------------------------------------------------------------- prompts


def prompts_of(folder: Path, text: str) -> set[str]:
    """The prompts that a teacher answers, as text."""
    seen: list[str] = []
    tokenizer = AutoTokenizer.from_pretrained(folder / "base")
    draw = answers.drawn

    def looked(model: Any, t: Any, asked: list[Prompt], *more: Any, **named: Any) -> Any:
        seen.extend(tokenizer.decode(prompt.tokens) for prompt in asked)
        return draw(model, t, asked, *more, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(answers, "drawn", looked)
        heal(said(folder, text))
    return set(seen)


@pytest.mark.parametrize("where", ["a file", "another model"])
def test_the_undropped_plan_has_the_plans_chat_template(folder: Path, where: str) -> None:
    write(folder, [{"prompt": "xyz"}] * 40)
    (folder / "mine.jinja").write_text(TEMPLATE)
    (folder / "other" / "chat_template.jinja").write_text(TEMPLATE)
    template = '"./mine.jinja"' if where == "a file" else "from other"
    text = f'model other = "./other"; chat_template {template}; {HEAL}'
    assert prompts_of(folder, text) == {"uxyz.a"}


def test_prompts_use_the_teachers_chat_template(folder: Path) -> None:
    def prompts(rows: list[dict[str, object]]) -> set[str]:
        write(folder, rows * 20)
        return prompts_of(folder, HEAL)

    plain = [{"prompt": "xyz"}, {"text": "pqr"}]
    assert prompts(plain) == {"xyz", "pqr"}
    (folder / "base" / "chat_template.jinja").write_text(TEMPLATE)
    assert prompts(plain) == {"uxyz.a", "upqr.a"}
    messages = [("system", "b"), ("user", "cd"), ("assistant", "ef")]
    rows = [{"role": role, "content": content} for role, content in messages]
    assert prompts([{"messages": rows}]) == {"sb.ucd.a"}


@pytest.mark.parametrize(
    ("rows", "tokens", "code", "message"),
    [
        ([{"messages": [{"role": "user", "content": "ab"}]}], 24, "C812",
         "rows of 'messages' need a chat template, but 'base' has no chat template"),
        ([{"messages": [{"role": "assistant", "content": "ab"}]}], 24, "C804",
         "'messages' has an answer without a question"),
        ([{"question": "ab"}], 24, "C804", "the row has no 'text'"),
        ([{"prompt": "abc"}] * 32, 1, "C813",
         "all 32 first answers to these prompts are cut at 1 tokens"),
        ([{"prompt": "abc"}] * 9, 24, "C806", "and 'heal' needs 384"),
    ],
)  # fmt: skip
def test_prompts_that_cannot_be_answered_are_one_message(
    folder: Path, rows: list[dict[str, object]], tokens: int, code: str, message: str
) -> None:
    write(folder, rows)
    text = HEAL.replace("tokens=24", f"tokens={tokens}")
    text = text.replace("temperature=1", "temperature=0") if code == "C813" else text
    with pytest.raises(CalibrationError) as caught:
        heal(said(folder, text))
    assert caught.value.code == code
    assert message in caught.value.message
    assert caught.value.help


def test_without_a_number_the_whole_text_is_wanted(folder: Path) -> None:
    events: list[Progress] = []
    heal(
        said(folder, HEAL.replace(" tokens 256", "")), on_event=progress("answering", events.append)
    )
    assert len({event.total for event in events}) == 1
    assert events[0].total > 200_000


def test_answers_that_are_all_empty_are_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = answers.Continuation((), 2)
    monkeypatch.setattr(answers, "drawn", lambda model, t, asked, *_, **__: [ended] * len(asked))
    with pytest.raises(CalibrationError, match="all 32 first answers to these prompts are empty"):
        heal(said(folder, HEAL))


def test_a_file_of_prompts_has_rows(folder: Path) -> None:
    (folder / "prompts.txt").write_text(letters(99))
    with pytest.raises(CalibrationError, match="prompts must be JSON Lines"):
        heal(said(folder, HEAL.replace("jsonl", "txt")))


def test_a_teacher_with_nan_is_refused_before_anything_is_learned(folder: Path) -> None:
    events: list[Event] = []
    file = folder / "base" / "model.safetensors"
    tensors = load_file(file)
    tensors["model.layers.1.mlp.up_proj.weight"][2, 3] = float("nan")
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(Exception, match="contains NaN") as caught:
        heal(said(folder, HEAL), on_event=events.append)
    assert "its teacher's predictions are NaN" in str(caught.value)
    assert {event.what for event in events if isinstance(event, Progress)} == {"answering"}
