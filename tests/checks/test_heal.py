"""Healing of closed plans, in spaces, in folders and in a plan's digest."""

import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import gptailor
from gptailor.checkpoint.folder import open_checkpoint
from gptailor.lang.format import format_plan
from gptailor.output.lock_recording import plan_digest
from gptailor.output.output import used_plan
from gptailor.plan.events import FitResult, FitText
from gptailor.plan.output_size import OutputSize
from gptailor.plan.plan import Heal, HealText, Plan
from gptailor.plan.registry import (
    HEAL_ANSWER_TOKENS,
    HEAL_RANK,
    HEAL_SEED,
    HEAL_TEMPERATURE,
    HEAL_TOKENS,
)
from gptailor.plan.resolved import Healing, Resolved
from gptailor.prepare import prepare
from gptailor.program.program import projections
from gptailor.reporting.model_card import card
from tests.support.tiny import tiny_model

MODELS = {"models": {name: {"source": f"./{name}"} for name in ("base", "heal", "full")}}
HEAD = 'tailor 1\nmodel base = "./base"\nmodel heal = "./math"\nmodel full = "./chat"\n'


def healed(body: str, count: int = 8) -> Healing | None:
    return Resolved(gptailor.loads(HEAD + body), count).healing


def test_missing_settings_have_defaults() -> None:
    assert healed('drop L1\nheal on "t"', 4) == Healing(
        (HealText(file="t"),), HEAL_TOKENS, HEAL_RANK, HEAL_SEED, indices=(0, 1, 2)
    )


def test_settings_may_come_in_any_order() -> None:
    wanted = Healing(
        (HealText(file="t", teacher="heal"),), 5, None, 3, (1, 3, 4), only_answers=True
    )
    body = 'drop L2..L3\nheal L5..L6, L1 from heal on "t"'
    assert healed(f"{body} tokens 5 rank full seed 3 loss answers") == wanted
    assert healed(f"{body} loss answers seed 3 rank full tokens 5") == wanted
    assert healed('heal from full on "t" rank 7 loss all', 2) == Healing(
        (HealText(file="t", teacher="full"),), HEAL_TOKENS, 7, HEAL_SEED, indices=(0, 1)
    )


def test_texts_have_their_teachers_and_shares() -> None:
    body = 'drop L1\nheal on "t" from heal, answers("p") weight 2, "u" from full weight 0.5'
    healing = healed(body, 4)
    assert healing is not None
    assert [text.teacher for text in healing.texts] == ["heal", None, "full"]
    assert healing.shares == (Fraction(2, 7), Fraction(4, 7), Fraction(1, 7))
    first, answered, last = (text.answers for text in healing.texts)
    assert first is last is None
    assert answered is not None
    assert answered.closed_tokens == HEAL_ANSWER_TOKENS
    assert answered.closed_temperature == HEAL_TEMPERATURE
    assert healing.teachers == ("heal", None, "full")
    stack = "stack { L0..L2 base; L1 heal }\n"
    healing = healed(f'{stack}heal on answers("t", tokens=9, temperature=0), "u" from heal')
    assert healing is not None
    first_text, last_text = healing.texts
    assert (first_text.teacher, last_text.teacher) == ("base", "heal")
    assert healing.shares == (Fraction(1, 2), Fraction(1, 2))
    assert first_text.answers is not None
    assert first_text.answers.closed_tokens == 9
    assert first_text.answers.closed_temperature == 0


SAME_TEACHERS = [
    ('from heal on "a"', ['on "a" from heal']),
    (
        'from heal on "a", "b"',
        ['on "a" from heal, "b" from heal', 'from heal on "a", "b" from heal'],
    ),
    ('on "a", "b" from heal weight 2', []),
    (
        'on "a" from full, "b" from heal',
        ['from full on "a", "b" from heal', 'from heal on "a" from full, "b"'],
    ),
]


@pytest.mark.parametrize(("canonical", "others"), SAME_TEACHERS)
def test_two_notations_of_the_same_teachers_give_equal_plans(
    canonical: str, others: list[str]
) -> None:
    plan = gptailor.loads(f"{HEAD}drop L1\nheal {canonical}")
    assert format_plan(plan).splitlines()[-1] == f"heal {canonical}"
    assert gptailor.loads(plan.model_dump_json()) == plan
    for other in others:
        assert gptailor.loads(f"{HEAD}drop L1\nheal {other}") == plan


def test_json_has_one_plain_text_as_a_string() -> None:
    def dumped(heal: dict[str, Any]) -> object:
        plan = gptailor.loads(json.dumps({"heal": heal, "drops": [{"position": 1}]} | MODELS))
        assert gptailor.loads(plan.model_dump_json()) == plan
        return json.loads(plan.model_dump_json(exclude_defaults=True))["heal"]

    one: dict[str, Any] = {"on": "t", "teacher": "heal"}
    assert dumped(one) == one
    assert dumped({"on": [{"file": "t", "teacher": "heal"}]}) == one
    several: dict[str, Any] = {"on": ["t", {"file": "u", "answers": {}, "weight": 2}]}
    assert dumped(several) == several
    assert dumped({"on": [{"file": "t", "weight": 2}]}) == {"on": [{"file": "t", "weight": 2}]}


def test_a_stack_learns_from_the_base_or_the_named_teacher() -> None:
    stack = "stack { L0..L2 base; L1 heal }\n"
    healing = healed(f'{stack}heal on "t"')
    assert healing is not None
    assert (healing.teachers, healing.indices) == (("base",), (0, 1, 2, 3))
    healing = healed(f'{stack}heal from full on "t"')
    assert healing is not None
    assert healing.teachers == ("full",)


@pytest.mark.parametrize("body", ["drop L1", 'L1 from heal\nheal on "t"', 'heal L1 on "t"'])
def test_a_plan_without_drops_is_not_healed(body: str) -> None:
    assert healed(body) is None


def test_repeated_positions_are_sorted_and_unique() -> None:
    assert Heal(on=(HealText(file="t"),), layers=(4, 1, 4, 2)).layers == (1, 2, 4)


def test_the_digest_depends_on_settings_and_not_on_the_path() -> None:
    def digest(body: str) -> str:
        return plan_digest(gptailor.loads(HEAD + "drop L1\n" + body))

    assert digest('heal on "a"') == digest('heal on "../b"')
    assert digest('heal on "a"') != digest("")
    assert digest('heal on "a"') != digest('heal on "a" seed 1')
    same, other = 'bridge on "a"\nheal on "a"', 'bridge on "a"\nheal on "b"'
    assert digest(same) != digest(other)
    assert digest(other) == digest('bridge on "c"\nheal on "d"')
    assert digest('heal on "a", "b" weight 2') == digest('heal on "c", "d" weight 2')
    assert digest('heal on "a", "b" weight 2') != digest('heal on "a", "b"')


def plan_of(family: Path, body: str) -> Plan:
    text = HEAD.replace("./", f"{family}/") + body
    return gptailor.loads(text)


def test_a_copy_of_the_plan_reads_the_same_text(family: Path, tmp_path: Path) -> None:
    plan = plan_of(family, f'drop L1\nheal L2 from heal on "{tmp_path}/t.txt" rank 8')
    seen = used_plan(prepare(plan), tmp_path / "deep" / "out")
    assert 'heal L2 from heal on "../../t.txt" rank 8\n' in format_plan(seen)
    assert plan_digest(seen) == plan_digest(plan)


def result_of_healing(*tokens: int) -> FitResult:
    texts = tuple(FitText(9, "0" * 64, count) for count in tokens)
    return FitResult("heal", "heal", texts, {"held": 9, "bare": 0.9, "start": 0.9, "healed": 0.5})


def test_the_card_says_that_the_model_was_trained(family: Path) -> None:
    sizes = OutputSize(10, 40, None, 6), OutputSize(8, 32, None, 5)
    plan = plan_of(family, 'drop L1\nheal L2..L3 from heal on "t.txt" rank 8')
    fits = {"heal": result_of_healing(500)}
    text = card("a title", "out", Resolved(plan, sizes[0].layers), "", sizes, "1", fits=fits)
    assert "without training" not in text
    learning = "`t.txt` | 500 | L1..L2 of the output"
    assert f"| {learning} | of rank 8, folded into the weights | {HEAL_SEED} |" in text
    assert "`heal`" in text
    body = 'drop L1\nheal on "t.txt" from heal, answers("p.jsonl") weight 3 loss answers'
    plan, fits = plan_of(family, body), {"heal": result_of_healing(200, 300)}
    text = card("a title", "out", Resolved(plan, sizes[0].layers), "", sizes, "1", fits=fits)
    assert "its teacher on each text. Only the tokens of answers counted.\n" in text
    assert "| `t.txt` | `heal` | 200 |" in text
    answers = "the teacher's answers to `p.jsonl` (at most 256 tokens each, temperature 0.7)"
    assert f"| {answers} | the same plan with nothing dropped | 300 |" in text
    for body in ("drop L1", 'heal on "t.txt"'):
        text = card(
            "a title", "out", Resolved(plan_of(family, body), sizes[0].layers), "", sizes, "1"
        )
        assert "without training" in text
        assert "Healed" not in text


def test_a_teacher_is_used_and_may_compute_otherwise(family: Path) -> None:
    body = f'drop L1\nheal from theta on "{family}/t.txt"'
    plan = plan_of(family, f'model theta = "{family}/theta"\n{body}')
    assert "theta" in prepare(plan).models
    assert not [f for f in gptailor.check(plan) if f.severity == "error" or "theta" in f.message]


def test_projections_are_the_matrices_of_a_layer(family: Path) -> None:
    folder = open_checkpoint(family / "deep")
    layer = {
        name.removeprefix("model.layers.3."): tensor.spec
        for name, tensor in folder.tensors.items()
        if name.startswith("model.layers.3.")
    }
    sides = projections(layer)
    assert "self_attn.o_proj.weight" in sides
    assert any("experts" in name for name in sides)
    assert not [name for name in sides if "norm" in name or name == "mlp.gate.weight"]
    assert all(side == min(layer[name].shape[-2:]) for name, side in sides.items())


def test_a_mask_among_the_weights_is_not_trained(tmp_path: Path) -> None:
    tiny_model("gpt2", tmp_path / "base")
    file = tmp_path / "base" / "model.safetensors"
    mask = torch.ones(1, 1, 4, 4, dtype=torch.uint8)
    save_file(load_file(file) | {"transformer.h.0.attn.bias": mask}, file, {"format": "pt"})
    text = 'tailor 1\nmodel base = "./base"\ndrop L1\nheal on "t.txt" rank full\n'
    (tmp_path / "p.tailor").write_text(text)
    (tmp_path / "t.txt").touch()
    assert gptailor.check(gptailor.load(tmp_path / "p.tailor")) == []
