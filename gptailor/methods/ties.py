"""Task vectors trimmed, and merged where they agree on a sign."""

from typing import final

import torch

from gptailor.methods import arithmetic
from gptailor.methods.arithmetic import ByName, Chunk, Inputs, Kernel, Measured, Vector


@final
class Ties(Kernel):
    """Trim, elect a sign, and merge the task vectors that agree with it.

    Formula: θ_b + scale · the mean of those kept τ_i whose sign is that of the sum of all kept
    ones. Kept are the k = max(1, round(density · n)) largest |τ_i| of a source, and all that equal
    the k-th: which entries are kept doesn't depend on their order.
    Granularity: the trimming per tensor and source; sign and mean per element.
    Arithmetic: float32, thresholds exact; the result is float32.
    Degenerate: density 1 trims nothing; one source is task arithmetic with its largest entries;
    equal sources act as one; where the kept ones sum to 0 (all task vectors 0, two that cancel)
    θ_b stays to the byte; so it does with scale 0. NaN counts as the largest magnitude and stays.
    Paper: arXiv 2306.01708.
    """

    name = "ties"

    def measure(self, inputs: Inputs, given: ByName) -> Measured:
        """The smallest kept magnitude of each source."""
        kept = max(1, round(arithmetic.one_number(given, "density") * inputs.elements))
        if kept >= inputs.elements:
            return (0,) * len(inputs.models)
        return tuple(least for (least,) in arithmetic.thresholds(inputs, (kept,)))

    def combine(self, chunk: Chunk, given: ByName, measured: Measured) -> Vector:
        """θ_b + scale · the mean of those that agree."""
        trimming = zip(chunk.task_vectors(), measured, strict=True)
        kept = [arithmetic.at_least(vector, int(least)) for vector, least in trimming]
        sign = torch.sign(arithmetic.total(kept))
        agreeing, count = torch.zeros_like(sign), torch.zeros_like(sign)
        for vector in kept:
            share = torch.relu_(vector * sign)  # its magnitude where it agrees, else 0
            agreeing.add_(share)
            count.add_(share.sign_())
        mean = agreeing.mul_(sign).div_(count.clamp_(min=1.0))
        return arithmetic.base_moved(chunk, [mean], [arithmetic.one_number(given, "scale")])
