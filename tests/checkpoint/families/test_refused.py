"""Every causal language model of transformers is a family that the contract holds, or refused."""

import pytest
from transformers import AutoConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from gptailor.checkpoint.families import FAMILY_OF
from gptailor.checkpoint.families.layer_config import Refusal
from gptailor.checkpoint.families.layout import layout_of
from gptailor.checkpoint.families.refused import REFUSED
from gptailor.checkpoint.families.vision import WRAPPERS
from tests.support.tiny import CONFIGURATIONS


def beside_others(model_type: str) -> bool:
    """True if it keeps a language model next to other models, and is refused for that."""
    result = layout_of(AutoConfig.for_model(model_type).to_dict(), ())
    return isinstance(result, Refusal) and "contains further models" in result.reason


@pytest.mark.parametrize("model_type", MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
def test_a_causal_language_model_is_a_family_or_is_refused(model_type: str) -> None:
    family = model_type in FAMILY_OF
    assert not family or model_type in CONFIGURATIONS, "a family without a contract case"
    places = [family, model_type in WRAPPERS, model_type in REFUSED]
    if not any(places):
        places.append(beside_others(model_type))
    assert sum(places) == 1, "one of: FAMILY_OF, WRAPPERS, REFUSED, a language model beside others"


@pytest.mark.parametrize("model_type", REFUSED)
def test_a_refused_type_is_named_with_its_reason(model_type: str) -> None:
    assert model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    result = layout_of({"model_type": model_type, "num_hidden_layers": 2}, ())
    assert result == Refusal(f"model type '{model_type}' is refused: {REFUSED[model_type]}")


def test_reasons_of_refused_types_are_sorted_and_are_clauses() -> None:
    assert list(REFUSED) == sorted(REFUSED)
    assert all(reason[0].islower() and reason[-1].isalpha() for reason in REFUSED.values())
    assert not FAMILY_OF.keys() & REFUSED.keys()
