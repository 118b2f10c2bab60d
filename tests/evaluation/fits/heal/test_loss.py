"""The divergence from a teacher and its gradient, against autograd."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from gptailor.evaluation.fits.heal.train import divergence_and_slope, head_divergence, head_loss

Taught = tuple[Tensor, Tensor]


def drawn(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 2 * torch.randn(*shape, generator=generator, dtype=torch.float64)


def taught(rows: int, vocabulary: int, kept: int) -> Taught:
    """The likeliest tokens of a teacher, and the logarithms of their groups."""
    p = drawn(rows, vocabulary, seed=1).softmax(-1)
    likely, tokens = p.topk(kept)
    rest = 1 - likely.sum(-1, keepdim=True)
    groups = likely if kept == vocabulary else torch.cat([likely, rest], dim=1)
    return tokens, groups.log()


def naive(logits: Tensor, tokens: Tensor, logs: Tensor) -> Tensor:
    """Σ p log(p / q), as it stands."""
    q = logits.softmax(-1)
    kept = q.gather(1, tokens)
    if tokens.shape[1] != q.shape[1]:
        kept = torch.cat([kept, 1 - kept.sum(-1, keepdim=True)], dim=1)
    return (logs.exp() * (logs - kept.log())).sum()


@pytest.mark.parametrize("kept", [1, 3, 11, 12])
def test_the_slope_is_the_derivative(kept: int) -> None:
    logits = drawn(7, 12).requires_grad_(True)
    tokens, logs = taught(7, 12, kept)
    expected = naive(logits, tokens, logs)
    (derivative,) = torch.autograd.grad(expected, logits)
    loss, slope = divergence_and_slope(logits.detach().clone(), tokens, logs)
    torch.testing.assert_close(loss, expected.detach())
    torch.testing.assert_close(slope, derivative, atol=1e-12, rtol=1e-9)


@pytest.mark.parametrize("kept", [3, 12])
def test_a_student_that_is_the_teacher_has_neither_loss_nor_slope(kept: int) -> None:
    tokens, logs = taught(7, 12, kept)
    own = drawn(7, 12, seed=1)
    loss, slope = divergence_and_slope(own.clone(), tokens, logs)
    assert float(loss) < 1e-12
    assert float(slope.abs().max()) < 1e-12


def test_a_student_that_gives_the_rest_nothing_has_a_finite_slope() -> None:
    tokens, logs = taught(2, 12, 3)
    logits = torch.full((2, 12), -400.0)
    logits.scatter_(1, tokens, 0.0)
    loss, slope = divergence_and_slope(logits, tokens, logs.float())
    assert float(loss) > 1
    assert bool(slope.isfinite().all())


WEIGHT = drawn(5, 12, seed=2)
HEADS: dict[str, Callable[[Tensor], Tensor]] = {
    "plain": lambda hidden: hidden @ WEIGHT,
    "soft-capped": lambda hidden: 3 * torch.tanh(hidden @ WEIGHT / 3),
    "scaled": lambda hidden: (hidden @ WEIGHT) * 0.25,
}


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("kept", [3, 12])
@pytest.mark.parametrize("step", [1, 4, 100])
def test_the_gradient_of_a_head_equals_autograds_for_any_chunk(
    name: str, kept: int, step: int
) -> None:
    head, hidden = HEADS[name], drawn(9, 5).requires_grad_(True)
    tokens, logs = taught(9, 12, kept)
    expected = naive(head(hidden), tokens, logs)
    (derivative,) = torch.autograd.grad(expected, hidden)
    with torch.no_grad():
        loss, gradient = head_loss(head, hidden.detach(), tokens, logs, step)
        alone = head_divergence(head, hidden.detach(), tokens, logs, step)
    torch.testing.assert_close(loss, expected.detach())
    torch.testing.assert_close(alone, expected.detach())
    torch.testing.assert_close(gradient, derivative, atol=1e-12, rtol=1e-9)


def test_a_head_that_needs_its_logits_on_the_way_back_is_an_error_and_no_wrong_gradient() -> None:
    tokens, logs = taught(9, 12, 3)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        head_loss(lambda hidden: torch.tanh(hidden @ WEIGHT), drawn(9, 5), tokens, logs, 4)
