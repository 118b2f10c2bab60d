"""`kl`: how far a plan's predictions are from those of a model of the plan, the base mostly."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import final

import torch
from jaxtyping import Float, Float32, Int32, Int64
from torch import Tensor

from gptailor.evaluate.forward.requests import Measure, Request, Rows, Work
from gptailor.evaluate.objectives import base
from gptailor.evaluate.objectives.nll import PerToken, texts
from gptailor.plan.plan import Objective

LIKELIEST = 2048
"""How many of the reference's tokens are kept of each prediction, by themselves: 16 KiB.

Of SmolLM2-135M (49 152 tokens) with 1 to 5 layers dropped the divergence is then 1.6 to 2.2 % below
the whole one's (256 tokens: 7 to 10 %), in the same order. All tokens in float16 would be within
0.003 %, but take 96 KiB, and give the reference itself 1e-6, where this gives 0.
"""


@final
@dataclass(frozen=True)
class Divergence(PerToken):
    """KL(reference || plan) in nats a token, over the reference's likeliest tokens and the rest.

    The reference runs once, over all samples. Kept are its `likeliest` largest log-probabilities of
    each prediction, and that of all other tokens together. The divergence of two such groupings is
    never above the whole one's, 0 for equal distributions, and equal to the whole one's where the
    vocabulary has no more tokens than are kept.
    """

    model: str
    reference: base.Reference = field(repr=False)
    likeliest: int = LIKELIEST

    @cached_property
    def measure(self) -> Measure:
        """The divergence of each prediction. The reference runs when this is first asked for."""
        return compact(self.reference, self.model, self.samples, self.likeliest)


def compact(
    reference: base.Reference, model: str, requests: Sequence[Request], likeliest: int
) -> Measure:
    """Run the reference over all requests: the divergence of each prediction from the reference's.

    Of that are kept the likeliest tokens and their logarithms, the rest's last. The divergence is
    Σ p log(p / q), in float64, for the rows' reference p and q of the logits.
    """
    sizes: set[int] = set()

    def keep(
        logits: Float[Tensor, " n vocab"], targets: Int64[Tensor, " n"], rows: Rows
    ) -> Float[Tensor, " n kept"]:
        sizes.add(logits.shape[1])
        tokens = logits.topk(min(likeliest, logits.shape[1]), dim=1).indices
        return torch.cat([tokens.to(logits.dtype), grouped(logits, tokens)], dim=1)

    found = torch.cat(list(reference(model, Work(requests, keep)))).float()
    kept = found.shape[1] // 2
    likely: Int32[Tensor, " predictions likeliest"] = found[:, :kept].int()
    likely_logs: Float32[Tensor, " predictions groups"] = found[:, kept:].contiguous()
    vocabulary = sizes.pop()

    def against(
        logits: Float[Tensor, " n vocab"], targets: Int64[Tensor, " n"], rows: Rows
    ) -> Float[Tensor, " n 1"]:
        if logits.shape[1] != vocabulary:
            raise base.ObjectiveError(
                f"'kl' compares distributions over one vocabulary: the reference's has "
                f"{vocabulary} tokens, the plan's {logits.shape[1]}"
            )
        tokens = likely[rows.number].to(logits.device).long()
        logs = likely_logs[rows.number].to(logits.device)
        return divergence(logs.double(), grouped(logits, tokens).double())[:, None]

    return against


def grouped(
    logits: Float[Tensor, " n vocab"], tokens: Int64[Tensor, " n k"]
) -> Float[Tensor, " n groups"]:
    """Log-probabilities of the tokens, and of all others together where there are others.

    The rest is summed by itself: what is left of 1 would be lost in rounding.
    """
    total = logits.logsumexp(dim=1, keepdim=True)
    own = logits.gather(1, tokens) - total
    if tokens.shape[1] == logits.shape[1]:
        return own
    others = logits.scatter(1, tokens, float("-inf")).logsumexp(dim=1, keepdim=True)
    return torch.cat([own, others - total], dim=1)


def divergence(p: Float[Tensor, " n groups"], q: Float[Tensor, " n groups"]) -> Float[Tensor, " n"]:
    """Σ p log(p / q) of log-probabilities, as Σ p (q/p - 1 - log(q/p)).

    The two are equal, since both distributions sum to 1; in the second no term is negative, and
    rounding errors of q count in their squares: a plan that is the reference has 0, in other
    batches too.
    """
    gap = q - p
    near = p.exp() * (torch.expm1(gap.clamp(max=1)) - gap)
    far = q.exp() - p.exp() * (1 + gap)
    return torch.where(gap > 1, far, near).sum(dim=1)


def prepare_kl(objective: Objective, context: base.ObjectiveContext) -> base.PreparedObjective:
    """`kl(file, from)`. Raises CalibrationError; ObjectiveError where there are no models."""
    if context.reference is None:
        raise base.ObjectiveError("'kl' needs a plan's models, to compare with one of them")
    model = str(objective.arguments.get("from", "base"))
    traits = base.traits_of(objective, "spread")
    return Divergence(*traits, texts(objective, context), model, context.reference)
