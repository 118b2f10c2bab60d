"""Plans that begin alike: the same numbers as each alone, in fewer layers, within the budget."""

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedModel

from gptailor.evaluation.forward import prefix_cache as branches
from gptailor.evaluation.forward.evaluator import Evaluator
from gptailor.evaluation.forward.prefix_cache import PrefixCache, PrefixNode, in_order
from gptailor.evaluation.forward.requests import Work, pack
from gptailor.evaluation.scores import Failure
from tests.evaluation.lent import Lent, broken, lent, likelihood, loaded, requests
from tests.support.thorough import drawn

pytestmark = pytest.mark.usefixtures("one_thread")

ASKED = requests(10, longest=16)
WORKS = [Work(ASKED, likelihood)]
STATE = 16 * 4 * sum(batch.tokens.numel() for batch in pack(WORKS, 64).batches)
"""Bytes of the hidden states of all batches."""

ORDERS = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=5), min_size=1, max_size=6)


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedModel:
    return loaded("llama", tmp_path_factory.mktemp("pool"))


def plans(pool: PreTrainedModel, orders: Sequence[Sequence[int]]) -> list[Lent]:
    return [lent(pool, order) for order in orders]


def flat(found: object) -> torch.Tensor:
    assert isinstance(found, list), found
    return torch.cat([values for work in found for values in work])


def together(evaluator: Evaluator, population: Sequence[Lent]) -> dict[int, torch.Tensor]:
    results = evaluator.run_all(dict(enumerate(population)), WORKS)
    return {number: flat(found) for number, found in results}


# ------------------------------------------------------------------------------------- the numbers


@settings(max_examples=drawn(15))
@given(st.lists(ORDERS, min_size=1, max_size=2), st.integers(0, 4))
def test_the_same_numbers_as_alone(
    pool: PreTrainedModel, generations: list[list[list[int]]], states: int
) -> None:
    evaluator = Evaluator(batch_tokens=64, cache=states * STATE)
    layers = 0
    for orders in generations:
        found = together(evaluator, plans(pool, orders))
        assert sorted(found) == list(range(len(orders)))
        for number, order in enumerate(orders):
            alone = flat(Evaluator(batch_tokens=64).run(lent(pool, order), WORKS))
            assert torch.equal(found[number], alone)
            layers += len(order)
    assert evaluator.layers_run + evaluator.layers_saved == layers
    assert evaluator._prefixes.bytes <= states * STATE


def test_a_common_beginning_runs_once(pool: PreTrainedModel) -> None:
    population = plans(pool, [[0, 1, 2, 3], [4, 5], [0, 1, 3, 2], [0, 1, 2, 5], [0, 1]])
    evaluator = Evaluator(batch_tokens=64, cache=2 * STATE)
    found = [number for number, _ in evaluator.run_all(dict(enumerate(population)), WORKS)]
    assert found == [4, 0, 3, 2, 1]  # the tree's order, the first plan's branch first
    assert (evaluator.layers_run, evaluator.layers_saved) == (9, 7)


def test_without_room_every_layer_runs(pool: PreTrainedModel) -> None:
    evaluator = Evaluator(batch_tokens=64, cache=STATE - 1)
    together(evaluator, plans(pool, [[0, 1, 2], [0, 1, 3]]))
    assert (evaluator.layers_run, evaluator.layers_saved) == (6, 0)


def test_twins_run_once(pool: PreTrainedModel) -> None:
    evaluator = Evaluator(batch_tokens=64, cache=STATE)
    found = together(evaluator, plans(pool, [[0, 1, 2], [0, 1, 2]]))
    assert torch.equal(found[0], found[1])
    assert (evaluator.layers_run, evaluator.layers_saved) == (3, 3)


def test_another_start_has_nothing_in_common(pool: PreTrainedModel) -> None:
    one, other = plans(pool, [[0, 1, 2], [0, 1, 2]])
    other.start = "another"
    evaluator = Evaluator(batch_tokens=64, cache=STATE)
    together(evaluator, [one, other])
    assert evaluator.layers_saved == 0


def test_other_requests_have_nothing_in_common(pool: PreTrainedModel) -> None:
    plan = lent(pool, [0, 1, 2])
    evaluator = Evaluator(batch_tokens=64, cache=9 * STATE)
    together(evaluator, [plan, plan])
    alone = Evaluator(batch_tokens=64).run(plan, [Work(ASKED[:5], likelihood)])
    assert torch.equal(flat(evaluator.run(plan, [Work(ASKED[:5], likelihood)])), flat(alone))
    assert (evaluator.layers_run, evaluator.layers_saved) == (6, 3)
    again = Work(list(ASKED), likelihood)  # equal requests are the same ones
    evaluator.run(plan, [again])
    assert (evaluator.layers_run, evaluator.layers_saved) == (6, 6)


def test_plans_one_by_one_share_where_earlier_ones_parted(pool: PreTrainedModel) -> None:
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
    found = dict(evaluator.run_all(dict(enumerate(population)), WORKS))
    assert found[1] == Failure("error", "ValueError: not this one")
    for number, order in ((0, [0, 1, 2]), (2, [0, 1, 4])):
        alone = Evaluator(batch_tokens=64).run(lent(pool, order), WORKS)
        assert torch.equal(flat(found[number]), flat(alone))


def test_a_population_that_is_given_up_is_forgotten(pool: PreTrainedModel) -> None:
    evaluator = Evaluator(batch_tokens=64, cache=STATE)
    results = evaluator.run_all(dict(enumerate(plans(pool, [[0, 1], [0, 2], [3]]))), WORKS)
    next(results)
    results.close()
    assert all(node.ahead == 0 for node in nodes(evaluator._prefixes.root))


# ---------------------------------------------------------------------------------------- the tree


def nodes(node: PrefixNode) -> list[PrefixNode]:
    return [node, *(one for child in node.children.values() for one in nodes(child))]


def path(text: str) -> tuple[object, ...]:
    return ("batches", "start", *text)


def ran(tree: PrefixCache, leaf: PrefixNode) -> None:
    depth, _ = tree.latest(leaf)
    tree.begin(leaf)
    for at in range(depth, leaf.depth):
        tree.offer(leaf, at + 1, [torch.zeros(4)])
    tree.trim()


def kept(tree: PrefixCache) -> set[str]:
    return {
        "".join(map(str, [one.key for one in node.line()][::-1][3:]))
        for node in nodes(tree.root)
        if node.state is not None
    }


def test_what_saves_least_gives_way() -> None:
    tree = PrefixCache(2 * 16)
    paths = [path(text) for text in ("abcx", "abcy", "abcz", "aw", "ab")]
    leaves = tree.expect(paths)
    assert in_order(dict(enumerate(paths))) == [4, 0, 1, 2, 3]
    ran(tree, leaves[4])
    assert kept(tree) == {"a", "ab"}
    ran(tree, leaves[0])  # abc: 2 plans to come, one layer each; a: 3 plans, one layer
    assert kept(tree) == {"a", "abc"}
    for number in (1, 2, 3):
        assert tree.latest(leaves[number])[0] == (1 if number == 3 else 3)
        ran(tree, leaves[number])
    assert tree.bytes == 2 * 16


def test_letting_go_keeps_what_is_known() -> None:
    tree = PrefixCache(2 * 16)
    leaves = tree.expect([path("ab"), path("ac")])
    ran(tree, leaves[0])
    tree.clear()
    assert (tree.bytes, kept(tree), tree.latest(leaves[1])) == (0, set(), (0, None))
    leaves += tree.expect([path("ad")])
    ran(tree, leaves[1])
    assert kept(tree) == {"a"}


def test_old_plans_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(branches, "PATHS", 3)
    tree = PrefixCache(0)
    for number in range(10):
        [leaf] = tree.expect([path(f"a{number}")])
        ran(tree, leaf)
    assert len(nodes(tree.root)) == 4 + 3
