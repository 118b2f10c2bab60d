"""The values of absent keys are those that transformers has."""

import dataclasses
import logging
from collections.abc import Iterator
from typing import Any

import pytest
from transformers import CONFIG_MAPPING
from transformers import logging as transformers_logging

from gptailor.checkpoint.families import FAMILY_OF
from gptailor.checkpoint.families.layer_config import ALIASES

NOT_READ = {"attention_bias": False, "head_dim": None}
"""Keys that all families built like Llama compare, whether transformers reads them or not."""
COMPUTED = {"head_dim", "num_key_value_heads"}
"""Keys that a configuration computes from other keys if they are missing."""
ROTARY = "rope_parameters"


def defaults(family: str) -> Iterator[tuple[str, Any]]:
    """Yield the keys that the family names, with transformers' defaults."""
    transformers_logging.set_verbosity(logging.ERROR)
    config = CONFIG_MAPPING[family]
    stated = {
        field.name: field.default
        for field in dataclasses.fields(config)
        if field.default is not dataclasses.MISSING
    }
    whole = config().to_dict()
    computed = {key: value for key, value in whole.items() if key not in COMPUTED}
    for key in FAMILY_OF[family].agree.keys() - FAMILY_OF[family].read.keys() - {ROTARY}:
        names = (key, config.attribute_map.get(key, key), *ALIASES.get(key, ()))
        name = next((name for name in names if name in stated or name in computed), None)
        yield key, NOT_READ[key] if name is None else stated.get(name, computed.get(name))


def rotary(family: str) -> dict[str, Any]:
    """Return transformers' default of the rotary embeddings, without what any family has."""
    config = CONFIG_MAPPING[family]
    given = config().to_dict().get(ROTARY) or {}
    if any(isinstance(value, dict) for value in given.values()):
        return given
    if given.get("rope_type") == "default":
        usual = {"rope_type": "default", "rope_theta": 10_000.0, "partial_rotary_factor": 1.0}
        return {key: value for key, value in given.items() if usual.get(key) != value}
    base = getattr(config, "default_theta", None)
    return given or ({"rope_theta": base} if isinstance(base, float) and base != 10_000.0 else {})


@pytest.mark.parametrize("family", FAMILY_OF)
def test_an_absent_key_has_transformers_default(family: str) -> None:
    agree = FAMILY_OF[family].agree
    made = dict(defaults(family))
    assert {key: agree[key] for key in made} == made
    if ROTARY in agree and family != "cohere_compass_text":
        assert agree[ROTARY] == rotary(family)


def test_an_absent_number_of_key_value_heads_follows_the_heads() -> None:
    assert FAMILY_OF["arcee"].value("num_key_value_heads", {"num_attention_heads": 8}) == 8
