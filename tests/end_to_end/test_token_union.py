"""`tokenizer union`: the tokens of all models, each with its row; what can't be united."""

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

import gptailor
from gptailor.evaluation.objectives.tokens import tokenizer_digest, tokenizer_of
from gptailor.prepare import prepare
from tests.end_to_end.test_tokenizer import (
    EMBED,
    EXTENDED,
    HEAD,
    ORDER,
    Made,
    checked,
    compiled,
    model,
)

pytestmark = pytest.mark.usefixtures("no_progress_bars")

OTHERS = [*ORDER, "<|im_end|>", "<|pad|>", "<|im_start|>"]
UNION = [*ORDER, "<|im_start|>", "<|im_end|>", "<|pad|>"]
"""The base's tokens, the tokens of 'chat' by their numbers, and the other tokens of 'math'."""


def wanted(where: str, name: str, taken: str, models: Mapping[str, Made]) -> dict[str, Tensor]:
    """The rows of a model by the rule, token by token, for a recipe that takes some models."""
    rows = {}
    for token in UNION:
        having = {n: row for n, m in models.items() if (row := m.row(where, token)) is not None}
        first = {n: row for n, row in having.items() if n in taken.split()} or having
        rows[token] = first.get("base", torch.stack([*first.values()]).double().mean(0).float())
        rows[token] = having.get(name, rows[token])
    return rows


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Made]]:
    """A base, and two models with tokens that it lacks: two of 'chat', three of 'math'."""
    root = tmp_path_factory.mktemp("union")
    made = {
        "base": model(root, "base", ORDER, rows=80),
        "chat": model(root, "chat", EXTENDED, rows=65),
        "math": model(root, "math", OTHERS, rows=66),
    }
    assert len(ORDER) == 63
    return root, made


def assert_rows(result: Tensor, rows: Mapping[str, Tensor]) -> None:
    assert len(result) == len(UNION)
    for number, token in enumerate(UNION):
        torch.testing.assert_close(result[number], rows[token], rtol=0, atol=0, msg=token)


def test_rows_are_the_base_s_the_only_one_s_or_the_mean(
    models: tuple[Path, dict[str, Made]],
) -> None:
    root, made = models
    result = compiled(root, "tokenizer union; head from chat, math by linear()")
    assert_rows(result[EMBED], wanted(EMBED, "base", "base", made))
    sides = [wanted(HEAD, name, "chat math", made) for name in ("chat", "math")]
    mean = {token: (sides[0][token] + sides[1][token]) / 2 for token in UNION}
    for number, token in enumerate(UNION):
        torch.testing.assert_close(result[HEAD][number], mean[token], msg=token)
    tokenizer = AutoTokenizer.from_pretrained(root / "out")
    assert tokenizer.get_vocab() == {token: number for number, token in enumerate(UNION)}
    assert tokenizer("<|pad|>a<|im_end|>").input_ids == [65, ORDER.index("a"), 64]
    assert tokenizer.chat_template == "base says: {{ messages }}"
    config, ours = (json.loads((root / n / "config.json").read_text()) for n in ("out", "base"))
    assert config == {**ours, "vocab_size": 66}
    live = AutoModelForCausalLM.from_pretrained(root / "out")
    assert live(torch.tensor([[65, 5, 64]])).logits.shape == (1, 3, 66)
    assert gptailor.verify(root / "out").result == "verified"

    plan = gptailor.load(root / "plan.tailor")
    stitched = gptailor.stitch(plan)
    assert torch.equal(stitched.get_input_embeddings().weight, result[EMBED])
    prepared = prepare(plan)
    base = prepared.models["base"]
    assert tokenizer_of(base).get_vocab() == tokenizer.get_vocab()
    assert tokenizer_of(base.alone).get_vocab() == {t: n for n, t in enumerate(ORDER)}
    assert tokenizer_digest(base) != tokenizer_digest(base.alone)
    lock = gptailor.lock(plan)
    assert all("tokenizer.json" in locked.files for locked in lock.models.values())


def test_a_task_vector_s_base_has_the_same_rows(
    models: tuple[Path, dict[str, Made]], tmp_path: Path
) -> None:
    root, made = models
    plan, _ = checked(root, "tokenizer union; embed from math by task_arithmetic(0.5)")
    gptailor.compile(plan, tmp_path / "out")
    result = load_file(tmp_path / "out" / "model.safetensors")[EMBED]
    theirs, ours = (wanted(EMBED, name, "base math", made) for name in ("math", "base"))
    for number, token in enumerate(UNION):
        row = ours[token] + 0.5 * (theirs[token] - ours[token])
        torch.testing.assert_close(result[number], row, msg=token)


def test_the_tokenizer_files_stay_if_the_base_has_all_tokens(tmp_path: Path) -> None:
    base = model(tmp_path, "base", EXTENDED, rows=65, tie_word_embeddings=True)
    model(tmp_path, "chat", ORDER, rows=64, tie_word_embeddings=True)
    result = compiled(tmp_path, "tokenizer union; L1 from chat")
    assert torch.equal(result[EMBED], base.tensors[EMBED])
    assert HEAD not in result
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "base" / name).read_bytes()


def test_tokenizer_settings_list_the_same_tokens(tmp_path: Path) -> None:
    """Readers that don't know `tokenizer.json` find the tokens where they look."""
    model(tmp_path, "base", ORDER)
    model(tmp_path, "chat", EXTENDED, rows=65)
    path = tmp_path / "base" / "tokenizer_config.json"
    special = {"content": "<s>", "special": True, "normalized": False}
    decoder = {str(n): {**special, "content": token} for n, token in enumerate(ORDER[:3])}
    path.write_text(json.dumps(json.loads(path.read_text()) | {"added_tokens_decoder": decoder}))
    (tmp_path / "base" / "added_tokens.json").write_text("{}")
    compiled(tmp_path, "tokenizer union")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer.get_vocab() == {token: number for number, token in enumerate(EXTENDED)}
    settings = json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())
    assert settings["added_tokens_decoder"]["63"]["content"] == "<|im_start|>"
    added = json.loads((tmp_path / "out" / "added_tokens.json").read_text())
    assert added == {"<|im_start|>": 63, "<|im_end|>": 64}


def test_a_union_is_scored_as_its_folder(models: tuple[Path, dict[str, Made]]) -> None:
    root, _ = models
    head = "".join(f'model {name} = "./{name}"\n' for name in ("base", "chat", "math"))
    text = f"tailor 1\n{head}tokenizer union\nL1 from chat, math by linear()\n"
    (root / "union.tailor").write_text(text)
    (root / "rows.jsonl").write_text(json.dumps({"text": "ab<|pad|>c<|im_end|>a<|im_start|>b"}))
    gptailor.compile(gptailor.load(root / "union.tailor"), root / "united")
    objectives = ['nll("rows.jsonl")', "parameters()"]
    alone = gptailor.evaluate(root / "united", objectives, folder=root, speed=False)
    live = gptailor.evaluate(root / "union.tailor", objectives, folder=root, speed=False)
    results = [[result.outcome for result in each.results] for each in (alone, live)]
    assert results[0] == results[1]


def test_another_vocabulary_proper_is_reported(tmp_path: Path) -> None:
    base = model(tmp_path, "base", ORDER[:60], rows=60)
    chat = model(tmp_path, "chat", ORDER)
    result = compiled(tmp_path, "tokenizer union; L1 from chat", "M312")[EMBED]
    assert torch.equal(result[:60], base.tensors[EMBED])
    assert torch.equal(result[60:], chat.tensors[EMBED][60:63])


@pytest.mark.parametrize(
    ("case", "code", "says"),
    [
        ("mute", "M211", "'chat' has no readable tokenizer"),
        ("slow", "C603", "the tokenizer of 'base' has no tokenizer.json"),
        ("wide", "M208", "the embedding of 'chat' has the shape [65, 24], expected"),
        ("beyond", "M226", "no model has a row for 1 token of the base: '#'"),
        ("broken", "C601", "invalid tokenizer"),
    ],
)
def test_a_union_that_can_t_be_made(case: str, code: str, says: str, tmp_path: Path) -> None:
    model(tmp_path, "base", ORDER, rows=62 if case == "beyond" else 64)
    wide = {"hidden_size": 24} if case == "wide" else {}
    fewer = ORDER[:62] if case == "beyond" else EXTENDED
    model(tmp_path, "chat", None if case == "mute" else fewer, rows=65, **wide)
    if case == "slow":
        path = tmp_path / "base" / "tokenizer.json"
        vocabulary = json.loads(path.read_text())["model"]["vocab"]
        path.with_name("vocab.json").write_text(json.dumps(vocabulary))
        path.unlink()
    if case == "broken":
        (tmp_path / "chat" / "tokenizer.json").write_text("[]")
    plan, faults = checked(tmp_path, "tokenizer union")
    assert [(fault.code, fault.severity) for fault in faults] == [(code, "error")]
    assert says in faults[0].message
    with pytest.raises(gptailor.PlanError):
        gptailor.compile(plan, tmp_path / "out")
