"""A meter: families share loaded models, objectives are prepared once, plans share both."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from torch import Tensor

import gptailor
from gptailor.checkpoint.models import Opened
from gptailor.evaluation.fits.repair import Repairs
from gptailor.evaluation.forward.requests import Work
from gptailor.evaluation.meter import Meter, Placement, Reading, Samples
from gptailor.evaluation.space_trials import Trials, opened
from gptailor.lang.parse import read_objective
from gptailor.plan.events import OnEvent
from gptailor.plan.plan import Plan
from tests.support.tiny import tiny_model

pytestmark = pytest.mark.usefixtures("one_thread")

NAMES = ("base", "math", "code")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("meter")
    for seed, name in enumerate(NAMES):
        tiny_model("llama", folder / name, seed=seed, layers=3)
    rows = [{"text": "a cat " * n} for n in range(1, 9)]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (folder / "text.txt").write_text("a dog sat " * 400)
    return folder


def plan_on(world: Path, base: str, cut: str = "drop L1") -> Plan:
    text = f'tailor 1\nmodel base = "{world / base}"\nmodel other = "{world / "code"}"\n{cut}\n'
    return gptailor.loads(text, folder=world)


def models_on(world: Path, base: str) -> Mapping[str, Opened]:
    return opened(plan_on(world, base, "L0 from other"))[1]


@pytest.fixture
def placed(monkeypatch: pytest.MonkeyPatch) -> list[Placement]:
    """The placement of each family's models, whenever they are loaded."""
    known: list[Placement] = []
    load = Placement.repairs

    def repairs(place: Placement, models: Mapping[str, Opened], on_event: OnEvent) -> Repairs:
        known.append(place)
        return load(place, models, on_event)

    monkeypatch.setattr(Placement, "repairs", repairs)
    return known


def never(name: str, work: Work) -> Sequence[Tensor]:
    raise AssertionError(f"no objective compares with '{name}'")


def test_searches_with_one_meter_load_models_once_and_have_equal_scores(
    world: Path, placed: list[Placement]
) -> None:
    plan, models, _ = opened(plan_on(world, "base"))
    wanted = ('nll("rows.jsonl")', 'perplexity("text.txt")')

    def scores(meter: Meter | None, objective: str) -> object:
        stated = [read_objective(objective)]
        trials = Trials(plan, models, objectives=stated, folder=world, meter=meter, fidelity=(1, 4))
        return list(trials.run([plan], 4, stage="bare"))

    shared = Meter(Placement())
    together = [scores(shared, objective) for objective in wanted]
    assert len(placed) == 1
    assert together == [scores(None, objective) for objective in wanted]
    assert len(placed) == 3


def test_the_two_families_used_last_stay_loaded_and_share_the_memory(
    world: Path, placed: list[Placement]
) -> None:
    meter = Meter(Placement(memory=1_000_000))
    families = [models_on(world, base) for base in NAMES]
    assert [meter.family(models) for models in families] == [0, 1, 2]
    assert meter.family(models_on(world, "math")) == 1, "its names stand for the same files"
    first, second = (meter.repairs(models) for models in families[:2])
    assert meter.repairs(families[0]) is first
    meter.repairs(families[2])
    assert meter.repairs(families[0]) is first
    assert meter.repairs(families[1]) is not second
    assert [place.memory for place in placed] == [500_000] * 4


def test_objectives_are_prepared_once_for_plans_with_equal_readings(world: Path) -> None:
    meter = Meter(Placement())
    plan, models = plan_on(world, "base"), models_on(world, "base")
    reading = Reading(models["base"], 64, "base", plan)
    nll = [read_objective('nll("rows.jsonl")')]
    kl = [read_objective('kl("rows.jsonl", from=other)', plan.models)]

    def prepared(reading: Reading, *, seed: int = 0) -> object:
        return meter.objectives(nll, Samples(world, None, seed), reading, never)

    known = prepared(reading)
    assert prepared(reading._replace(tokenizer_model=models["other"])) is known
    others = [
        prepared(reading._replace(positions=32)),
        prepared(reading._replace(base="math")),
        prepared(reading, seed=1),
    ]
    assert all(other is not known for other in others)
    elsewhere = reading._replace(origin=plan_on(world, "math"))
    assert prepared(elsewhere) is known, "no objective names a model"
    assert elsewhere.key(kl) != reading.key(kl)
