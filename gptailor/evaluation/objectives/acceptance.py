"""`acceptance`: the share of a draft model's tokens that a target model accepts."""

from jaxtyping import Float
from torch import Tensor

from gptailor.evaluation.objectives import base
from gptailor.evaluation.objectives.kl import prepare_beside
from gptailor.plan.plan import Objective


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
            "'acceptance' is a share of tokens, and the models have different vocabularies: "
            "evaluate plans and models with the same tokenizer together, without 'vocabulary'"
        )
    return prepare_beside(overlap, "base", objective, context)
