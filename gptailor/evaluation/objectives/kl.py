"""`kl` and `acceptance`: a plan's predictions compared with a model of the plan, mostly the base.

`kl` is their divergence; `acceptance` is the share of a draft model's tokens that a target accepts.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeAlias

import torch
from jaxtyping import Float, Float32, Int32, Int64
from torch import Tensor

from gptailor.evaluation.forward.requests import Measure, Request, Work
from gptailor.evaluation.objectives import base
from gptailor.evaluation.objectives.likelihood import PerToken, texts
from gptailor.plan.plan import Objective
from gptailor.reporting.measure import ScaleBy

LIKELIEST = 2048
"""The number of the reference's tokens that are kept of each prediction, in 16 KiB.

For SmolLM2-135M (49 152 tokens) with 1 to 5 layers dropped, the divergence is then 1.6 to 2.2 %
below the exact one, in the same order. With 256 tokens it is 7 to 10 % below. All tokens in float16
would be within 0.003 %. But they take 96 KiB, and the reference's own divergence is 1e-6, not 0.
"""


Compare: TypeAlias = Callable[
    [Float[Tensor, " n groups"], Float[Tensor, " n groups"]], Float[Tensor, " n"]
]
"""Compares log-probabilities of the reference and of the plan, row by row."""


def compact(
    reference: base.Reference,
    model: str,
    requests: Sequence[Request],
    likeliest: int,
    compare: Compare,
) -> Measure:
    """Run the reference over all requests, and return the measure that compares with it.

    Of each prediction the `likeliest` largest log-probabilities are kept, and the log-probability
    of all other tokens together. `compare` receives the reference's and the plan's in float64. The
    comparison is exact if the vocabulary has no more tokens than are kept.
    """
    sizes: set[int] = set()

    def keep(
        logits: Float[Tensor, " n vocab"],
        targets: Int64[Tensor, " n"],
        numbers: Int64[Tensor, " n"],
    ) -> Float[Tensor, " n kept"]:
        sizes.add(logits.shape[1])
        tokens = logits.topk(min(likeliest, logits.shape[1]), dim=1).indices
        return torch.cat([tokens.to(logits.dtype), grouped(logits, tokens)], dim=1)

    predictions = torch.cat(list(reference(model, Work(requests, keep)))).float()
    kept = predictions.shape[1] // 2
    likely: Int32[Tensor, " predictions likeliest"] = predictions[:, :kept].int()
    likely_logs: Float32[Tensor, " predictions groups"] = predictions[:, kept:].contiguous()
    vocabulary = sizes.pop()

    def against(
        logits: Float[Tensor, " n vocab"],
        targets: Int64[Tensor, " n"],
        numbers: Int64[Tensor, " n"],
    ) -> Float[Tensor, " n 1"]:
        if logits.shape[1] != vocabulary:
            raise base.ObjectiveError(
                f"expected the same vocabulary: the reference has "
                f"{vocabulary} tokens, the plan's {logits.shape[1]}"
            )
        tokens = likely[numbers].to(logits.device).long()
        logs = likely_logs[numbers].to(logits.device)
        return compare(logs.double(), grouped(logits, tokens).double())[:, None]

    return against


def grouped(
    logits: Float[Tensor, " n vocab"], tokens: Int64[Tensor, " n k"]
) -> Float[Tensor, " n groups"]:
    """Return log-probabilities of the tokens, and of all other tokens together if there are any.

    The rest is summed by itself, since rounding would lose a difference from 1.
    """
    total = logits.logsumexp(dim=1, keepdim=True)
    own = logits.gather(1, tokens) - total
    if tokens.shape[1] == logits.shape[1]:
        return own
    rest_total = logits.scatter(1, tokens, float("-inf")).logsumexp(dim=1, keepdim=True)
    return torch.cat([own, rest_total - total], dim=1)


def divergence(p: Float[Tensor, " n groups"], q: Float[Tensor, " n groups"]) -> Float[Tensor, " n"]:
    """Compute Σ p log(p / q) of log-probabilities, as Σ p (q/p - 1 - log(q/p)): KL in nats.

    Over the reference's likeliest tokens and the rest it is never above the exact divergence.

    The two sums are equal, since both distributions sum to 1. In the second sum no term is
    negative, and rounding errors of q enter squared. So a plan that equals the reference has 0, in
    other batches too.
    """
    gap = q - p
    near = p.exp() * (torch.expm1(gap.clamp(max=1)) - gap)
    far = q.exp() - p.exp() * (1 + gap)
    return torch.where(gap > 1, far, near).sum(dim=1)


def _prepare_beside(
    compare: Compare,
    normalise: ScaleBy,
    objective: Objective,
    context: base.ObjectiveContext,
) -> base.PreparedObjective:
    """Prepare an objective `name(file, from)`, by how it compares predictions.

    Raises CalibrationError; ObjectiveError without models.
    """
    if context.reference is None:
        raise base.ObjectiveError(
            f"'{objective.name}' needs a plan, to compare with one of its models"
        )
    model = str(objective.arguments.get("from", "base"))
    beside = partial(compact, context.reference, model, likeliest=LIKELIEST, compare=compare)
    return PerToken(*base.traits_of(objective, normalise), texts(objective, context), beside)


prepare_kl = partial(_prepare_beside, divergence, "spread")
"""Prepares `kl(file, from)`, as `_prepare_beside` does."""


# ------------------------------------------------------------------------------------- acceptance


def overlap(p: Float[Tensor, " n groups"], q: Float[Tensor, " n groups"]) -> Float[Tensor, " n"]:
    """Compute 1 - ½ Σ |p - q| of log-probabilities, which equals Σ min(p, q).

    It is the expected share of the plan's drafted tokens that the reference accepts: the acceptance
    rate of speculative sampling at temperature 1. It is 1 for equal rows and 0 for rows without a
    common token. Five decimals stay, since further ones are rounding errors of float32.

    The reference's likeliest tokens and the rest are compared, so the value is never below the
    exact one. For SmolLM2-135M with 1 to 15 layers dropped it is 0.001 to 0.008 above.

    Leviathan, Kalman, Matias, "Fast Inference from Transformers via Speculative Decoding", 2023,
    https://arxiv.org/abs/2211.17192.
    """
    return (1 - (p.exp() - q.exp()).abs().sum(dim=1) / 2).round(decimals=5)


def prepare_acceptance(
    objective: Objective, context: base.ObjectiveContext
) -> base.PreparedObjective:
    """Prepare `acceptance(file, from)`.

    Raises CalibrationError; ObjectiveError without models, and for several vocabularies.
    """
    if context.piece_bytes is not None or context.cut:
        raise base.ObjectiveError(
            "'acceptance' needs the same vocabulary in all models; evaluate plans and models "
            "with the same tokenizer, without 'vocabulary'"
        )
    return _prepare_beside(overlap, "base", objective, context)
