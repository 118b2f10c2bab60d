"""Each model type of the release has a file, and only needed files are read."""

import json
import subprocess
import sys

import pytest

from gptailor.checkpoint.families import FAMILY_OF, FOLDER
from gptailor.checkpoint.families.family import Family
from gptailor.checkpoint.families.family_file import family_text, read_family_file
from gptailor.checkpoint.families.functions import READERS, RULES


@pytest.mark.parametrize("family", FAMILY_OF)
def test_a_family_file_survives_reading_and_writing(family: str) -> None:
    path = FOLDER / f"{family}.json"
    read = read_family_file(path)
    assert read == FAMILY_OF[family], "the reader without validators reads the same"
    assert (read.name, read.model_types) == (family, (family,))
    assert family_text(read) == path.read_text(encoding="utf-8")


def test_a_reason_explains_a_key_of_its_file() -> None:
    for name, family in FAMILY_OF.items():
        keys = {*Family.model_fields, *family.agree}
        for rule in family.moved.values():
            keys |= {*family.moved, getattr(rule, "key", "")}
        assert family.why.keys() <= keys, name


def test_each_function_has_a_family() -> None:
    text = json.dumps([json.loads(path.read_bytes()) for path in FOLDER.iterdir()])
    named = {name for name in RULES if f'"function": "{name}"' in text}
    assert named == RULES.keys()
    assert {
        name for family in FAMILY_OF.values() for name in family.read.values()
    } == READERS.keys()
    assert {family.count_of for family in FAMILY_OF.values()} == {"", "letters"}


@pytest.mark.parametrize("name", ["../families/llama", "", "/etc/passwd", "llama.json"])
def test_a_model_type_isnt_a_path(name: str) -> None:
    assert name not in FAMILY_OF
    assert FAMILY_OF.get(name) is None


def test_only_files_of_needed_families_are_read() -> None:
    code = (
        "import sys\n"
        "read = []\n"
        "seen = lambda what, of: read.append(str(of[0])) if what == 'open' else None\n"
        "sys.addaudithook(seen)\n"
        "from gptailor.checkpoint.families import FAMILY_OF\n"
        "assert 'jamba' in FAMILY_OF and FAMILY_OF['llama'].base == 'model.'\n"
        "assert FAMILY_OF['llama'].agree and len(FAMILY_OF) > 100\n"
        "print(*(name.rpartition('/')[2] for name in read if name.endswith('.json')))\n"
        "print('gptailor.checkpoint.families.functions' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "llama.json\nFalse\n"
