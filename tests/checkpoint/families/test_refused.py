"""Every causal language model of transformers is a family that the contract holds, or refused."""

import pytest
from transformers import AutoConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from gptailor.checkpoint.families import FAMILY_OF
from gptailor.checkpoint.families.layer_config import Refusal
from gptailor.checkpoint.families.layout import layout_of
from gptailor.checkpoint.families.refused import REFUSED
from tests.tiny import CONFIGURATIONS

DENSE = {
    "biogpt", "bloom", "codegen", "cohere_compass_text", "ctrl", "diffllama", "doge", "gpt-sw3",
    "gpt_bigcode", "gpt_neo", "gpt_neox_japanese", "gptj", "granite_swa", "hyperclovax", "minicpm3",
    "modernbert-decoder", "mpt", "nanochat", "openai-gpt", "opt", "vaultgemma", "xglm", "youtu",
}  # fmt: skip
OTHERS: set[str] = set()
COMING = DENSE | OTHERS
"""Types that are neither yet: it only ever shrinks. A type leaves it with its family or refusal."""


def beside_others(model_type: str) -> bool:
    """Whether its configurations hold a language model beside others, which is refused by that."""
    return isinstance(layout_of(AutoConfig.for_model(model_type).to_dict(), ()), Refusal) and any(
        key in AutoConfig.for_model(model_type).to_dict()
        for key in ("text_config", "vision_config", "audio_config")
    )


@pytest.mark.parametrize("model_type", MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
def test_a_causal_language_model_is_a_family_or_is_refused(model_type: str) -> None:
    family = model_type in FAMILY_OF
    assert not family or model_type in CONFIGURATIONS, "a family without a contract case"
    refused = model_type in REFUSED or (not family and beside_others(model_type))
    places = [family, refused, model_type in COMING]
    assert sum(places) == 1, "one of: FAMILY_OF, REFUSED, COMING"


@pytest.mark.parametrize("model_type", REFUSED)
def test_a_refused_type_is_named_with_its_reason(model_type: str) -> None:
    assert model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    found = layout_of({"model_type": model_type, "num_hidden_layers": 2}, ())
    assert found == Refusal(f"model type '{model_type}' is refused: {REFUSED[model_type]}")


def test_refusals_stand_in_order_and_say_clauses() -> None:
    assert list(REFUSED) == sorted(REFUSED)
    assert all(reason[0].islower() and reason[-1].isalpha() for reason in REFUSED.values())
    assert not FAMILY_OF.keys() & REFUSED.keys()
