"""The paths of a plan beside an output, as seen from there."""

from pathlib import Path

import pytest

import gptailor
from gptailor.output.output import path_from

TEXT = """\
tailor 1
model base = "./models/base"
model math = "./models/math"
L0 from math
"""


@pytest.fixture
def here(tmp_path: Path, family: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current folder with `models/base` and `models/math`, which are links to other names."""
    (tmp_path / "lab" / "v7").mkdir(parents=True)
    (tmp_path / "lab" / "math-v7").symlink_to(family / "math")
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "base").symlink_to(family / "base")
    (tmp_path / "models" / "math").symlink_to("../lab/math-v7")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def sources(folder: Path) -> dict[str, str]:
    """The sources of the models in a compiled folder's plan, which has no faults."""
    plan = gptailor.load(folder / "plan.tailor")
    assert gptailor.check(plan) == []
    return {name: model.source for name, model in plan.models.items()}


def test_links_stay_in_the_plan_and_on_the_card(here: Path) -> None:
    plan = gptailor.loads(TEXT)
    gptailor.compile(plan, "deep/er/out")
    models = {"base": "../../../models/base", "math": "../../../models/math"}
    assert sources(here / "deep" / "er" / "out") == models
    card = (here / "deep" / "er" / "out" / "README.md").read_text()
    assert 'model math = "./math"' in card
    assert "v7" not in card


def test_a_folder_behind_a_link_is_left_to_its_own_parent(here: Path) -> None:
    (here / "jump").symlink_to("lab/v7")
    plan = gptailor.loads(TEXT.replace("./models/math", "./jump/../math-v7"))
    gptailor.compile(plan, "out")
    assert sources(here / "out") == {"base": "../models/base", "math": "../lab/math-v7"}


def test_a_plan_and_an_output_in_a_linked_folder_have_relative_paths(here: Path) -> None:
    (here / "p.tailor").write_text(TEXT)
    (here / "far" / "away").mkdir(parents=True)
    (here / "far" / "away" / "link").symlink_to(here)
    linked = here / "far" / "away" / "link"
    gptailor.compile(linked / "p.tailor", linked / "out")
    assert sources(here / "out") == {"base": "../models/base", "math": "../models/math"}


def test_a_path_without_a_target_is_absolute(here: Path) -> None:
    assert path_from(None, Path("models/math")) == str(here / "models" / "math")
    assert path_from(here / "models", Path("models/../models/math")) == "math"
