"""Model cards have the results of bridges and healing."""

import math

import pytest

import gptailor
from gptailor.plan.events import FitResult, FitText
from gptailor.prepare import Prepared, prepare
from gptailor.reporting.layer_view import made_words
from gptailor.reporting.model_card import card
from tests.support.tiny import tiny_model

PLAN = """tailor 1
model base = "./base"
drop L1
bridge on "t.txt"
heal on ("t.txt", "u.txt" weight 3) tokens 1000
"""


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    folder = tmp_path_factory.mktemp("card")
    tiny_model("llama", folder / "base", layers=3)
    return prepare(gptailor.loads(PLAN, folder=folder))


def made(prepared: Prepared, recovered: float, healed: float) -> str:
    """The card with the results of one bridge and of healing."""
    first, second, third = (FitText(9, "0" * 64, tokens) for tokens in (600, 256, 512))
    losses = {"held": 128, "bare": 0.9, "start": 0.4, "healed": healed}
    fits = {
        "L0": FitResult("bridge", "L0", (first,), {"held_out": recovered}),
        "heal": FitResult("heal", "heal", (second, third), losses),
    }
    sizes = prepared.base_size, prepared.output_size
    return card("T", "out", prepared.resolved, PLAN, sizes, "1", fits=fits)


def test_a_card_has_the_tokens_that_were_used_and_the_results(prepared: Prepared) -> None:
    text = made(prepared, 0.512, 0.25)
    assert "| L0 | `t.txt` | 600 | 0.1 | 51.2% |" in text
    assert "| `t.txt` | the same plan with nothing dropped | 256 |" in text
    assert "| `u.txt` | the same plan with nothing dropped | 512 |" in text
    assert "| 768 | all layers |" in text
    assert "128 tokens held out, so few that the numbers are rough (KL" in text
    assert "0.900 bare, 0.400 bridged, 0.250 healed." in text
    assert "+ learns by 'heal'" in text
    assert text.split("```text\n")[1].splitlines()[:3] == ["L0", "b ─ b", "+   +"]


def test_a_card_has_the_scores_of_the_search_that_found_the_plan(prepared: Prepared) -> None:
    comment = [
        "Found by gptailor search: trial 3 of 9 (block influence), seed 0, healed.",
        'nll("t.txt"): 4.58 ± 0.02, 12 samples.',
        f"{made_words(prepared.resolved)}.",
    ]
    sizes = prepared.base_size, prepared.output_size

    def card_of(text: str) -> str:
        return card("T", "out", prepared.resolved, text, sizes, "1")

    text = "".join(f"# {line}\n" for line in comment) + PLAN
    assert "## Search\n\nThe search wrote this above the plan:\n\n" + "".join(
        f"- {line}\n" for line in comment
    ) in card_of(text)
    changed = text.replace("cut: L1", "cut: L2")
    assert changed != text
    assert "## Search" not in card_of(changed)
    assert "## Search" not in card_of("# My own words.\n" + PLAN)


def test_the_card_of_a_merge_has_the_word_merged(prepared: Prepared) -> None:
    plan = PLAN.replace(
        "drop L1", 'model math = "./base"\nL0 = merge(L0 base, L0 math, 0.5)\ndrop L1'
    )
    merged = prepare(gptailor.loads(plan, folder=prepared.models["base"].checkpoint.folder.parent))
    sizes = merged.base_size, merged.output_size
    result = card("T", "out", merged.resolved, plan, sizes, "1")
    assert "A language model merged from the layers of other models" in result
    assert "A language model stitched from the layers of other models" in made(prepared, 0.5, 0.2)


def test_an_ineffective_healing_is_reported(prepared: Prepared) -> None:
    text = made(prepared, math.nan, 0.4)
    assert "| L0 | `t.txt` | 600 | 0.1 | unknown |" in text
    assert "0.400. No step reduced it, so the layers stay as they were." in text
    assert "learns by" not in text
    assert "Healed:" not in text
    assert "Healing was tried" in text
    assert "without training" in text
