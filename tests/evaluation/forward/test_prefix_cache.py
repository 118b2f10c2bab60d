"""Plans that begin alike: the same numbers as each alone, in fewer layers, within the budget."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedModel

from gptailor.evaluation.forward import evaluator as branches
from gptailor.evaluation.forward.evaluator import Evaluator, LayerPath, PrefixCache, in_order
from gptailor.evaluation.forward.requests import Work, pack
from gptailor.evaluation.scores import Failure
from tests.evaluation.lent import Lent, broken, lent, likelihood, loaded, requests
from tests.support.thorough import drawn

pytestmark = pytest.mark.usefixtures("one_thread")

ASKED = requests(10, longest=16)
WORKS = [Work(ASKED, likelihood)]
STATE = 16 * 4 * sum(batch.tokens.numel() for batch in pack(WORKS, 64))
"""Bytes of the hidden states of all batches."""

ORDERS = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=5), min_size=1, max_size=6)


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedModel:
    return loaded("llama", tmp_path_factory.mktemp("pool"))


def plans(pool: PreTrainedModel, orders: Sequence[Sequence[int]]) -> list[Lent]:
    return [lent(pool, order) for order in orders]


def flat(result: object) -> torch.Tensor:
    assert isinstance(result, list), result
    return torch.cat([values for work in result for values in work])


def itself(plan: Lent) -> Lent:
    return plan


def together(evaluator: Evaluator, population: Sequence[Lent]) -> dict[int, torch.Tensor]:
    results = evaluator.run_all(dict(enumerate(population)), WORKS, itself)
    return {number: flat(result) for number, _, result in results}


# ------------------------------------------------------------------------------------- the numbers


@settings(max_examples=drawn(15))
@given(st.lists(ORDERS, min_size=1, max_size=2), st.integers(0, 4))
def test_the_same_numbers_as_alone(
    pool: PreTrainedModel, generations: list[list[list[int]]], states: int
) -> None:
    evaluator = Evaluator(batch_tokens=64, cache=states * STATE)
    layers = 0
    for orders in generations:
        result = together(evaluator, plans(pool, orders))
        assert sorted(result) == list(range(len(orders)))
        for number, order in enumerate(orders):
            alone = flat(Evaluator(batch_tokens=64).run(lent(pool, order), WORKS))
            assert torch.equal(result[number], alone)
            layers += len(order)
    assert evaluator.layers_run + evaluator.layers_saved == layers
    assert evaluator._prefixes.bytes <= states * STATE


def test_a_common_beginning_runs_once(pool: PreTrainedModel) -> None:
    population = plans(pool, [[0, 1, 2, 3], [4, 5], [0, 1, 3, 2], [0, 1, 2, 5], [0, 1]])
    evaluator = Evaluator(batch_tokens=64, cache=2 * STATE)
    results = evaluator.run_all(dict(enumerate(population)), WORKS, itself)
    result = [number for number, _, _ in results]
    assert result == [4, 0, 3, 2, 1]  # the tree's order, the first plan's branch first
    assert (evaluator.layers_run, evaluator.layers_saved) == (9, 7)


def test_a_cache_without_room_saves_no_layer(pool: PreTrainedModel) -> None:
    evaluator = Evaluator(batch_tokens=64, cache=STATE - 1)
    together(evaluator, plans(pool, [[0, 1, 2], [0, 1, 3]]))
    assert (evaluator.layers_run, evaluator.layers_saved) == (6, 0)


def test_equal_plans_run_once(pool: PreTrainedModel) -> None:
    evaluator = Evaluator(batch_tokens=64, cache=STATE)
    result = together(evaluator, plans(pool, [[0, 1, 2], [0, 1, 2]]))
    assert torch.equal(result[0], result[1])
    assert (evaluator.layers_run, evaluator.layers_saved) == (3, 3)


def test_plans_with_different_starts_share_nothing(pool: PreTrainedModel) -> None:
    one, other = plans(pool, [[0, 1, 2], [0, 1, 2]])
    other = replace(other, start="another")
    evaluator = Evaluator(batch_tokens=64, cache=STATE)
    together(evaluator, [one, other])
    assert evaluator.layers_saved == 0


def test_different_requests_share_nothing(pool: PreTrainedModel) -> None:
    plan = lent(pool, [0, 1, 2])
    evaluator = Evaluator(batch_tokens=64, cache=9 * STATE)
    together(evaluator, [plan, plan])
    few = [Work(ASKED[:5], likelihood)]
    alone = Evaluator(batch_tokens=64).run(plan, few)
    assert torch.equal(flat(evaluator.run(plan, few)), flat(alone))
    assert (evaluator.layers_run, evaluator.layers_saved) == (6, 3)
    evaluator.run(plan, WORKS)
    assert (evaluator.layers_run, evaluator.layers_saved) == (6, 6)


def test_later_plans_share_the_common_beginning(pool: PreTrainedModel) -> None:
    evaluator = Evaluator(batch_tokens=64, cache=STATE)
    for order in ([0, 1, 2, 3], [0, 1, 2, 4], [0, 1, 2, 5]):
        evaluator.run(lent(pool, order), WORKS)
    assert (evaluator.layers_run, evaluator.layers_saved) == (9, 3)


# ------------------------------------------------------------------------------------ the failures


def test_a_failure_among_plans_is_its_own(pool: PreTrainedModel) -> None:
    def reject(hidden: torch.Tensor) -> None:
        raise ValueError("not this one")

    population = plans(pool, [[0, 1, 2], [0, 1, 3], [0, 1, 4]])
    population[1] = broken(population[1], 2, reject)
    evaluator = Evaluator(batch_tokens=64, cache=STATE)
    results = evaluator.run_all(dict(enumerate(population)), WORKS, itself)
    by_number = {number: result for number, _, result in results}
    assert by_number[1] == Failure("error", "ValueError: not this one")
    for number, order in ((0, [0, 1, 2]), (2, [0, 1, 4])):
        alone = Evaluator(batch_tokens=64).run(lent(pool, order), WORKS)
        assert torch.equal(flat(by_number[number]), flat(alone))


def test_a_population_that_is_given_up_is_forgotten(pool: PreTrainedModel) -> None:
    evaluator = Evaluator(batch_tokens=64, cache=STATE)
    some = dict(enumerate(plans(pool, [[0, 1], [0, 2], [3]])))
    results = evaluator.run_all(some, WORKS, itself)
    next(results)
    results.close()
    assert not evaluator._prefixes._ahead


def test_a_plan_without_a_model_is_its_own_failure(pool: PreTrainedModel) -> None:
    def make(plan: Lent) -> Lent:
        if plan.layers == (0, 2):
            raise ValueError("no such layer")
        return plan

    evaluator = Evaluator(batch_tokens=64, cache=STATE)
    some = dict(enumerate(plans(pool, [[0, 1], [0, 2], [3]])))
    result = {number: results for number, *results in evaluator.run_all(some, WORKS, make)}
    assert result[1] == [Failure("error", "ValueError: no such layer")] * 2
    assert all(result[number][0] is some[number] for number in (0, 2))


# ---------------------------------------------------------------------------------------- the tree


def path(text: str) -> tuple[object, ...]:
    return ("batches", "start", *text)


def ran(known: PrefixCache, plan: LayerPath) -> None:
    depth, _ = known.latest(plan)
    known.begin(plan)
    for at in range(depth + 1, len(plan) - 1):
        if at in known.partings(plan):
            known.offer(plan, at, [torch.zeros(4)])


def kept(known: PrefixCache) -> set[str]:
    return {"".join(map(str, beginning[2:])) for beginning in known._states}


def test_the_prefix_that_saves_least_is_dropped_first() -> None:
    known = PrefixCache(2 * 16)
    paths = [path(text) for text in ("abcx", "abcy", "abcz", "aw", "ab")]
    known.expect(paths)
    assert in_order(dict(enumerate(paths))) == [4, 0, 1, 2, 3]
    ran(known, paths[4])
    assert kept(known) == {"a", "ab"}
    ran(known, paths[0])  # abc: 2 plans to come, one layer each; a: 3 plans, one layer
    assert kept(known) == {"a", "abc"}
    for number in (1, 2, 3):
        assert known.latest(paths[number])[0] == (1 if number == 3 else 3)
        ran(known, paths[number])
    assert known.bytes == 2 * 16


def test_clear_drops_states_and_keeps_paths() -> None:
    known = PrefixCache(2 * 16)
    known.expect([path("ab"), path("ac")])
    ran(known, path("ab"))
    known.clear()
    assert (known.bytes, kept(known), known.latest(path("ac"))) == (0, set(), (0, None))
    known.expect([path("ad")])
    ran(known, path("ac"))
    assert kept(known) == {"a"}


def test_old_plans_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(branches, "PATHS", 3)
    known = PrefixCache(0)
    for number in range(10):
        known.expect([path(f"a{number}")])
        ran(known, path(f"a{number}"))
    assert list(known._begun) == [path(f"a{number}") for number in (7, 8, 9)]
