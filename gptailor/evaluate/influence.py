"""Block influence: how much each layer turns the hidden state (ShortGPT, arXiv 2403.03853)."""

from collections.abc import Sequence

import torch

from gptailor.evaluate.forward import Evaluator
from gptailor.evaluate.work import LiveModel, Work


def block_influence(
    evaluator: Evaluator, live: LiveModel, works: Sequence[Work]
) -> tuple[float, ...]:
    """1 − the mean cosine of a layer's input and output, for each layer, from one forward pass.

    The mean is over the hidden states that predict what the works ask for; in float64.
    """
    sums = [0.0] * len(live.layers)
    count = 0
    for step in evaluator.walk(live, works):
        wanted = step.batch.wanted.to(step.before.device)
        before, after = (one.flatten(0, 1)[wanted].double() for one in (step.before, step.after))
        sums[step.layer] += float(torch.cosine_similarity(before, after, dim=-1).sum())
        count += len(wanted) if step.layer == 0 else 0
    return tuple(1 - total / count for total in sums)
