"""The comparison of the ways to a goal: sizes first, then losses of the parts, then of plans."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import combinations, pairwise
from typing import TYPE_CHECKING, final

from gptailor.checkpoint.formats.gguf.kinds import FILE_TYPES, is_weighted
from gptailor.plugins.shrink.candidates import CutStep, Drafts, ShrinkCandidate
from gptailor.plugins.shrink.goal import PlanCost, ShrinkGoal
from gptailor.plugins.shrink.ways import ShrinkWay
from gptailor.reporting.measure import Estimate
from gptailor.reporting.quantities import with_error

if TYPE_CHECKING:
    from gptailor.evaluation.scores import PerSample
    from gptailor.plugins.shrink.losses import Losses

_WITH_CUTS = ("BF16", "Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q3_K_M", "Q3_K_S")
"""The types that are tried together with cuts, the largest first."""
_FAST = ("Q8_0", "Q4_K_M")
"""The types of the whole model that are measured where the goal isn't a number of bytes."""
_HOPELESS = 2.5
"""A plan that is predicted to lose this many times the least loss is not built."""
_NEAR = 0.02
"""Bits a byte beyond the least loss within which a plan is built in any case."""
_STEEPER = 1.5
"""The exponent of a loss's growth beyond the largest measured cut."""

_SURE = 0.9
"""The share of a measured gain in speed that is relied on."""
_LEAST_GAIN = 0.1
"""The least gain in speed by a share of parameters; its inverse is the largest."""


@final
@dataclass(frozen=True)
class Effort:
    """How much is measured: samples of plans, samples of cuts alone, bytes of calibration text.

    `whole` and `cut` are the numbers of types that are tried, and `built` the number of cut plans.
    No cut is measured if the whole model in fewer bits loses at most `settled` bits a byte.
    """

    samples: int
    screened: int
    calibrated: int
    whole: int
    cut: int
    built: int
    weighted: bool = True
    heals: bool = False
    settled: float = -math.inf


EFFORTS = {
    "quick": Effort(12, 6, 12_000, whole=1, cut=1, built=1, weighted=False, settled=0.01),
    "normal": Effort(18, 9, 28_000, whole=2, cut=2, built=3),
    "thorough": Effort(96, 32, 200_000, whole=4, cut=3, built=8, heals=True),
}
"""The efforts by their names."""


@final
@dataclass(frozen=True)
class ShrinkRow:
    """A candidate with its sizes, and its loss beyond the uncut model's in bits a byte.

    A plan that was not built has a `predicted` loss alone. Speeds are multiples of the uncut
    model's: of `decoding` in transformers, and of prompt and decoding in `llama`.cpp.
    """

    candidate: ShrinkCandidate
    cost: PlanCost
    met: bool
    loss: Estimate | None = None
    predicted: float | None = None
    decoding: float | None = None
    llama: tuple[float, float] | None = None


@final
class ShrinkComparison:
    """All candidates for a goal on one recipe. Without `losses` only sizes are compared."""

    def __init__(
        self,
        goal: ShrinkGoal,
        drafts: Drafts,
        effort: Effort,
        uncut: PlanCost,
        losses: "Losses | None" = None,
        on_row: Callable[[str], None] = lambda words: None,
    ) -> None:
        self.goal, self.drafts, self.effort, self.losses = goal, drafts, effort, losses
        self.uncut, self.on_row = uncut, on_row
        self.uncut_losses: PerSample | None = None
        self.weighted = False
        self.gains: dict[str, float] = {}
        self._alone: dict[str, dict[int, float]] = {}
        self._told: set[tuple[ShrinkCandidate, int]] = set()

    def learn_speeds(self, ways: Sequence[ShrinkWay], uncut: Drafts) -> None:
        """Measure how much faster each way makes the model, at a cut that should meet the goal."""
        assert self.losses is not None
        steps = {way.name: way.least(partial(self._meets, (), None)) for way in ways}
        made = [ShrinkCandidate((step,)) for step in steps.values() if step is not None]
        ratios = self.losses.speed_ratios(uncut, self.drafts, made) if made else []
        for candidate, ratio in zip(made, ratios, strict=True):
            cost = self.drafts.cost(candidate)
            assert cost is not None, "the cut has been sized"
            share = self.uncut.parameters / cost.parameters
            gain = _SURE * (ratio - 1) / (share - 1) if share > 1 else 0.0
            self.gains[candidate.way] = min(max(gain, _LEAST_GAIN), 1 / _LEAST_GAIN)

    # ------------------------------------------------------------------------------- the whole

    def whole(self) -> list[ShrinkRow]:
        """Return the whole model in fewer bits, measured: the largest types that meet the goal.

        If no type meets it, the nearest type. A matrix is used for all plans if it helps the first.
        """
        kinds = [kind for kind in FILE_TYPES if kind not in {"F32", "F16", "BF16"}]
        rows = [row for kind in kinds if (row := self.sized(ShrinkCandidate((), kind)))]
        rows = [row for row in rows if row.cost.bytes < self.uncut.bytes]
        rows.sort(key=lambda row: -row.cost.bytes)
        found = [row for row in rows if row.met][: self.effort.whole]
        if not self.goal.sized:
            found = [row for row in rows if row.candidate.kind in _FAST][: self.effort.whole]
        found = found or sorted(rows, key=lambda row: self.goal.excess(row.cost))[:1]
        if self.losses is None or not found:
            return found
        measured = [self.measured(found[0])]
        if self.effort.weighted and is_weighted(found[0].candidate.kind):
            weighted = self.sized(replace(found[0].candidate, weighted=True))
            if weighted is not None:
                measured.append(self.measured(weighted))
                self.weighted = _lost(measured[1]) < _lost(measured[0])
        for row in found[1:]:
            other = self.sized(replace(row.candidate, weighted=self.weighted))
            measured += [self.measured(other)] if other is not None else []
        return measured

    # -------------------------------------------------------------------------------- the cuts

    @property
    def kinds(self) -> list[str | None]:
        """The types for cuts: the types just too large for the whole model; None for a folder."""
        if not self.goal.sized or self.drafts.no_gguf:
            return [None]
        rows = [self.sized(self._typed((), kind)) for kind in _WITH_CUTS]
        sizes = [row for row in rows if row is not None and row.cost.bytes <= self.uncut.bytes]
        above = [row.candidate.kind for row in sizes if not row.met]
        return [*reversed(above[-self.effort.cut :])] or [None]

    def _typed(self, cuts: tuple[CutStep, ...], kind: str | None) -> ShrinkCandidate:
        return ShrinkCandidate(cuts, kind, weighted=self.weighted and is_weighted(kind))

    def cut(self, ways: Sequence[ShrinkWay], least: float) -> list[ShrinkRow]:
        """Return the best plan of each way and of each pair of ways, the promising ones measured.

        `least` is the least loss of the whole model that meets the goal.
        """
        rows = [*self._singles(ways, least)]
        rows += self._pairs(ways)
        best: dict[str, ShrinkRow] = {}
        for row in sorted(rows, key=_expected):
            best.setdefault(row.candidate.way, row)
        found, built = [], 0
        for row in best.values():
            hopeful = _expected(row) <= max(_HOPELESS * least, least + _NEAR)
            if self.losses is not None and built < self.effort.built and (hopeful or not built):
                found.append(self.measured(row))
                built += 1
                least = min(least, _lost(found[-1]))
            else:
                found.append(row)
        return found

    def _singles(self, ways: Sequence[ShrinkWay], least: float) -> Iterator[ShrinkRow]:
        for way in ways:
            for kind in self.kinds:
                step = way.least(partial(self._meets, (), kind))
                row = None if step is None else self.sized(self._typed((step,), kind))
                if step is None or row is None:
                    continue
                if self.losses is None:
                    yield row
                    break
                if (alone := self._measured_alone(step)) is None:
                    continue
                yield replace(row, predicted=self._predicted(row.candidate, ways))
                if alone > _HOPELESS * max(least, _NEAR):
                    break  # a larger type needs a larger cut

    def _pairs(self, ways: Sequence[ShrinkWay]) -> Iterator[ShrinkRow]:
        """Yield pairs of ways: half of the first way's cut, and the least of the second."""
        for first, second in combinations(ways, 2):
            for kind in self.kinds if self.losses is not None else ():
                full = first.least(partial(self._meets, (), kind))
                number = first.sizes.index(full.size) if full is not None else len(first.sizes)
                half = first.make(first.sizes[number // 2]) if number else None
                step = None if half is None else second.least(partial(self._meets, (half,), kind))
                if half is None or step is None or half == full:
                    continue
                row = self.sized(self._typed((half, step), kind))
                predicted = None if row is None else self._predicted(row.candidate, ways)
                if row is not None and predicted is not None:
                    yield replace(row, predicted=predicted)

    def _meets(self, others: tuple[CutStep, ...], kind: str | None, step: CutStep) -> bool:
        row = self.sized(self._typed((*others, step), kind))
        return row is not None and row.met

    # ---------------------------------------------------------------------------------- losses

    def sized(self, candidate: ShrinkCandidate) -> ShrinkRow | None:
        """Return a candidate with its sizes, or None if it can't be written.

        Before its speed is measured it is estimated by the share of parameters, and by the gain
        that was measured with its way.
        """
        cost = self.drafts.cost(candidate)
        if cost is None:
            return None
        share = self.uncut.parameters / cost.parameters
        speed = 1 + (share - 1) * self.gains.get(candidate.way, 1.0)
        return ShrinkRow(candidate, cost, self.goal.excess(cost, speed) <= 1)

    def measured(self, row: ShrinkRow, samples: int | None = None) -> ShrinkRow:
        """Return a row with its measured loss, or without one if it can't be measured."""
        assert self.losses is not None
        assert self.uncut_losses is not None
        count = samples or self.effort.samples
        loss = self.losses.difference(self.drafts, row.candidate, self.uncut_losses, count)
        if (row.candidate, count) not in self._told:
            self._told.add((row.candidate, count))
            words = "no loss" if loss is None else f"loses {with_error(*loss)} bits a byte"
            self.on_row(f"{row.candidate.words}: {words}")
        return replace(row, loss=loss)

    def _measured_alone(self, step: CutStep) -> float | None:
        """Return the loss of a cut alone, on fewer samples."""
        sized = self.sized(ShrinkCandidate((step,)))
        row = None if sized is None else self.measured(sized, self.effort.screened)
        if row is None or row.loss is None:
            return None
        self._alone.setdefault(step.way, {})[step.size] = row.loss.value
        return row.loss.value

    def _predicted(self, candidate: ShrinkCandidate, ways: Sequence[ShrinkWay]) -> float | None:
        """Return the sum of the losses of a candidate's type and cuts; None if one is unknown."""
        total = 0.0
        for cut in candidate.cuts:
            way = next(way for way in ways if way.name == cut.way)
            points = {
                way.sizes.index(size) + 1: loss
                for size, loss in self._alone.get(cut.way, {}).items()
            }
            if not points:
                return None
            total += interpolated(points, way.sizes.index(cut.size) + 1)
        if candidate.kind not in {None, "BF16"}:
            row = self.sized(replace(candidate, cuts=()))
            if row is None or (loss := self.measured(row).loss) is None:
                return None
            total += loss.value
        return total


def interpolated(points: dict[int, float], at: int) -> float:
    """Return the loss of a cut of `at` steps, from measured losses; no cut loses nothing."""
    known = sorted({0: 0.0, **points}.items())
    for (x, low), (y, high) in pairwise(known):
        if at <= y:
            return low + (high - low) * (at - x) / (y - x)
    last, loss = known[-1]
    return loss * float((at / last) ** _STEEPER)


def _lost(row: ShrinkRow) -> float:
    """Return a row's measured loss; infinite without one."""
    return float("inf") if row.loss is None else row.loss.value


def _expected(row: ShrinkRow) -> float:
    """Return a row's measured or predicted loss; infinite without both."""
    if row.loss is not None or row.predicted is None:
        return _lost(row)
    return row.predicted
