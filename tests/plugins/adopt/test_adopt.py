"""Families drafted from scratch, compared with the release's own records of the same types."""

from typing import Any

import pytest

from gptailor.checkpoint.families import FAMILY_OF
from gptailor.checkpoint.families.family import Family
from gptailor.plugins.adopt.adopt import adopted
from tests.support.tiny import CONFIGURATIONS

# the type, its configuration, and whether its branches can be told apart
KNOWN: dict[str, tuple[dict[str, Any], bool]] = {
    "llama": ({}, True),
    "qwen3": ({}, True),
    "gemma2": ({}, True),
    "qwen3_moe": ({}, True),
    "deepseek_v3": ({}, True),
    "gpt2": ({}, True),
    "cohere": ({}, False),
}


@pytest.fixture(scope="module")
def made() -> dict[str, Family]:
    """Drafts by type, each made once."""
    return {}


def draft(made: dict[str, Family], kind: str) -> Family:
    if kind not in made:
        config, _ = KNOWN[kind]
        made[kind] = adopted(kind, {**CONFIGURATIONS[kind], "num_hidden_layers": 9, **config}, kind)
    return made[kind]


@pytest.mark.parametrize("kind", KNOWN)
def test_a_draft_equals_the_released_family(made: dict[str, Family], kind: str) -> None:
    file, known = draft(made, kind), FAMILY_OF[kind]

    assert file.proof.failures == []
    assert (file.base, file.stack, file.count_key) == (known.base, known.stack, known.count_key)
    assert file.embed == known.embed
    assert set(file.norm) <= set(known.norm)
    assert file.head[0] in known.head
    assert (file.tied, file.transposed) == (known.tied, known.transposed)
    config = file.proof.configuration
    count = config.get("num_hidden_layers", config.get("n_layer"))
    for rules in (file.rules, known.rules):
        assert all(len(rule.read(config, count)) == count for rule in rules)
    assert kinds(file, config, count) == kinds(known, config, count)


def kinds(family: Family, config: dict[str, Any], count: int) -> list[list[int]]:
    """The layers of each kind."""
    read = [rule.read(config, count) for rule in family.rules]
    keys = [repr([values[i] for values in read]) for i in range(count)]
    return [[i for i in range(count) if keys[i] == kind] for kind in dict.fromkeys(keys)]


@pytest.mark.parametrize("kind", KNOWN)
def test_branches_are_distinguished_where_the_release_does(
    made: dict[str, Family], kind: str
) -> None:
    file, known = draft(made, kind), FAMILY_OF[kind]
    if not KNOWN[kind][1]:
        assert file.refused.parts == "both branches of a layer read the output of one norm"
        return
    assert file.refused.parts is None
    for prefix in file.attn:
        assert known.part(f"{prefix}weight") == "attn"
    for prefix in file.mlp:
        assert known.part(f"{prefix}weight") == "mlp"
