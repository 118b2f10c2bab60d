"""The figures of the search benchmark rest on this: its landscape, its adapter, its rules."""

from pathlib import Path

import numpy as np
import pytest

from benchmarks.search import run
from benchmarks.search_landscapes import Synthetic, joined
from benchmarks.search_parameters import Parameters
from benchmarks.search_peers import EvoPress, peers
from benchmarks.search_table import CUTS, FILE, LAYERS, MODELS, Measured, Table
from benchmarks.search_verdicts import PRUNERS, judged, race, raced, verdict_rows
from gptailor.searching.space.genome import Genome
from gptailor.searching.space.hash_random import key_of
from gptailor.searching.space.table import sample

SAMPLES = 36
WEIGHTS = ((0.0, 0.3, 0.6), (0.0, 0.6), (0.0, 0.15, 0.6))


@pytest.fixture(scope="module")
def table() -> Table:
    chance = np.random.default_rng(0)
    shape = (*map(len, WEIGHTS), len(CUTS) + 1)
    losses = chance.normal(3, 0.1, (*shape, 1)) + chance.normal(0, 0.1, (*shape, SAMPLES))
    counts = np.full(SAMPLES, 9)
    influence = {"base": np.linspace(0, 1, LAYERS).tolist()}
    return Table(losses.astype(np.float32), counts, WEIGHTS, influence)


def genome(landscape: Measured, weights: tuple[float, ...], cut: tuple[int, ...]) -> Genome:
    bits = np.array([bit.name in {f"drop L{layer}" for layer in cut}
                     for bit in landscape.space.bits])  # fmt: skip
    reals = np.array([weights[MODELS.index(real.name.split("of_")[1])] / 0.6
                      for real in landscape.space.reals])  # fmt: skip
    return Genome(bits, np.zeros(0, np.int32), reals)


def test_a_measured_plan_has_its_losses(table: Table) -> None:
    landscape = Measured(table, 0)
    for weights, cut in (((0.3, 0.0, 0.6), CUTS[7]), ((0.6, 0.6, 0.15), CUTS[-1])):
        (each,) = landscape.each(joined([genome(landscape, weights, cut)]))
        assert each == pytest.approx(table.at(weights, cut), abs=1e-5)


def test_losses_between_measured_weights_are_interpolated(table: Table) -> None:
    landscape = Measured(table, 0)
    (each,) = landscape.each(joined([genome(landscape, (0.15, 0.0, 0.6), CUTS[7])]))
    ends = [table.at((weight, 0.0, 0.6), CUTS[7]) for weight in (0.0, 0.3)]
    assert each == pytest.approx(np.mean(ends, axis=0), abs=1e-5)


def test_no_plan_is_below_the_optimum(table: Table) -> None:
    for seed in (0, 1):
        landscape = Measured(table, seed)
        plans = sample(landscape.space.table, key_of(seed), 500)
        assert landscape.true(plans).min() >= landscape.optimum
        assert landscape.held_out(plans).min() >= landscape.least_held_out
        assert not set(landscape.searched) & set(landscape.held)


def test_a_table_is_read_as_it_was_written(table: Table, tmp_path: Path) -> None:
    table.write(tmp_path / "table.npz")
    again = Table.read(tmp_path / "table.npz")
    assert np.array_equal(again.losses, table.losses)
    assert again.influence == table.influence


def test_the_measured_table_is_whole() -> None:
    table = Table.read()
    assert FILE.stat().st_size < 1_000_000
    assert table.losses.shape == (*map(len, table.weights), len(CUTS) + 1, len(table.counts))
    assert np.isfinite(table.losses).all()
    assert len(table.influence["base"]) == LAYERS


@pytest.mark.parametrize("slots", [False, True])
def test_parameters_give_the_genome_back(slots: bool) -> None:
    space = Synthetic("pairs", "30/3/7", 0).space
    parameters = Parameters(space, slots=slots)
    for genes in zip(*sample(space.table, key_of(0), 20), strict=True):
        plan = Genome(*genes)
        again = parameters.genome(parameters.values(plan))
        assert all(np.array_equal(one, other) for one, other in zip(plan, again, strict=True))


@pytest.mark.parametrize("slots", [False, True])
def test_any_values_give_a_plan_of_the_space(slots: bool) -> None:
    space = Synthetic("pairs", "30/3/7", 0).space
    parameters, chance = Parameters(space, slots=slots), np.random.default_rng(0)
    for _ in range(20):
        values = {item.name: chance.integers(item.count) if item.count else chance.random()
                  for item in parameters.all}  # fmt: skip
        bits = parameters.genome(values).bits
        for number, (low, high) in enumerate(zip(space.table.low, space.table.high, strict=True)):
            assert low <= bits[space.table.group == number].sum() <= high


def test_offspring_drop_as_many_layers() -> None:
    landscape = Synthetic("pairs", "30/3/7", 0)
    searcher = EvoPress(landscape.space, 0, 16, ((16, 1.0),))
    count = len(landscape.starts.bits)
    searcher.tell(landscape.starts, np.arange(count), np.ones(count))
    population, _ = searcher.ask()
    assert (population.bits[:, landscape.places.drop].sum(1) == 7).all()
    assert len({plan.tobytes() for plan in population.bits}) > 8


@pytest.mark.parametrize("name", ["random", "one-shot", "EvoPress", "Optuna TPE"])
def test_a_peer_begins_with_the_starting_plans(name: str, table: Table) -> None:
    landscape = Measured(table, 0)
    course = run(landscape, peers({}, 40)[name], 0, 40)
    count = len(landscape.starts.bits)
    assert np.array_equal(course.trials.bits[:count], landscape.starts.bits)
    assert course.cost[0] == count
    best = landscape.true(course.trials).min()
    assert landscape.true(joined([course.found])) == pytest.approx(best)
    assert course.at(40) == pytest.approx(best)


def test_a_race_stops_a_surely_worse_plan() -> None:
    chance = np.random.default_rng(0)
    best = chance.normal(3, 1, SAMPLES)
    worse = best + chance.normal(0.3, 0.1, SAMPLES)
    assert race(worse, best) < SAMPLES
    assert race(best - 0.1, best) == SAMPLES
    for pruner in PRUNERS.values():
        result = raced(np.stack([best, worse, best - 0.1]), 1, pruner)
        assert (result.trials, result.pruned, result.better, result.wrong) == (2, 1, 1, 0)
        assert result.kept == 0


def test_a_false_verdict_is_counted(table: Table) -> None:
    landscape = Measured(table, 0)
    verdicts = [judged(landscape, Genome(*genes))
                for genes in zip(*landscape.starts, strict=True)]  # fmt: skip
    assert not any(verdict.better[0] for verdict in verdicts)  # no better than itself
    assert len(list(verdict_rows(verdicts))) == 5
