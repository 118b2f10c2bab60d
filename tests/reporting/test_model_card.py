"""Model cards have the results of bridges and healing."""

import math

import pytest

import gptailor
from gptailor.plan.events import HealingEnd
from gptailor.prepare import Prepared, prepare
from gptailor.reporting.model_card import Repaired, card
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


def made(prepared: Prepared, repaired: Repaired) -> str:
    sizes = prepared.base_size, prepared.output_size
    return card("T", "out", prepared.resolved, PLAN, sizes, "1", repaired=repaired)


def test_a_card_has_the_tokens_that_were_used_and_the_results(prepared: Prepared) -> None:
    end = HealingEnd(768, 128, 0.9, 0.4, 0.25)
    text = made(prepared, Repaired({"L0": (600, 0.512)}, end, (256, 512)))
    assert "| L0 | `t.txt` | 600 | 0.1 | 51.2% |" in text
    assert "| `t.txt` | the same plan with nothing dropped | 256 |" in text
    assert "| `u.txt` | the same plan with nothing dropped | 512 |" in text
    assert "| 768 | all layers |" in text
    assert "128 tokens held out" in text
    assert "0.900 bare, 0.400 bridged, 0.250 healed." in text
    assert "+ learns by 'heal'" in text


def test_a_healing_in_vain_heals_no_layer(prepared: Prepared) -> None:
    end = HealingEnd(768, 128, 0.9, 0.4, 0.4)
    text = made(prepared, Repaired({"L0": (600, math.nan)}, end, (256, 512)))
    assert "| L0 | `t.txt` | 600 | 0.1 | unknown |" in text
    assert "0.400. No step reduced it, so the layers stay as they were." in text
    assert "learns by" not in text
    assert "Healed:" not in text
    assert "Healing was tried" in text
    assert "without training" in text
