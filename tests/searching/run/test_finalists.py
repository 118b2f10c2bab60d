"""Which plans are repaired in the end: unlike each other, of each size, and of both sorts."""

from collections.abc import Sequence

import numpy as np
import pytest

import gptailor
from gptailor.searching.run.finalists import chosen_finalists
from gptailor.searching.run.origin import (
    BestWindow,
    BlockInfluenceCut,
    BridgedCut,
    StrategyPlan,
    TrialOrigin,
)
from gptailor.searching.run.records import Aim
from gptailor.searching.run.trials import SEARCH, STARTS, Ledger, Trial, TrialRequest
from gptailor.searching.space.genome import Genome
from gptailor.searching.space.space import Space, space_of
from gptailor.searching.space.table import canonical, coarse, distinct, features

NLL = Aim("nll", "minimize", "base", unit="nats")
SIZE = Aim("parameters()", "minimize", "base", size=True)

SURROGATE = StrategyPlan(strategy="surrogate")

Told = tuple[str, TrialOrigin, float, float]
"""A plan's name, its origin (a phase for a strategy's plans), its loss and its size."""


def chosen(told: Sequence[Told], many: int, *, sized: bool = True, like: str = "") -> list[str]:
    """The finalists' names, the best first; plans are alike if their names begin with `like`."""
    ledger = Ledger((NLL, SIZE) if sized else (NLL,), 64)
    ledger.references[64] = (2.0, 100.0)[: 1 + sized]
    names = {}
    for number, (name, origin, loss, size) in enumerate(told):
        phase = SEARCH if origin == SURROGATE else STARTS
        genome = Genome(np.zeros(0, np.bool_), np.zeros(0, np.int32), np.zeros(0, np.float32))
        request = TrialRequest(phase, 0, number, origin, genome, 64, "bare", 0)
        values = (2 + loss, size)[: 1 + sized]
        ledger.add(Trial(number, request, name, 1.0, values, (0.1,) * len(values)))
        names[number] = name

    def unlike(trials: Sequence[Trial]) -> list[Trial]:
        first: dict[str, Trial] = {}
        for trial in trials:
            kind = like if like and trial.plan.startswith(like) else trial.plan
            first.setdefault(kind, trial)
        return list(first.values())

    return [trial.plan for trial in chosen_finalists(ledger, many, unlike)]


CUT = ("cut", BridgedCut(rank=1), 1.5, 80.0)
INFLUENCE = ("influence", BlockInfluenceCut(), 1.2, 80.0)
WINDOW = ("window", BestWindow(), 1.4, 90.0)
FOUND = ("found", SURROGATE, 1.0, 90.0)
OTHER = ("other", SURROGATE, 1.3, 80.0)


@pytest.mark.parametrize(
    ("told", "many", "wanted"),
    [
        # the cut takes the place of one of its size, and no size is lost by it
        ([CUT, INFLUENCE, WINDOW, FOUND, OTHER], 2, ["cut", "found", "influence"]),
        ([INFLUENCE, WINDOW, FOUND, OTHER], 2, ["influence", "found"]),
        ([INFLUENCE, WINDOW, OTHER], 2, ["influence", "window", "other"]),
        ([FOUND, OTHER, INFLUENCE, WINDOW], 1, ["found", "influence"]),
        ([INFLUENCE, WINDOW, OTHER], 1, ["influence", "other"]),
        ([INFLUENCE, WINDOW], 1, ["influence"]),
    ],
)
def test_finalists_are_of_each_size_and_of_both_sorts(
    told: list[Told], many: int, wanted: list[str]
) -> None:
    assert chosen(told, many) == wanted


def test_finalists_of_one_size_end_with_the_measured_cut() -> None:
    told = [CUT, INFLUENCE, ("near", SURROGATE, 0.9, 0.0), ("far", SURROGATE, 1.1, 0.0)]
    assert chosen(told, 3, sized=False) == ["near", "far", "cut", "influence"]


def test_one_of_several_similar_plans_is_a_finalist() -> None:
    told = [
        ("same, begun with", BestWindow(), 1.01, 0.0),
        ("same, nudged", SURROGATE, 1.0, 0.0),
        ("same, nudged again", SURROGATE, 1.005, 0.0),
        ("unlike", SURROGATE, 1.2, 0.0),
    ]
    assert chosen(told, 1, sized=False, like="same") == ["same, begun with", "unlike"]
    assert chosen(told, 3, sized=False, like="same") == ["same, begun with", "unlike"]


# ------------------------------------------------------------------------------------ alike plans


@pytest.fixture(scope="module")
def space() -> Space:
    plan = gptailor.loads(
        'tailor 1\nmodel base = "./base"\nmodel math = "./math"\nlet share = 0.0..1.0\n'
        "others from math by task_arithmetic(share)\ndrop any 2 of L0..L5\n"
        'search {\n  minimize nll("t.txt")\n  trials 3\n}\n'
    )
    return space_of(plan, 6, set())


def of(space: Space, gone: Sequence[int], share: float) -> Genome:
    genome = Genome(*(np.array(gene) for gene in space.table.defaults))
    genome.bits[:] = False
    genome.bits[list(gone)] = True
    genome.reals[:] = share
    return canonical(space.table, genome)


def test_plans_with_close_numbers_are_similar(space: Space) -> None:
    genomes = [
        of(space, (1, 2), 1.0),
        of(space, (1, 2), 0.9985),
        of(space, (1, 2), 0.9),
        of(space, (1, 3), 1.0),
        of(space, (1, 2), 0.95),
    ]
    assert distinct(space.table, genomes) == [0, 2, 3]
    assert distinct(space.table, []) == []


def test_similar_plans_have_equal_coarse_features(space: Space) -> None:
    one, near, far = (features(space.table, of(space, (1, 2), s)) for s in (1.0, 0.9985, 0.9))
    assert (coarse(one) == coarse(near)).all()
    assert (coarse(one) != coarse(far)).any()
    assert not (one == near).all()
