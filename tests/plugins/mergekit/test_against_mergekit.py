"""mergekit's own results for the examples and for exported plans.

Runs where MERGEKIT_PYTHON names the python of an environment that has mergekit 0.1.5.
"""

import os
from pathlib import Path

import pytest

import gptailor
from benchmarks.convert import WHY, both, compare, run_mergekit, tensors_of, write_family
from gptailor.plugins.mergekit.exporter import export_mergekit
from gptailor.plugins.mergekit.importer import from_mergekit

PYTHON = os.environ.get("MERGEKIT_PYTHON", "")
FILES = sorted((Path(__file__).parent / "yaml").glob("*.yml"))
ROUNDINGS = 3.0
"""float32 epsilons of a tensor's largest value: mergekit sums, then divides."""

pytestmark = [
    pytest.mark.mergekit,
    pytest.mark.skipif(not PYTHON, reason="MERGEKIT_PYTHON names no python with mergekit"),
]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    write_family(folder)
    return folder


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_an_imported_plan_gives_mergekits_tensors(path: Path, models: Path) -> None:
    ours, theirs, _ = both(Path(PYTHON), path, models)
    result = compare(ours, theirs)
    if path.stem in WHY and path.stem != "bfloat16":
        assert result.unlike
    else:
        assert result.steps <= ROUNDINGS


@pytest.mark.parametrize("name", ["slerp", "linear_gradient", "scaled", "ties", "across"])
def test_an_exported_plan_gives_mergekit_our_tensors(name: str, models: Path) -> None:
    text = (Path(__file__).parent / "yaml" / f"{name}.yml").read_text(encoding="utf-8")
    plan, _ = from_mergekit(text, name, root=models, folder=models)
    paths = {model: models / declared.source for model, declared in plan.models.items()}
    gptailor.compile(plan, models / f"again-{name}", models=paths)
    exported = models / f"exported-{name}.yml"
    exported.write_text(export_mergekit(plan, 6), encoding="utf-8")
    done = run_mergekit(Path(PYTHON), exported, models / f"mergekit-{name}", models)
    assert done.returncode == 0, done.stderr
    result = compare(tensors_of(models / f"again-{name}"), tensors_of(models / f"mergekit-{name}"))
    assert result.steps <= ROUNDINGS
