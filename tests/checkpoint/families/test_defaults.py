"""The values of absent keys are those that transformers has."""

import json
from pathlib import Path

import transformers

from gptailor.checkpoint.families import FAMILY_OF, compatibility
from tests.checkpoint.families.make_defaults import table

FILE = Path(compatibility.__file__).with_name("defaults.json")
NOT_READ = {"attention_bias", "head_dim"}
"""Keys that all families built like Llama compare, whether transformers reads them or not."""


def test_the_file_is_what_the_script_makes() -> None:
    made = table()
    kept = FILE.read_text(encoding="utf-8")
    if json.loads(kept)["transformers"] == transformers.__version__:
        assert kept == made, "python tests/checkpoint/families/make_defaults.py writes it"
        return
    old, new = json.loads(kept)["types"], json.loads(made)["types"]
    for model_type in old.keys() & new.keys():
        common = old[model_type].keys() & new[model_type].keys()
        assert {k: old[model_type][k] for k in common} == {k: new[model_type][k] for k in common}


def test_every_key_that_must_agree_has_a_default() -> None:
    types = json.loads(FILE.read_text(encoding="utf-8"))["types"]
    for model_type, family in FAMILY_OF.items():
        names = " ".join(each for each in family.agree if isinstance(each, str)).split()
        assert set(names) - types[model_type].keys() <= NOT_READ, model_type
        assert len(names) == len(set(names)), model_type


def test_an_absent_number_of_key_value_heads_follows_the_heads() -> None:
    [heads] = [key for key in FAMILY_OF["arcee"].keys if key.name == "num_key_value_heads"]
    assert heads.read({"num_attention_heads": 8}) == 8
