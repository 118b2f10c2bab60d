"""A trial from its request to its line of the journal, `Trial`, and all trials: `Ledger`."""

import math
from collections.abc import Hashable, Iterable, Sequence
from typing import Annotated, Literal, NamedTuple, TypeAlias, final

import numpy as np
from jaxtyping import Float
from pydantic import Field, PlainSerializer, PlainValidator, model_validator
from pydantic.dataclasses import dataclass

from gptailor.evaluation.scores import Failure
from gptailor.plan.plan import Several
from gptailor.plan.stage import STAGES, Stage
from gptailor.reporting.measure import (
    POINTS,
    SHARES,
    SPREADS,
    Estimate,
    LossMeasure,
    spread_of,
)
from gptailor.searching.run.origin import TrialOrigin
from gptailor.searching.run.records import Aim, Line, Seconds, TrialNumber
from gptailor.searching.run.scores import (
    RECORD,
    Comparison,
    NotedSamples,
    Scores,
    StandardError,
    front,
    loss_unit,
    refuse_unpaired,
)
from gptailor.searching.space.genome import Genome, genome_from_json, genome_to_json

Phase: TypeAlias = Literal["recipe", "start", "random", "search", "final"]
ORDER: tuple[Phase, Phase, Phase, Phase, Phase] = ("recipe", "start", "random", "search", "final")
RECIPES, STARTS, RANDOM, SEARCH, FINAL = ORDER
"""The phases of trials, in their order: recipes with nothing dropped; starting plans; a few random
plans; a strategy's asks; the best plans once more, bridged or healed."""


_Small = Annotated[int, Field(ge=0, le=10**6)]
_Samples = Annotated[int, Field(ge=1, le=10**9)]


@final
@dataclass(frozen=True, eq=False, config=RECORD)
class TrialRequest:
    """An evaluation to be made, and its origin.

    Within its `phase` it has the number of its `ask` and its place in the ask, its `slot`.
    `asked_after` trials had been told when it was asked for.
    """

    phase: Phase
    ask: _Small
    slot: _Small
    origin: TrialOrigin
    genome: Annotated[Genome, PlainValidator(genome_from_json), PlainSerializer(genome_to_json)]
    samples: _Samples
    stage: Stage
    asked_after: TrialNumber

    @property
    def key(self) -> tuple[str, int, int]:
        """The key of the request among all requests of the search."""
        return self.phase, self.ask, self.slot


@final
@dataclass(frozen=True, eq=False, config=RECORD)
class Trial:
    """A told evaluation, as a line of the journal has it. `number` counts from 0.

    `plan` is the digest of the plan's canonical text, `share` the used part of the full samples.
    `values` are in the user's own directions, one for each objective; None after a `failure`.
    `same_as` is an earlier trial with the same plan: then nothing was evaluated. `per_sample` are
    the samples of each objective; empty without a score. A trial that was given up `stopped` after
    this many samples: then `share` and all values belong to these samples.
    """

    number: TrialNumber
    request: TrialRequest
    plan: Line
    share: Annotated[float, Field(gt=0, le=1)]
    values: Several[float] | None = None
    stderrs: Several[StandardError] | None = None
    failure: Failure | None = None
    seconds: Seconds = 0.0
    same_as: TrialNumber | None = None
    per_sample: NotedSamples = ()
    stopped: _Samples | None = None

    @model_validator(mode="after")
    def _agrees(self) -> "Trial":
        if (self.values is None) != (self.stderrs is None):
            raise ValueError("expected scores with errors, or neither")
        if self.values is not None and self.stderrs is not None:
            refuse_unpaired(self.values, self.stderrs, self.per_sample)
        if self.stopped is not None and self.stopped > self.request.samples:
            raise ValueError("expected fewer samples in a trial that was given up")
        followed = 0 if self.same_as is None else self.same_as + 1
        if max(self.request.asked_after, followed) > self.number:
            raise ValueError("expected a trial with a higher number than the trials before it")
        return self

    @property
    def scores(self) -> Scores | None:
        """Its own scores; None after a failure."""
        if self.values is None or self.stderrs is None:
            return None
        return Scores(self.values, self.stderrs, self.per_sample)

    @property
    def samples(self) -> int:
        """The number of samples behind its values."""
        return self.request.samples if self.stopped is None else self.stopped

    @property
    def cost(self) -> float:
        """The cost of the trial, in evaluations at full fidelity."""
        return 0.0 if self.same_as is not None else self.share

    @property
    def full(self) -> bool:
        """Return whether all samples were used."""
        return self.share == 1.0


def as_numpy(genome: Genome) -> Genome:
    """Return the genome in the memory of numpy, in the dtypes of records."""
    return Genome(
        np.asarray(genome.bits, np.bool_),
        np.asarray(genome.picks, np.int32),
        np.asarray(genome.reals, np.float32),
    )


@final
class EvaluationKey(NamedTuple):
    """The key of an evaluation: a plan's digest, the number of samples, how far it is repaired."""

    plan: str
    samples: int
    stage: Stage


@final
class Ledger:
    """Told trials in their order. `references` are the uncut base's values by number of samples.

    `met` are the numbers of the trials that meet all requirements; None requires nothing.
    """

    def __init__(self, aims: Sequence[Aim], full: int, prefer: int | None = None) -> None:
        self.aims = tuple(aims)
        self.full = full
        self.prefer = prefer
        self.trials: list[Trial] = []
        self.keys: set[tuple[str, int, int]] = set()
        self.found: dict[EvaluationKey, Trial] = {}
        self.references: dict[int, tuple[float, ...]] = {}
        self.met: set[int] | None = None
        self._spreads: tuple[tuple[float, ...], ...] | None = None

    def add(self, trial: Trial) -> None:
        """Take in a trial."""
        self.trials.append(trial)
        self.keys.add(trial.request.key)
        key = EvaluationKey(trial.plan, trial.request.samples, trial.request.stage)
        if trial.same_as is None:
            self.found.setdefault(key, trial)
        if trial.request.phase == STARTS:
            self._spreads = None

    def of(self, *phases: str) -> list[Trial]:
        """Return the trials of some phases."""
        return [trial for trial in self.trials if trial.request.phase in phases]

    def cost(self, trials: Iterable[Trial] | None = None) -> float:
        """Return the evaluations at full fidelity; without `trials`, of all."""
        return math.fsum(trial.cost for trial in (self.trials if trials is None else trials))

    @property
    def hits(self) -> int:
        """The number of trials with a plan that had a known score."""
        return sum(trial.same_as is not None for trial in self.trials)

    # -------------------------------------------------------------------- the trials of one measure

    @property
    def spreads(self) -> tuple[tuple[float, ...], ...]:
        """The starting plans' values by each objective, at full fidelity if two plans are."""
        if self._spreads is None:
            starts = [(t.full, t.values) for t in self.of(STARTS) if t.values is not None]
            full_values = [values for full, values in starts if full]
            used = full_values if len(full_values) >= 2 else [values for _, values in starts]
            self._spreads = tuple(tuple(row[i] for row in used) for i in range(len(self.aims)))
        return self._spreads

    def fitness_measure(self, number: int, samples: int) -> LossMeasure:
        """Return the measure of an objective's losses; of a size, the spread of starting plans'.

        If these are all of one size, it is a tenth of that.
        """
        aim, starts = self.aims[number], self.spreads[number]
        if aim.scale == "base" and not aim.size:
            base = self.references[samples][number]
            return LossMeasure(aim.direction, abs(base) or 1.0, base)
        if aim.size:
            starts = starts or (self.references[samples][number],)
            least = min(starts)
            starts = (*starts, least + abs(least) / 10) if max(starts) == least else starts
        return LossMeasure.of_spread(aim.direction, starts)

    def losses(self, trials: Sequence[Trial]) -> Float[np.ndarray, "n m"]:
        """Return values that are minimised and of one measure; NaN for failures."""
        losses = np.full((len(trials), len(self.aims)), np.nan, np.float32)
        for row, trial in zip(losses, trials, strict=True):
            for i, value in enumerate(trial.values or ()):
                row[i] = self.fitness_measure(i, trial.samples).loss(value)
        return losses

    def mean_loss(self, trial: Trial, numbers: Sequence[int] | None = None) -> float:
        """Return the mean of the losses by some objectives, or by the `deciding` ones."""
        chosen = self.deciding if numbers is None else numbers
        return float(np.mean(self.losses([trial])[0, list(chosen)]))

    def comparison(
        self,
        base: Sequence[float] | None,
        numbers: Sequence[int] | None = None,
        samples: Sequence[Hashable] = (),
    ) -> Comparison:
        """Return how plans are compared, by some objectives or by the `deciding` ones."""
        chosen = self.deciding if numbers is None else tuple(numbers)
        unit = loss_unit([self.aims[number] for number in chosen])
        widths = [1.0] * len(self.aims)
        if unit in (SHARES, SPREADS):
            widths = [
                (abs(base[number]) * (number not in self._zeros) or 1.0) / 100
                if unit == SHARES and aim.scale == "base" and base is not None
                else spread_of(self.spreads[number])
                for number, aim in enumerate(self.aims)
            ]
        return Comparison(self.aims, chosen, tuple(widths), tuple(samples), unit)

    def loss(self, trial: Trial, numbers: Sequence[int] | None = None) -> Estimate | None:
        """Return a trial's loss compared with the base on the same samples, in the `loss_unit`.

        The error belongs to the trial's own scores. None where either score is unknown.
        """
        base = self.references.get(trial.samples)
        scores = trial.scores
        return None if scores is None or base is None else self.loss_beside(scores, base, numbers)

    def loss_beside(
        self, scores: Scores, base: Sequence[float], numbers: Sequence[int] | None = None
    ) -> Estimate:
        """Return the loss of scores over the base's on the same samples, taken as exact."""
        exact = Scores(tuple(base), (0.0,) * len(base))
        unpaired = Scores(scores.values, scores.stderrs)
        return self.comparison(base, numbers).loss(unpaired, exact)

    def is_ahead(self, trial: Trial, other: Trial) -> bool:
        """Return whether a trial's loss is lower than another's by more than the error of pairs."""
        scores, than = trial.scores, other.scores
        if scores is None or than is None or trial.samples != other.samples:
            return False
        difference = self.comparison(self.references.get(trial.samples)).loss(scores, than)
        return difference.value < -difference.stderr

    @property
    def loss_unit(self) -> str:
        """The unit of the mean loss by the objectives that compare plans."""
        unit = loss_unit([self.aims[number] for number in self.deciding])
        return POINTS if unit == SHARES and self._zeros.intersection(self.deciding) else unit

    @property
    def _zeros(self) -> set[int]:
        """The objectives with a base's score of 0, so that no loss is a share of it."""
        base = self.references.get(self.full, ())
        return {number for number, value in enumerate(base) if value == 0}

    @property
    def rated(self) -> tuple[int, ...]:
        """The objectives that measure how good plans are: all that aren't sizes."""
        return tuple(number for number, aim in enumerate(self.aims) if not aim.size)

    @property
    def deciding(self) -> tuple[int, ...]:
        """The objectives that plans are compared by: the preferred, or all that aren't sizes."""
        if self.prefer is not None and not self.aims[self.prefer].size:
            return (self.prefer,)
        return self.rated

    # ----------------------------------------------------------------------------- the best trials

    def candidates(self) -> list[Trial]:
        """Return trials at full fidelity; only the furthest repaired if any were in the end.

        Where something is required of them, only evaluated plans that meet it count.
        """
        full = [t for t in self.trials if t.full and t.values is not None and t.same_as is None]
        full = [t for t in full if t.request.phase != RECIPES]
        if self.met is not None:
            full = [t for t in full if t.number in self.met]
        final = {trial.request.stage for trial in full if trial.request.phase == FINAL}
        if not final:
            return full
        furthest = max(final, key=STAGES.index)
        return [trial for trial in full if trial.request.stage == furthest]

    def before(self, trial: Trial) -> Trial | None:
        """Return a finalist's evaluation before repair, which was the reason to choose it."""
        if trial.request.phase != FINAL:
            return None
        earlier = (
            other
            for other in self.trials[: trial.number]
            if other.plan == trial.plan and other.full and other.request.phase != FINAL
        )
        return next((other for other in earlier if other.same_as is None), None)

    def best(self, trials: Sequence[Trial] | None = None) -> Trial | None:
        """Return the trial that loses least on the mean, or is best by the preferred objective."""
        return next(iter(self.ranked(self.candidates() if trials is None else trials, 1)), None)

    def ranked(self, trials: Iterable[Trial], most: int) -> list[Trial]:
        """Return at most this many of some trials, best first; equal ones keep their order."""
        merits = [(*self._merits(trial), trial) for trial in trials]
        finite = [row for row in merits if not math.isnan(row[0])]
        return [trial for *_, trial in sorted(finite, key=lambda row: (-row[0], -row[1]))[:most]]

    def _merits(self, trial: Trial) -> tuple[float, float]:
        """Return a plan's merit, where more is better, and the merit that decides ties; NaN fails.

        That is the negated mean loss by the `deciding` objectives. With a preferred objective, even
        a size, it is the negated loss by it, then the negated mean loss.
        """
        lost = self.loss(trial)
        if self.prefer is None:
            return math.nan if lost is None else -lost.value, -math.inf
        behind = math.inf if lost is None or not math.isfinite(lost.value) else lost.value
        if trial.values is None:
            return math.nan, -behind
        measure = self.fitness_measure(self.prefer, trial.samples)
        return -measure.loss(trial.values[self.prefer]), -behind

    def front(self) -> list[Trial]:
        """Return candidates that no other beats, the best by the first objective first."""
        among = self.candidates()
        losses = self.losses(among)
        kept = [i for i, on in enumerate(front(losses)) if on]
        return [among[i] for i in sorted(kept, key=lambda i: (tuple(losses[i]), among[i].number))]
