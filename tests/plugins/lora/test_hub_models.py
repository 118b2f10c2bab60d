"""Adapters of models on the Hub, a small one on this machine."""

import json

import pytest

from tests.support import hub_desk
from tests.support.hub_server import commit_of

folders, hub, runs, desk = hub_desk.folders, hub_desk.hub, hub_desk.runs, hub_desk.desk


@pytest.mark.slow
def test_an_adapter_is_extracted_of_models_on_the_hub(desk: hub_desk.Desk) -> None:
    done = desk.run("extract-lora", "org/base", "org/math@main", "-o", "out", "--rank", "2")
    assert done.code == 0, done.err
    settings = json.loads((desk.folder / "out" / "adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == "org/base"
    assert settings["revision"] == commit_of("org/base", 0)
    assert desk.run("extract-lora", "org/base", "org/lost", "-o", "other").code == 3
    assert not (desk.folder / "other").exists()
