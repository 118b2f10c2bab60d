"""Every plan in `plans/`: without a fault, in canonical form, compiled on models of its depth."""

import shutil
from functools import cache
from pathlib import Path

import pytest

import gptailor
from gptailor.lang.parse import read_bytes
from gptailor.plan.faults import errors
from gptailor.plan.resolved import Resolved
from gptailor.plan.sites import open_choices
from gptailor.prepare import prepare
from tests.support.pages import needs_missing_plugin
from tests.support.tiny import tiny_model

PLANS = Path(__file__).parents[2] / "plans"
FILES = [
    path for path in sorted(PLANS.rglob("*.tailor")) if not needs_missing_plugin(path.read_text())
]
STEPS = [path for path in FILES if path.parent.name == "stepwise"]
"""A chain of plans: each stands on the one before it, on a text of the user's."""
LAYERS = {
    "HuggingFaceTB/SmolLM2-135M-Instruct": 30,
    "meta-llama/Llama-2-13b-hf": 40,
    "meta-llama/Llama-2-7b-hf": 32,
    "meta-llama/Llama-3.1-8B": 32,
    "meta-llama/Llama-3.1-8B-Instruct": 32,
    "mistralai/Mistral-7B-v0.1": 32,
}
"""The bases that the plans name; a plan of another base names its depth here."""


def named(path: Path) -> str:
    return str(path.relative_to(PLANS))


@cache
def _model(folder: Path, layers: int, seed: int) -> Path:
    return tiny_model("llama", folder / f"{layers}-{seed}", layers=layers, seed=seed)


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("shelf")


def test_each_folder_of_plans_has_files() -> None:
    assert {path.parent.name for path in FILES} >= {
        "llama2",
        "recipes",
        "smollm2",
        "spaces",
        "stepwise",
    }


@pytest.mark.parametrize("path", FILES, ids=named)
def test_a_plan_has_no_fault_and_no_warning(path: Path) -> None:
    _, faults = read_bytes(path.read_bytes(), str(path), path.parent)
    assert faults == []


@pytest.mark.parametrize("path", FILES, ids=named)
def test_a_plan_is_in_canonical_form(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert gptailor.format(text) == text


@pytest.mark.parametrize("path", FILES, ids=named)
def test_a_plan_begins_with_a_comment(path: Path) -> None:
    assert path.read_text(encoding="utf-8").startswith("# ")


def test_the_steps_of_a_chain_drop_the_stated_layers(shelf: Path, tmp_path: Path) -> None:
    (tmp_path / "calibration.jsonl").write_text(f'{{"text": "{"a stitch in time " * 9_000}"}}\n')
    for path in STEPS:
        shutil.copy(path, tmp_path)
    model, plan = _model(shelf, 30, 0), gptailor.load(tmp_path / "step3.tailor")
    models = dict.fromkeys(("base.base.base", "base.original", "original"), model)
    assert not errors(gptailor.check(plan, models))
    prepared = prepare(plan, models=models)
    assert [len(inner.resolved.kept) for inner in prepared.inner_plans.values()] == [27, 25]
    assert len(prepared.resolved.kept) == 23


@pytest.mark.parametrize("path", [path for path in FILES if path not in STEPS], ids=named)
def test_a_plan_is_valid_with_models_of_its_depth(path: Path, shelf: Path, tmp_path: Path) -> None:
    plan = gptailor.load(path)
    count = LAYERS[plan.models["base"].source]
    models = {name: _model(shelf, count, seed) for seed, name in enumerate(plan.models)}
    faults = gptailor.check(plan, models)
    # random models differ in their ends, and texts are the user's own
    assert [fault for fault in faults if fault.code not in {"M315", "C801"}] == []
    if open_choices(plan) == 0:
        written = gptailor.compile(plan, tmp_path / "out", models=models)
        assert written.layers == len(Resolved(plan, count).kept)
