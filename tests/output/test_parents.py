"""Model cards name the models on the Hub, licences and tags where the Hub reads them."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

import gptailor
from gptailor.checkpoint.hub import Remote
from gptailor.output.inputs import parents, title
from gptailor.prepare import prepare
from tests.support.tiny import tiny_model
from tests.support.tiny_adapter import adapter


def front_matter(folder: Path) -> dict[str, object]:
    text = (folder / "README.md").read_text()
    result: dict[str, object] = yaml.safe_load(text.split("---\n")[1])
    return result


def made(folder: Path, text: str) -> Path:
    gptailor.compile(
        gptailor.loads(f"tailor 1\n{text}\n", folder=folder), folder / "out", force=True
    )
    return folder / "out"


def test_a_card_has_the_licence_and_the_base_models(tmp_path: Path) -> None:
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
    assert parents(prepared)[0] == ("org/math",)
    remote = replace(
        prepared.models["base"], remotes=(Remote("org/base", "1"), Remote("org/lora", "2"))
    )
    models = {**prepared.models, "base": remote}
    assert parents(replace(prepared, checked=replace(prepared.checked, models=models)))[0] == (
        "org/base",
        "org/lora",
        "org/math",
    )


def test_a_folder_in_place_of_an_id_keeps_the_id(tmp_path: Path) -> None:
    tiny_model("llama", tmp_path / "base", layers=2)
    tiny_model("llama", tmp_path / "math", layers=2, seed=1)
    text = 'tailor 1\nmodel base = "org/base"\nmodel math = "./math"\nL1 from math\n'
    plan = gptailor.loads(text, folder=tmp_path)
    gptailor.compile(plan, tmp_path / "out", models={"base": tmp_path / "base"})
    card = (tmp_path / "out" / "README.md").read_text()
    assert front_matter(tmp_path / "out")["base_model"] == ["org/base"]
    assert '| base | `"org/base"` |\n| math | `"./math"` |' in card
    assert 'model base = "org/base"\nmodel math = "./math"\n' in card
    assert str(tmp_path) not in card


def test_an_adapter_has_its_own_source(tmp_path: Path) -> None:
    tiny_model("llama", tmp_path / "base", layers=2)
    adapter(tmp_path / "talk", base_model_name_or_path="org/other")
    text = 'tailor 1\nmodel base = "./base"\nmodel chat = base + "{}"\nL1 from chat\n'
    plan = gptailor.loads(text.format("./talk"), folder=tmp_path)
    gptailor.compile(plan, tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert '| base | `"./base"` |\n| chat | `base + "./talk"` |' in card
    assert 'model chat = base + "./talk"\n' in card
    plan = gptailor.loads(text.format("org/talk"), folder=tmp_path)
    gptailor.compile(plan, tmp_path / "named", models={"chat": tmp_path / "talk"})
    card = (tmp_path / "named" / "README.md").read_text()
    assert '| chat | `base + "org/talk"` |' in card
    gptailor.compile(plan, tmp_path / "whole", models={"chat": tmp_path / "base"})
    card = (tmp_path / "whole" / "README.md").read_text()
    assert '| chat | `"./base"` |' in card


def test_the_title_is_of_the_base_and_of_the_plan_or_the_folder(tmp_path: Path) -> None:
    base = tiny_model("llama", tmp_path / "base", layers=2)
    (tmp_path / "cut.tailor").write_text('tailor 1\nmodel base = "./base"\ndrop L1\n')
    (tmp_path / "plan.tailor").write_text('tailor 1\nmodel base = "./base"\ndrop L1\n')
    titles = []
    for origin in (None, "org/Tiny-1B"):
        config = json.loads((base / "config.json").read_text()) | {"_name_or_path": origin}
        (base / "config.json").write_text(json.dumps(config))
        for plan in ("cut", "plan"):
            prepared = prepare(gptailor.load(tmp_path / f"{plan}.tailor"))
            titles.append(title(prepared, tmp_path / "small"))
    assert titles == ["cut", "small", "Tiny-1B-cut", "Tiny-1B-small"]


@pytest.mark.parametrize("template", ["chat_template.jinja", "chat_template.json", None])
def test_a_card_has_an_example_that_fits_the_tokenizer(
    tmp_path: Path, template: str | None
) -> None:
    base = tiny_model("llama", tmp_path / "base", layers=2)
    chats = template == "chat_template.jinja"  # the other one is for processors
    if template is not None:
        (base / template).write_text('{"chat_template": "one"}')
    text = 'tailor 1\nmodel base = "./base"\ndrop L1\n'
    gptailor.compile(gptailor.loads(text, folder=tmp_path), tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    code = card.split("```python\n")[1].split("```")[0]
    compile(code, "card", "exec")
    assert 'pipeline("text-generation", "out")' in code
    assert ('"role": "user"' in code) == chats
