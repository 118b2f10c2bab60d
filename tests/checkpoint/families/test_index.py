"""Each model type is in the file that the index names, and only needed files are read."""

import subprocess
import sys
from importlib import import_module

import pytest

from gptailor.checkpoint import families
from gptailor.checkpoint.families import FAMILY_OF, FILE_OF, MODEL_TYPES
from gptailor.checkpoint.families.family import ONE_BRANCH


@pytest.mark.parametrize("file", MODEL_TYPES)
def test_the_index_lists_the_model_types_of_each_file_in_order(file: str) -> None:
    entries = getattr(import_module(f"{families.__name__}.{file}"), file.upper())
    filed = [model_type for family in entries for model_type in family.model_types]
    assert MODEL_TYPES[file].split() == sorted(filed)


def test_a_model_type_has_one_family() -> None:
    listed = [name for types in MODEL_TYPES.values() for name in types.split()]
    assert sorted(listed) == sorted(FAMILY_OF)
    assert len(FILE_OF) == len(listed)
    assert all(name in family.model_types for name, family in FAMILY_OF.items())


def test_families_are_filed_by_what_they_have() -> None:
    for name, family in FAMILY_OF.items():
        keys = {key.name for key in family.keys}
        rules = {rule.name for rule in family.rules}
        facts = {
            "recurrent": family.no_parts == ONE_BRANCH,
            "multimodal": "mrope_section" in keys,
            "latent": "kv_lora_rank" in keys,
            "windowed": bool({"layer_types", "attention_types"} & rules),
        }
        beside = {"kimi_linear", "bailing_hybrid"}  # latent attention beside linear attention
        fits = [file for file, fact in facts.items() if fact and name not in beside]
        if FILE_OF[name] in facts:
            assert fits[0] == FILE_OF[name], name
        elif FILE_OF[name] == "dense":
            assert fits == [], name


def test_only_files_of_needed_families_are_imported() -> None:
    code = (
        "import sys\n"
        "from gptailor.checkpoint.families import FAMILY_OF, MODEL_TYPES, layout\n"
        "assert 'jamba' in FAMILY_OF and FAMILY_OF['llama'].base == 'model.'\n"
        "print(*(file for file in MODEL_TYPES if f'{layout.__package__}.{file}' in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "dense\n"
