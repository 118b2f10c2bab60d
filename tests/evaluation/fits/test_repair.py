"""The cost of bridging and healing grows with the tokens that they read and compute."""

from pathlib import Path

import pytest

import gptailor
from gptailor.evaluation.fits import fit
from gptailor.evaluation.fits.fit import RepairEstimate
from gptailor.evaluation.fits.repair import repair_estimates
from gptailor.prepare import prepare
from tests.support.tiny import tiny_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("estimate")
    tiny_model("llama", folder / "base", layers=6)
    (folder / "t.txt").write_text("a text of some letters\n" * 2000)
    return folder


@pytest.fixture(autouse=True)
def steady(monkeypatch: pytest.MonkeyPatch) -> None:
    """A device with a known speed."""
    monkeypatch.setattr(fit, "_speed", lambda *_: 1e6)


def estimated(folder: Path, text: str, memory: int | None = None) -> dict[str, RepairEstimate]:
    plan = gptailor.loads(f'tailor 1\nmodel base = "./base"\n{text}\n', folder=folder)
    return {item.what: item for item in repair_estimates(prepare(plan), memory=memory)}


def test_a_plan_without_bridges_and_healing_costs_nothing(folder: Path) -> None:
    assert estimated(folder, "drop L2") == {}


def test_time_grows_with_tokens_and_with_the_depth_of_the_gap(folder: Path) -> None:
    few, many = (
        estimated(folder, f'drop L2\nbridge on "t.txt" tokens {n}\nheal on "t.txt" tokens {n}')
        for n in (500, 1500)
    )
    assert few["bridging"].tokens == few["healing"].tokens == 500
    assert many["bridging"].seconds == pytest.approx(3 * few["bridging"].seconds)
    assert many["healing"].seconds == pytest.approx(3 * few["healing"].seconds)
    late = estimated(folder, 'drop L4\nbridge on "t.txt" tokens 500')
    assert late["bridging"].seconds == pytest.approx(5 / 3 * few["bridging"].seconds)


def test_a_width_costs_a_pass_of_the_whole_model_and_the_sums(folder: Path) -> None:
    few, many = (estimated(folder, f'width 16 on "t.txt" tokens {n}') for n in (500, 1500))
    assert few["narrowing"].tokens == 500
    assert many["narrowing"].seconds == pytest.approx(3 * few["narrowing"].seconds)
    dropped = estimated(folder, 'drop L2\nwidth 8 on "t.txt" tokens 500')["narrowing"]
    assert dropped.seconds == few["narrowing"].seconds
    assert estimated(folder, 'width 24 on "t.txt"') == {}


def test_a_short_text_has_as_many_tokens_as_its_bytes_can_hold(folder: Path) -> None:
    result = estimated(folder, 'drop L2\nheal on "t.txt"')
    assert result["healing"].tokens == 46_000 // 3


def test_memory_is_bounded_and_larger_with_a_larger_rank(folder: Path) -> None:
    low, high = (
        estimated(folder, f'drop L2\nheal on "t.txt" tokens 500 rank {rank}')["healing"].bytes
        for rank in (1, 8)
    )
    assert low < high
    text = 'drop L2\nheal on "t.txt" tokens 500 rank 8'
    assert 0 < estimated(folder, text, memory=low)["healing"].bytes <= low
