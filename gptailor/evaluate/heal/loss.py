"""KL(teacher || student) over the teacher's likeliest tokens and the rest, and its gradient."""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int, Int64
from torch import Tensor

from gptailor.evaluate.objectives.kl import divergence, grouped

Head = Callable[[Float[Tensor, " n width"]], Float[Tensor, " n vocab"]]
"""The logits, in float32, of hidden states after the last layer."""


def head_loss(
    head: Head,
    hidden: Float[Tensor, " n width"],
    tokens: Int[Tensor, " n kept"],
    logs: Float[Tensor, " n groups"],
    step: int,
) -> tuple[Float[Tensor, ""], Float[Tensor, " n width"]]:
    """The sum of the rows' divergences, in float64, and its gradient with respect to `hidden`.

    Logits are made for `step` rows at once, and none is kept: what a head makes of the longest
    vocabulary is the largest tensor of all. Nothing of the head itself learns.
    """
    total = torch.zeros((), dtype=torch.float64, device=hidden.device)
    gradient = torch.empty_like(hidden)
    for start in range(0, len(hidden), step):
        some = slice(start, start + step)
        with torch.enable_grad():
            rows = hidden[some].detach().requires_grad_(True)
            logits = head(rows)
        with torch.no_grad():
            loss, slope = divergence_and_slope(logits, tokens[some].long(), logs[some])
        total += loss
        (gradient[some],) = torch.autograd.grad(logits, rows, slope)
    return total, gradient


def head_divergence(
    head: Head,
    hidden: Float[Tensor, " n width"],
    tokens: Int[Tensor, " n kept"],
    logs: Float[Tensor, " n groups"],
    step: int,
) -> Float[Tensor, ""]:
    """The sum of the rows' divergences alone, in float64."""
    total = torch.zeros((), dtype=torch.float64, device=hidden.device)
    for start in range(0, len(hidden), step):
        some = slice(start, start + step)
        own = grouped(head(hidden[some]), tokens[some].long())
        total += divergence(logs[some].double(), own.double()).sum()
    return total


def divergence_and_slope(
    logits: Float[Tensor, " n vocab"],
    tokens: Int64[Tensor, " n kept"],
    logs: Float[Tensor, " n groups"],
) -> tuple[Float[Tensor, ""], Float[Tensor, " n vocab"]]:
    """Σ p log(p / q) of all rows, and its derivative by the logits; the logits are used up.

    With p of the teacher, q of the logits, and r(p), r(q) the mass of all other tokens: q − p for a
    token that is kept, q (1 − r(p) / r(q)) for another one.
    """
    total = logits.logsumexp(dim=1, keepdim=True)
    own = logits.gather(1, tokens) - total
    q = logits.sub_(total).exp_()
    kept = q.gather(1, tokens)
    if logs.shape[1] == tokens.shape[1]:
        loss = divergence(logs.double(), own.double()).sum()
        return loss, q.scatter_add_(1, tokens, -logs.exp())
    q.scatter_(1, tokens, 0.0)
    rest = q.sum(dim=1, keepdim=True).clamp_min(torch.finfo(q.dtype).tiny)
    groups = torch.cat([own, rest.log()], dim=1)
    loss = divergence(logs.double(), groups.double()).sum()
    p = logs.exp()
    q.mul_(1 - p[:, -1:] / rest)
    return loss, q.scatter_(1, tokens, kept - p[:, :-1])
