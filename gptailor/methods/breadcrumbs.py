"""Task vectors without their largest and smallest entries."""

from typing import final

from gptailor.methods.arithmetic import (
    ByName,
    Chunk,
    Inputs,
    Measured,
    Vector,
    thresholds,
    within,
)
from gptailor.methods.task_vectors import TrimmedTaskVectors


class MiddleEntries(TrimmedTaskVectors):
    """Task vectors without outliers and small entries."""

    def measure(self, inputs: Inputs, arguments: ByName) -> Measured:
        """Return the largest and the smallest kept magnitude of each source, in pairs."""
        ranks: list[tuple[int, ...]] = []
        both = (arguments[name] for name in ("density", "gamma"))
        for density, gamma in zip(*both, strict=True):
            kept = max(1, round(density * inputs.elements))
            above = min(round(gamma * inputs.elements), inputs.elements - kept)
            ranks.append((above + 1, above + kept) if kept < inputs.elements else ())
        limits = thresholds(inputs, ranks)
        return tuple(number for pair in limits for number in pair or (2**31 - 1, 0))

    def kept(
        self, chunk: Chunk, arguments: ByName, measured: Measured
    ) -> tuple[list[Vector], Measured]:
        """Return the task vectors, 0 where their magnitude is beyond either limit."""
        limits = zip(chunk.task_vectors(), measured[1::2], measured[::2], strict=True)
        return [within(vector, int(low), int(high)) for vector, low, high in limits], ()


@final
class Breadcrumbs(MiddleEntries):
    """Task arithmetic without the outliers and without the small entries.

    Formula: θ_b + Σ scale · w_i · τ_i where low_i ≤ |τ_i| ≤ high_i, in source order; with normalize
    = yes the weights are divided by their sum. A source keeps k = max(1, round(density · n)) of
    its n entries, without the min(round(gamma · n), n - k) largest and the smallest rest. An entry
    that equals the largest or smallest kept magnitude is kept, so that equal magnitudes share one
    fate and order doesn't matter.
    Granularity: the masks per tensor and source; the sum per element.
    Arithmetic: float32, thresholds exact; the result is float32.
    Degenerate: density 1 (or all magnitudes equal) masks nothing: task arithmetic with the weights
    scale · w_i, bit for bit; a tensor of one entry keeps it; scale 0 or task vectors 0 give θ_b to
    the byte; equal sources act as one with the sum of their weights. NaN counts as the largest
    magnitude.
    Paper: arXiv 2312.06795.
    """

    name = "breadcrumbs"


@final
class BreadcrumbsTies(MiddleEntries):
    """Task vectors without outliers and small entries, merged where they agree on a sign.

    Formula: θ_b + scale · Σ w_i τ_i over the kept entries where w_i τ_i has the sign of the sum of
    all kept entries; with normalize = yes divided by Σ w_i of these entries. The entries are kept
    as in `breadcrumbs`.
    Granularity: the masks per tensor and source; sign and sum per element.
    Arithmetic: float32, thresholds exact; the result is float32.
    Degenerate: density 1 is `ties` of density 1; one source is `breadcrumbs`; where the kept ones
    sum to 0 θ_b stays to the byte; so it does with scale 0.
    Paper: arXiv 2312.06795 and 2306.01708.
    """

    name = "breadcrumbs_ties"
