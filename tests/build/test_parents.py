"""Model cards name the models on the Hub, licences and tags where the Hub reads them."""

from dataclasses import replace
from pathlib import Path

import yaml

import gptailor
from gptailor.build.parents import parents
from gptailor.checkpoint.hub import Remote
from gptailor.prepare import prepare
from tests.tiny import tiny_model


def front_matter(folder: Path) -> dict[str, object]:
    text = (folder / "README.md").read_text()
    found: dict[str, object] = yaml.safe_load(text.split("---\n")[1])
    return found


def made(folder: Path, text: str) -> Path:
    gptailor.compile(
        gptailor.loads(f"tailor 1\n{text}\n", folder=folder), folder / "out", force=True
    )
    return folder / "out"


def test_a_card_has_a_licence_and_what_it_was_made_of(tmp_path: Path) -> None:
    base = tiny_model("llama", tmp_path / "base", layers=2)
    tiny_model("llama", tmp_path / "math", layers=2, seed=1)
    (base / "README.md").write_text("---\nlicense: apache-2.0\ntags:\n- x\n---\n# base\n")
    one = front_matter(made(tmp_path, 'model base = "./base"\ndrop L1'))
    assert one["license"] == "apache-2.0"
    assert one["tags"] == ["gptailor"]
    assert one["pipeline_tag"] == "text-generation"
    assert "base_model" not in one, "nobody knows what it is on the Hub"
    both = 'model base = "./base"\nmodel math = "./math"\nL1 from math'
    assert front_matter(made(tmp_path, both))["tags"] == ["gptailor", "merge"]
    (tmp_path / "math" / "README.md").write_text("---\nlicense: mit\n---\n")
    assert front_matter(made(tmp_path, both))["license"] == "other"


def test_the_ids_are_those_of_the_hub_and_of_its_cache(tmp_path: Path) -> None:
    cached = tmp_path / "models--org--math" / "snapshots" / "abc"
    tiny_model("llama", tmp_path / "base", layers=2)
    tiny_model("llama", cached, layers=2, seed=1)
    text = f'tailor 1\nmodel base = "./base"\nmodel math = "{cached}"\nL1 from math\n'
    prepared = prepare(gptailor.loads(text, folder=tmp_path))
    assert parents(prepared).ids == ("org/math",)
    remote = replace(
        prepared.models["base"], remotes=(Remote("org/base", "1"), Remote("org/lora", "2"))
    )
    models = {**prepared.models, "base": remote}
    assert parents(replace(prepared, checked=replace(prepared.checked, models=models))).ids == (
        "org/base",
        "org/lora",
        "org/math",
    )
