"""Sizes of plans, and their requirements, which are hard: the part of a space within them.

The size of a genome's plan is fitted as a sum over its features, so that strategies check
thousands of genomes at once. The sum is exact where each layer is dropped or repeated for itself.
The sizes of requested genomes are counted from headers.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import chain
from typing import NamedTuple, NoReturn, final

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from gptailor.checkpoint.files import CheckpointError
from gptailor.checkpoint.models import Opened
from gptailor.evaluation.objectives.size_and_speed import size_score
from gptailor.evaluation.targets import base_of
from gptailor.plan.faults import Fault, PlanError, locate
from gptailor.plan.output_size import OutputSize
from gptailor.plan.plan import Objective, Plan, Requirement
from gptailor.plan.registry import OBJECTIVES
from gptailor.prepare import prepare
from gptailor.program.compile import compile_plan, plan_size
from gptailor.program.sources import Checked
from gptailor.searching.run.trials import Trial
from gptailor.searching.space.decode import decode
from gptailor.searching.space.genome import Genome
from gptailor.searching.space.hash_random import Key, folded, key_of, keys_of, uniform
from gptailor.searching.space.space import Space
from gptailor.searching.space.table import Limits, Table, allowed, canonical, features, sample

_UNITS = {
    "parameters": "parameters",
    "bytes": "bytes of weights",
    "kv_cache": "bytes a token in the KV cache",
}
_MORE_DRAWN = 16
"""Genomes for the fit of sizes, beyond the genomes with features that span all."""
_POOL = 4096
"""Genomes with features that the fitted genomes span."""
_SPANNED = 1e-6
"""The largest square of the distance of features from the spanning features."""
_EXACT = 1e-6
"""The rounding error of a size, as a share of the bound."""
_TRIED = 64
"""Genomes that are drawn to find a genome within bounds."""
_LOOKED_AT = 1024
"""Genomes that are drawn to find a small genome within bounds."""
_LEANINGS = (0.0, 0.3, 0.6, 0.9)
"""The share of the smallest genome in the drawn genomes, try by try."""


@final
class Sizes:
    """The sizes of a search's plans, from headers; each is computed once."""

    def __init__(self, space: Space, models: Mapping[str, Opened]) -> None:
        self.space = space
        self.models = models
        self.known: dict[str, OutputSize] = {}  # by the plans' digests

    def of(self, trial: Trial) -> OutputSize:
        """Return the size of a trial's plan."""
        if trial.plan not in self.known:
            self.known[trial.plan] = self.of_plan(decode(self.space, trial.request.genome))
        return self.known[trial.plan]

    def of_plan(self, plan: Plan) -> OutputSize:
        """Return the size of a closed plan."""
        return plan_size(Checked.of(plan, self.models))


def measured_sizes(
    checked: Checked, measures: Sequence[Objective], *, any_layers: bool = False
) -> list[float]:
    """Return a closed plan's sizes by some measures.

    Raises ObjectiveError or CheckpointError for an unknown size. With `any_layers` a GGUF file has
    a size even if llama.cpp couldn't run these layers.
    """
    compiled = compile_plan(checked)
    scores = (size_score(each, checked, compiled, any_layers=any_layers) for each in measures)
    return [score.value for score in scores]


@final
class SizeBound(NamedTuple):
    """The upper bound of a size, and the number of its requirement."""

    measure: Objective
    most: float
    number: int

    def words(self, size: float) -> str:
        """Return a size and its unit."""
        kind = self.measure.arguments.get("gguf")
        unit = _UNITS[self.measure.name] if kind is None else f"bytes as a GGUF file in {kind}"
        return f"{size:,.0f} {unit}"


def size_bounds(plan: Plan, requires: Sequence[Requirement]) -> list[SizeBound]:
    """Return the hard requirements as bounds; a bound by a model is counted."""
    bounds = []
    for number, required in enumerate(requires):
        if OBJECTIVES[required.name].by != "headers":
            continue
        of, share = required.bound.of, required.bound.number
        most = 1.0 if share is None else float(share)
        if of is not None:
            most *= measured_sizes(prepare(base_of(plan, of)).checked, [required.objective])[0]
        bounds.append(SizeBound(required.objective, most, number))
    return bounds


@final
class Within:
    """The part of a space that is within bounds. Raises PlanError (P609) where it is empty.

    With a bound of a GGUF file, a plan that llama.cpp can't run isn't within.
    """

    def __init__(self, space: Space, sizes: Sizes, bounds: Sequence[SizeBound]) -> None:
        self.sizes = sizes
        self.bounds = tuple(bounds)
        self._open = space
        self._known: dict[bytes, bool] = {}
        self._unfit: CheckpointError | None = None  # the error of the last plan without a file
        self._limits = self._fit()
        self.space = replace(space, table=space.table._replace(limits=self._limits))
        for bound in self.bounds:
            self._refuse_beyond(bound)
        if not self.holds(self.smallest):
            self._refuse_all()

    def holds(self, genome: Genome) -> bool:
        """Return whether a genome's plan is within all bounds."""
        key = b"".join(np.asarray(genes).tobytes() for genes in genome)
        if key not in self._known:
            try:
                sizes = self._counted(genome, any_layers=False)
            except CheckpointError as error:
                self._unfit, sizes = error, [np.inf] * len(self.bounds)
            within = (size <= bound.most for size, bound in zip(sizes, self.bounds, strict=True))
            self._known[key] = all(within)
        return self._known[key]

    def or_other(self, genome: Genome, key: Key) -> Genome:
        """Return the genome if it is within bounds, else a drawn genome that is."""
        if self.holds(genome):
            return genome
        for number, leaning in enumerate(_LEANINGS):
            drawn = self._drawn(folded(key, number), leaning)
            for n in np.flatnonzero(allowed(self.space.table, drawn)):
                if self.holds(other := _row(drawn, int(n))):
                    return other
        return self.smallest

    @cached_property
    def smallest(self) -> Genome:
        """A genome within all bounds that is as small as can be found."""
        numbers = range(len(self.bounds))
        genomes = [self._least([n]) for n in numbers]
        if len(numbers) > 1:
            genomes.append(self._least(numbers))
        drawn = sample(self.space.table, key_of(1), _LOOKED_AT)
        inside = np.flatnonzero(allowed(self.space.table, drawn))
        order = inside[np.argsort(self._beyond(drawn, numbers)[inside], kind="stable")]
        tried = chain(genomes, (_row(drawn, int(n)) for n in order))
        return next((genome for genome in tried if self.holds(genome)), genomes[-1])

    def _beyond(self, genomes: Genome, numbers: Sequence[int]) -> Float[ndarray, "*n"]:
        """Return how far genomes are beyond some bounds by sums, in shares of a bound."""
        some, sums = list(numbers), features(self.space.table, genomes)
        beyond = sums @ self._limits.weights[some].T - self._limits.room[some]
        return np.asarray(beyond.max(axis=-1))

    def _least(self, numbers: Sequence[int]) -> Genome:
        """Return the genome furthest within some bounds by sums, found change by change."""
        table = self.space.table
        drawn = sample(table, key_of(2), _TRIED)  # sets of a size have it, which defaults may not
        genome = _row(drawn, int(np.argmin(self._beyond(drawn, numbers))))
        size = float(self._beyond(genome, numbers))
        while True:
            changes = _changes(table, genome)
            if not changes:
                return genome
            changed = canonical(table, Genome(*map(np.stack, zip(*changes, strict=True))))
            sizes = self._beyond(changed, numbers)
            best = int(np.argmin(sizes))
            if float(sizes[best]) >= size - _EXACT:
                return genome
            genome, size = _row(changed, best), float(sizes[best])

    def _counted(self, genome: Genome, *, any_layers: bool = True) -> list[float]:
        """Return the sizes of a genome's plan by all bounds.

        Without `any_layers`, raise CheckpointError (C306) for a plan that llama.cpp can't run.
        """
        plan = decode(self._open, genome)
        checked = Checked.of(plan, self.sizes.models)
        measures = [bound.measure for bound in self.bounds]
        return measured_sizes(checked, measures, any_layers=any_layers)

    def _drawn(self, key: Key, leaning: float) -> Genome:
        """Draw genomes that have about such a part of the smallest one."""
        table = self.space.table
        first, second, third = keys_of(key, 3)
        drawn, least = sample(table, first, _TRIED), self.smallest
        sets = np.where(table.group < 0, len(table.low) + np.arange(len(table.group)), table.group)
        bits = uniform(second, (_TRIED, len(table.low) + len(table.group)))[:, sets] < leaning
        picks = uniform(third, (_TRIED, len(table.options))) < leaning
        mixed = Genome(
            np.where(bits, least.bits, drawn.bits),
            np.where(picks, least.picks, drawn.picks),
            drawn.reals,
        )
        return canonical(table, mixed)

    # ---------------------------------------------------------------------------------- the fit

    def _fit(self) -> Limits:
        """Fit sizes as sums over features; return limits, which allow the most that sums are off.

        Requested genomes are counted too.
        """
        table = self._open.table
        pool = sample(table, key_of(0), _POOL)
        every = np.concatenate([np.ones((_POOL, 1)), features(table, pool)], axis=1)
        fitted = [*{*range(_MORE_DRAWN), *_spanning(every)}]
        sizes = [self._counted(_row(pool, n)) for n in fitted]
        shares = np.array(sizes) / [max(bound.most, 1e-9) for bound in self.bounds]
        columns = every[fitted]
        solved = np.linalg.lstsq(columns, shares, rcond=None)[0]
        slack = np.abs(columns @ solved - shares).max(axis=0)
        return Limits(solved[1:].T, 1.0 - solved[0] + slack + _EXACT)

    def _refuse_beyond(self, bound: SizeBound) -> None:
        at = self.bounds.index(bound)
        table = self.space.table
        drawn = sample(table, key_of(1), _TRIED)
        tried = [self._least([at]), *(_row(drawn, n) for n in range(_TRIED))]
        order = np.argsort(features(table, Genome(*map(np.stack, zip(*tried, strict=True))))
                           @ self._limits.weights[at], kind="stable")[:4]  # fmt: skip
        least, smallest = min((self._counted(tried[n])[at], n) for n in order)
        if least <= bound.most:
            return
        message = f"no plan of the space has at most {bound.words(bound.most)}"
        count = self.sizes.of_plan(decode(self._open, tried[smallest])).layers
        size_words = f"the smallest has {least:,.0f}, in {count} layer{'s' * (count != 1)}"
        help_ = f"{size_words}: raise the bound, or let more layers be dropped"
        self._refuse(bound, message, help_)

    def _refuse_all(self) -> NoReturn:
        found = [*zip(self.bounds, self._counted(self.smallest), strict=True)]
        limits = [f"at most {bound.words(bound.most)}" for bound in self.bounds]
        sizes = " and ".join(bound.words(size) for bound, size in found)
        beyond = next((bound for bound, size in found if size > bound.most), None)
        message = f"no plan of the space has {' and '.join(limits)}"
        help_ = f"the nearest found plan has {sizes}: raise a bound, or let more layers be dropped"
        if beyond is None and self._unfit is not None:
            message += " and layers that llama.cpp can run"
            help_ = (
                f"a plan of this size can't be written: {self._unfit.message}; {self._unfit.help}"
            )
        self._refuse(beyond or self.bounds[0], message, help_)

    def _refuse(self, bound: SizeBound, message: str, help_: str) -> NoReturn:
        fault = Fault("P609", message, ("search", "requires", bound.number), help_)
        raise PlanError(locate([fault], self._open.plan.origin))


def _row(genomes: Genome, number: int) -> Genome:
    return Genome(*(genes[number] for genes in genomes))


def _spanning(rows: Float[ndarray, "n c"]) -> Iterator[int]:
    """Yield numbers of rows that span all."""
    axes = np.zeros((0, rows.shape[1]))
    squares = (rows**2).sum(axis=1)
    while squares.max() > _SPANNED:
        furthest = int(np.argmax(squares))
        yield furthest
        residue = rows[furthest] - axes.T @ (axes @ rows[furthest])
        axes = np.vstack([axes, residue / np.linalg.norm(residue)])
        squares -= (rows @ axes[-1]) ** 2


def _changes(table: Table, genome: Genome) -> list[Genome]:
    """Return all genomes one change away: a bit, two bits of a set, or another option."""
    bits = []
    counts = [int(genome.bits[table.group == g].sum()) for g in range(len(table.low))]
    for i, group in enumerate(table.group):
        after = -1 if group < 0 else counts[group] + (-1 if genome.bits[i] else 1)
        if group < 0 or table.low[group] <= after <= table.high[group]:
            bits.append([i])
        if group >= 0 and genome.bits[i]:
            bits += [[i, int(j)] for j in np.flatnonzero((table.group == group) & ~genome.bits)]
    at = np.arange(len(genome.bits))
    flips = [genome._replace(bits=genome.bits ^ np.isin(at, numbers)) for numbers in bits]
    at = np.arange(len(genome.picks))
    options = [(i, v) for i, count in enumerate(table.options) for v in range(count)]
    picked = [genome._replace(picks=np.where(at == i, v, genome.picks)) for i, v in options]
    return flips + picked
