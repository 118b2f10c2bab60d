from itertools import combinations

import pytest
import torch
from torch import Tensor

from gptailor.evaluation.fits.bridge.fit import Statistics, solve, weights
from gptailor.evaluation.fits.fit import BridgeError
from gptailor.evaluation.fits.narrower import kept_neurons, sums_of_kept

TOKENS, NEURONS, WIDTH = 200, 8, 3


def drawn(seed: int = 0) -> tuple[Statistics, Tensor, Tensor, Tensor]:
    """Sums of random tokens with related neurons, and their X, Ω and W."""
    chance = torch.Generator().manual_seed(seed)
    mixed = torch.eye(NEURONS) + 0.3 * torch.randn(NEURONS, NEURONS, generator=chance)
    x = torch.randn(TOKENS, NEURONS, generator=chance) @ mixed
    omega = weights(torch.randn(TOKENS, WIDTH, generator=chance))
    rows = torch.randn(NEURONS, WIDTH, generator=chance).double()
    return sums_of(x, omega), x.double(), omega, rows


def sums_of(x: Tensor, omega: Tensor) -> Statistics:
    sums = Statistics(NEURONS, 0)
    sums.add(x, x[:, :0], omega)
    return sums


def error(kept: Tensor, seed: int) -> float:
    """The weighted squared error that these neurons leave, fitted by least squares of tokens."""
    _, x, omega, rows = drawn(seed)
    root = omega.sqrt()[:, None]
    target = (x @ rows) * root
    fit = torch.linalg.lstsq(x[:, kept] * root, target).solution
    return float((target - x[:, kept] * root @ fit).square().sum())


@pytest.mark.parametrize("seed", range(4))
def test_the_neuron_with_the_least_error_after_a_refit_is_removed(seed: int) -> None:
    sums, *_, rows = drawn(seed)
    kept = kept_neurons(sums, rows, NEURONS - 1, 0.0)
    each = [error(torch.tensor(item), seed) for item in combinations(range(NEURONS), NEURONS - 1)]
    assert error(kept, seed) == pytest.approx(min(each))
    assert len(set(each)) == NEURONS


@pytest.mark.parametrize("count", [1, 3, 5])
def test_removing_dependent_neurons_leaves_no_error(count: int) -> None:
    chance = torch.Generator().manual_seed(count)
    few = torch.randn(TOKENS, count, generator=chance)
    x = few @ torch.randn(count, NEURONS, generator=chance)
    rows = torch.randn(NEURONS, WIDTH, generator=chance).double()
    sums = sums_of(x, torch.ones(TOKENS).double())
    kept = kept_neurons(sums, rows, count, 0.0)
    fit = solve(sums_of_kept(sums, rows, kept), 1e-9)
    wide, narrow = x.double() @ rows, x.double()[:, kept] @ (rows[kept] + fit.change)
    assert torch.allclose(wide, narrow, atol=1e-4)
    assert len(kept) == count


@pytest.mark.parametrize("ridge", [1e-3, 0.1])
def test_the_sums_of_kept_neurons_are_those_of_their_tokens(ridge: float) -> None:
    sums, x, omega, rows = drawn()
    kept = torch.tensor([0, 2, 3, 7])
    gone = torch.tensor([1, 4, 5, 6])
    read = Statistics(len(kept), WIDTH)
    read.add(x[:, kept], x[:, gone] @ rows[gone], omega)
    made = sums_of_kept(sums, rows, kept)
    assert made.count == TOKENS
    assert torch.allclose(made.squares, read.squares)
    one, other = solve(made, ridge), solve(read, ridge)
    assert torch.allclose(one.change, other.change)
    assert one.explained == pytest.approx(other.explained)


def test_dead_neurons_leave_first_and_a_choice_leaves_the_sums_alone() -> None:
    _, x, omega, rows = drawn()
    x[:, [2, 5]] = 0
    sums = sums_of(x, omega)
    before = sums.gram.clone()
    assert kept_neurons(sums, rows, 6, 0.1).tolist() == [0, 1, 3, 4, 6, 7]
    assert torch.equal(sums.gram, before)


def test_all_neurons_stay_and_equal_neurons_leave_by_their_numbers() -> None:
    sums, *_, rows = drawn()
    assert kept_neurons(sums, rows, NEURONS, 0.1).tolist() == list(range(NEURONS))
    none = Statistics(NEURONS, 0)
    assert kept_neurons(none, torch.ones_like(rows), 5, 0.1).tolist() == [3, 4, 5, 6, 7]


def test_large_neurons_that_depend_on_each_other_are_refused() -> None:
    chance = torch.Generator().manual_seed(0)
    x = torch.randn(TOKENS, NEURONS, generator=chance)
    x[:, :3] = 1e8 * torch.randn(TOKENS, 1, generator=chance)
    sums = sums_of(x, weights(torch.randn(TOKENS, WIDTH, generator=chance)))
    with pytest.raises(BridgeError, match="depend on each other"):
        kept_neurons(sums, torch.ones(NEURONS, WIDTH).double(), 4, 0.0)
