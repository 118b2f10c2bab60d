"""`eval`: run targets and bases as trials of one session, and tabulate their outcomes."""

from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import final

import torch
from torch import Tensor
from transformers import PreTrainedModel

from gptailor.checkpoint.models import source_from_here
from gptailor.evaluation.fits.repair import Repairs
from gptailor.evaluation.forward.evaluator import attempt
from gptailor.evaluation.forward.requests import Work
from gptailor.evaluation.objectives.base import Forward, ObjectiveError, PreparedObjective
from gptailor.evaluation.objectives.generate import Generative
from gptailor.evaluation.objectives.nll import piece_bytes
from gptailor.evaluation.objectives.size_and_speed import OfPlan
from gptailor.evaluation.objectives.tokens import (
    differing_parts,
    tokenizer_digest,
    tokenizer_model,
)
from gptailor.evaluation.result import EvaluationResult
from gptailor.evaluation.samples import (
    Samples,
    StatedObjective,
    context_length,
    no_reference,
    with_cut_tokens,
)
from gptailor.evaluation.scores import (
    Failure,
    Outcome,
    Result,
    Score,
    ScoreDifference,
    TargetSize,
    paired_difference,
    retained_score,
)
from gptailor.evaluation.session import Placement, Reading, Session
from gptailor.evaluation.speed import cache_bytes, latency_score, parameters, speeds
from gptailor.evaluation.targets import (
    Target,
    as_list,
    base_of,
    find_targets,
    names,
    with_uncut,
)
from gptailor.evaluation.trial import Outcomes
from gptailor.lang.parse import read_objective
from gptailor.plan.arguments import NotNegative, Positive
from gptailor.plan.events import OnEvent, Progress, ignore_events
from gptailor.plan.faults import TailorError, listed
from gptailor.plan.plan import Objective, Plan
from gptailor.prepare import ModelPaths, ready
from gptailor.program.devices import device_of, dtype_of
from gptailor.reporting.quantities import byte_count


def evaluate(  # noqa: PLR0913 (the verb of the command line, and its flags)
    targets: Sequence[str | Path | Plan] | str | Path | Plan,
    objectives: Sequence[str | Objective] | str | Objective,
    *,
    models: ModelPaths | None = None,
    samples: Positive | None = None,
    seed: NotNegative = 0,
    folder: str | Path = ".",
    device: torch.device | str = "cpu",
    dtype: str | torch.dtype | None = None,
    memory: Positive | str | None = None,
    speed: bool = False,
    against: str | Path | None = None,
    uncut: bool = False,
    on_event: OnEvent = ignore_events,
) -> EvaluationResult:
    """Evaluate plans, compiled folders and models by objectives such as `nll("text.txt")`.

    A target is a plan or its file, a model's folder, a GGUF file, or a Hub id. `models` gives other
    folders for the plans' names. `samples` bounds the samples that `seed` draws. Relative paths of
    objectives start at `folder`. `dtype` is that of the live models, by default their own; `memory`
    bounds their bytes on the device, also as a text such as `2GB`. With `speed`, tokens a second
    are measured too. Differences are from the target `against`, by default from each target's base.
    A model under several names is one target, with the first name.
    With `uncut` each plan that drops layers is also evaluated without its drops, as the target
    `NAME, uncut`. Plans are bridged and healed as declared. `on_event` receives the progress.

    An error of one target is a `Failure` in its results. Raises PlanError for faults of plans and
    objectives. Raises TailorError or OSError for an error of all targets: a file of an objective, a
    missing device.
    """
    sources = as_list(targets)
    asked = [objectives] if isinstance(objectives, str | Objective) else list(objectives)
    if not asked:
        raise ValueError("'objectives': expected an objective, got none")
    if against is not None and str(against) not in map(str, sources):
        sources.append(against)
    room = byte_count(memory)
    found = find_targets(sources, models or {}, device=device, memory=room, on_event=on_event)
    found = with_uncut(found, models or {}) if uncut else found
    model_names = names(found)
    stated = [
        (objective, True)
        if isinstance(objective, Objective)
        else read_objective(objective, model_names)
        for objective in asked
    ]
    chosen = Samples(Path(folder), samples, seed)
    place, name = (
        Placement(device, dtype_of(dtype), room),
        None if against is None else str(against),
    )
    evaluation = EvaluationRun(found, stated, chosen, place, on_event, name)
    return evaluation.run(speed=speed)


@final
@dataclass(eq=False)
class _Entry:
    """One target, its size, and its outcomes so far."""

    target: Target
    size: TargetSize
    outcomes: Outcomes = ()

    @classmethod
    def of(cls, target: Target) -> "_Entry":
        """Return an entry with the size that the headers contain, and without outcomes."""
        prepared = target.prepared
        return cls(target, TargetSize(target.name, prepared.output_size))


@final
class EvaluationRun:
    """One evaluation. The constructor reads the objectives' files, but no weights."""

    def __init__(
        self,
        targets: Sequence[Target],
        stated: Sequence[StatedObjective],
        samples: Samples,
        place: Placement,
        on_event: OnEvent = ignore_events,
        against: str | None = None,
    ) -> None:
        named = {target.name: target.content for target in reversed(targets)}
        self.targets = targets = list(_held_to_bases(_distinct(targets)))
        self._held_to = {t.identity_of_base for t in targets if not t.plain}
        device_of(str(place.device))  # a missing device is no target's failure
        self.on_event = on_event
        self.session = Session(place, on_event)
        self.entries = [_Entry.of(target) for target in targets]
        self._entry_of = {entry.target.content: entry for entry in self.entries}
        self._compared = None if against is None else self._entry_of[named[against]]
        self.bases = list(self._bases())
        self.all = [*self.bases, *self.entries]
        self.stated = stated
        self.samples = samples
        tokenizers = {tokenizer_digest(tokenizer_model(e.target.prepared)) for e in self.all}
        self.by_byte = len(tokenizers) > 1
        targets = [entry.target for entry in self.all]
        self.piece_bytes = common_piece_bytes(targets) if self.by_byte else None
        for entry in self.all:
            self.session.family(entry.target.prepared.models)
            self._objectives(entry.target)

    def run(self, *, speed: bool) -> EvaluationResult:
        """Score all targets and bases, grouped by shared samples and layers."""
        total = self._count(speed)
        done = count(1)
        self.on_event(Progress("evaluating", 0, total))

        def step(description: str) -> None:
            self.on_event(Progress("evaluating", next(done), total, description))

        groups: dict[Hashable, list[_Entry]] = {}
        for entry in self.all:
            family = self.session.family(entry.target.prepared.models)
            key = family, self._reading(entry.target).key(self.stated)
            groups.setdefault(key, []).append(entry)
        for group in groups.values():
            for number, outcomes in self._trials(group, step):
                group[number].outcomes = outcomes
        if speed:
            for entry in self.entries:
                if entry.size.speed is None:
                    self._speed(entry)
                step(f"{entry.target.name}: speed")
        return EvaluationResult(
            tuple(result for entry in self.entries for result in self._results(entry)),
            tuple(entry.size for entry in self.entries),
            tuple(result for base in self.bases for result in self._results(base)),
            tuple(base.size for base in self.bases),
            self.by_byte,
        )

    def _bases(self) -> Iterator[_Entry]:
        for target in self.targets:
            base, key = target.base, target.identity_of_base
            if base is not None and key not in self._entry_of:
                name = source_from_here(base.plan, base.plan.models["base"].source)
                entry = self._entry_of[key] = _Entry.of(Target(name, base, target.origin, base))
                yield entry

    def _objectives(self, target: Target) -> list[PreparedObjective]:
        """Return the objectives as they are measured on a target.

        Raises CalibrationError for a file, ObjectiveError for an argument, TailorError for a
        missing tokenizer.
        """
        reference = partial(self._reference, target)
        return self.session.objectives(self.stated, self.samples, self._reading(target), reference)

    def _reading(self, target: Target) -> Reading:
        return reading_of(target, self.piece_bytes)

    def _count(self, speed: bool) -> int:
        if not self.entries:
            return 0
        steps = step_count(self._objectives(self.targets[0]))
        return len(self.all) * steps + len(self.entries) * speed

    def _trials(
        self, group: Sequence[_Entry], step: Callable[[str], None]
    ) -> Iterator[tuple[int, Outcomes]]:
        stated = self._objectives(group[0].target)
        objectives = list(map(measurable, stated))
        forward = any(isinstance(objective, Forward) for objective in stated)

        def on_step(number: int, model: PreTrainedModel, objective: str) -> None:
            entry = group[number]
            if not objective:
                counts = entry.size.size._replace(parameters=parameters(model))
                with suppress(Exception):  # a size that can't be measured is omitted
                    kept = cache_bytes(model) // (2 if widened else 1)
                    counts = counts._replace(kv_cache=kept)
                entry.size = replace(entry.size, size=counts)
            if objective or forward:
                step(entry.target.name + (f": {objective}" if objective else ""))

        models = group[0].target.prepared.models
        repairs = attempt(partial(self.session.repairs, models))
        widened = (  # a cache is then twice its size
            isinstance(repairs, Repairs) and repairs.stitcher.dtype != self.session.place.dtype
        )
        prepared_plans = [entry.target.prepared for entry in group]
        return self.session.run(
            models, [prepared.plan for prepared in prepared_plans], objectives,
            latency=lambda number: self._latency(group[number]), on_step=on_step,
            prepared=prepared_plans,
        )  # fmt: skip

    def _latency(self, entry: _Entry) -> Score:
        """Return a target's latency. Raises ObjectiveError if it can't be measured."""
        if entry.size.speed is None:
            self._speed(entry)
        if entry.size.speed is None:
            raise ObjectiveError("its speed can't be measured")
        return latency_score(entry.size.speed)

    def _reference(self, target: Target, name: str, work: Work) -> Sequence[Tensor]:
        held = target.identity_of_base in self._held_to
        if name == "base" and target.bare and target.plain and not held:
            bare = f"'{target.name}' is a model by itself"
            reason = f"{bare}; --model base=FOLDER says what its base is"
            raise no_reference(name, reason)
        return reference_results(self.session, target, name, work)

    def _speed(self, entry: _Entry) -> None:
        base = None if entry.target.plain else self._entry_of.get(entry.target.identity_of_base)
        with suppress(Exception):  # a speed that can't be measured is omitted; its score fails
            live, *other = (
                self.session.stitch(timed.target.prepared.models, timed.target.prepared.plan).model
                for timed in (entry, base)
                if timed is not None
            )
            speed, base_speed = speeds(live, other[0] if other else None)
            entry.size = replace(entry.size, speed=speed, base_speed=base_speed)
            if base is not None:
                base.size = replace(base.size, speed=base.size.speed or base_speed)

    def _results(self, entry: _Entry) -> Iterator[Result]:
        base = self._entry_of.get(entry.target.identity_of_base)
        for number, objective in enumerate(self._objectives(entry.target)):
            outcome = entry.outcomes[number]
            base_outcome = None if base is None else base.outcomes[number]
            share = None
            if isinstance(objective, OfPlan) and objective.by == "clock":
                speed = entry.size.base_speed  # of the same rounds
                base_outcome = None if speed is None else latency_score(speed)
            if objective.normalise == "base" and not entry.target.plain:
                sized = isinstance(objective, OfPlan)  # half as large is 50 %
                direction = "maximize" if sized else objective.direction
                share = retained_score(outcome, base_outcome, direction)
            other, difference, reason = self._compared or base, None, ""
            if other is not None and other is not entry:
                difference, reason = _difference(outcome, other.outcomes[number])
                reason = reason and f"{reason} '{other.target.name}'"
            elif isinstance(outcome, Score) and outcome.each is not None and not self._compared:
                reason = "its base is missing" if other is None else self._apart(entry.target)
            name = "" if other is None or difference is None else other.target.name
            yield Result(
                entry.target.name, objective.name, objective.direction, outcome, share,
                difference, name, reason,
            )  # fmt: skip

    def _apart(self, target: Target) -> str:
        """Return why a model by itself is not compared with the base of the other targets."""
        if not target.bare or target.identity_of_base in self._held_to or not self._held_to:
            return ""
        bases = {other.identity_of_base: other.base for other in self.targets if other.base}
        shared = [base for key, base in bases.items() if key in self._held_to and base]
        if len(shared) > 1:
            return f"the other targets have {len(shared)} bases; --against names what to compare"
        parts = differing_parts(tokenizer_model(shared[0]), tokenizer_model(target.prepared))
        return f"its tokenizer is not the base's: {listed(parts)} differ"


def reference_results(session: Session, target: Target, name: str, work: Work) -> Sequence[Tensor]:
    """Return the results of a work on the model that a target's objective compares with.

    Raises ObjectiveError for a missing model, and if the work fails.
    """
    if name not in target.origin.models:
        raise no_reference(name, f"'{target.name}' has none of that name")
    if name == "base" and target.base is None:
        raise no_reference(name, f"the base that '{target.name}' was made of isn't there")
    prepared = target.base if name == "base" else None
    prepared = prepared or target.fit_inner(ready(base_of(target.origin, name)))
    repairs = session.repairs(prepared.models)
    plan = with_cut_tokens(prepared.plan, tokenizer_model(target.prepared), name)
    return session.reference(repairs, plan, name, work)


def common_piece_bytes(targets: Iterable[Target]) -> int:
    """Return the bytes of a piece of text that all targets take. Raises TailorError."""
    return piece_bytes(map(_positions, targets))


def reading_of(target: Target, piece: int | None = None) -> Reading:
    """Return how a target's texts are read: in pieces of bytes, or by its tokens.

    Raises TailorError without a tokenizer.
    """
    tokenizer, positions = tokenizer_model(target.prepared), _positions(target)
    return Reading(tokenizer, positions, target.identity_of_base, target.origin, piece)


def _positions(target: Target) -> int | None:
    """Return the model's context length. Raises TailorError, which names the target."""
    try:
        return context_length(target.prepared.compiled.config)
    except TailorError as error:
        raise TailorError(f"'{target.name}': {error}") from error


def _difference(outcome: Outcome, other: Outcome) -> tuple[ScoreDifference | None, str]:
    """Return a score's difference from another on the same samples, or the reason against one.

    Both are empty if the other score is 0 on every sample, as `kl` of its own reference is.
    """
    if not isinstance(outcome, Score):
        return None, ""
    if not isinstance(other, Score):
        return None, "there is no score of"
    a, b = outcome.each, other.each
    if a is None or b is None:
        return None, ""
    if a.counts != b.counts:
        return None, "its samples have other tokens than those of"
    return (paired_difference(a, b) if any(b.sums) else None), ""


def _distinct(targets: Sequence[Target]) -> list[Target]:
    """Return the first target of each model. A base of the others is without a base of its own.

    It keeps a base that is a target too.
    """
    bases = {target.identity_of_base for target in targets}
    distinct: dict[Hashable, Target] = {}
    for target in targets:
        distinct.setdefault(target.content, target)
    return [
        replace(target, base=target.prepared)
        if content in bases and target.identity_of_base not in distinct
        else target
        for content, target in distinct.items()
    ]


def _held_to_bases(targets: Sequence[Target]) -> Iterator[Target]:
    """Yield the targets, with the plans' only base as the base of bare models that read alike."""
    bases = {t.identity_of_base: t.base for t in targets if t.base and not t.plain}
    [base] = bases.values() if len(bases) == 1 else [None]
    for target in targets:
        alone = target.bare and target.plain and target.identity_of_base not in bases
        alike = (
            alone
            and base is not None
            and not differing_parts(tokenizer_model(base), tokenizer_model(target.prepared))
        )
        yield replace(target, base=base) if alike else target


def step_count(objectives: Sequence[PreparedObjective]) -> int:
    """Return the steps of a target: one forward pass for all its scores, each generation."""
    forward = any(isinstance(objective, Forward) for objective in objectives)
    return forward + sum(isinstance(objective, Generative) for objective in objectives)


def measurable(objective: PreparedObjective) -> PreparedObjective | Failure:
    """Return the objective, or a failure if its reference is missing."""
    try:
        if isinstance(objective, Forward):
            objective.work()
    except TailorError as error:
        return Failure("error", str(error))
    return objective
