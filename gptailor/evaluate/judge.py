"""`eval`: targets become trials of one session, and their outcomes a table beside their bases'."""

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
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
from gptailor.evaluate.forward.evaluator import attempt
from gptailor.evaluate.forward.requests import Work
from gptailor.evaluate.objectives.base import Forward, ObjectiveError, PreparedObjective
from gptailor.evaluate.objectives.generate import Generative
from gptailor.evaluate.objectives.size_and_speed import OfPlan
from gptailor.evaluate.objectives.tokens import differing_parts, tokenizer_model
from gptailor.evaluate.repair import Repairs
from gptailor.evaluate.samples import Samples, StatedObjective, context_length, no_reference
from gptailor.evaluate.scores import (
    Failure,
    Judgement,
    Outcome,
    Result,
    Score,
    ScoreDifference,
    TargetSize,
    paired_difference,
    retained_score,
)
from gptailor.evaluate.session import Placement, Reading, Session
from gptailor.evaluate.speed import cache_bytes, latency_score, parameters, speeds
from gptailor.evaluate.targets import Target, base_of, find_targets, names
from gptailor.evaluate.trial import Outcomes
from gptailor.lang.parse import read_objective
from gptailor.plan.events import OnEvent, StepJudged, ignore_events
from gptailor.plan.faults import TailorError, listed
from gptailor.plan.plan import Objective, Plan
from gptailor.prepare import Prepared, ready
from gptailor.program.run import device_of


def judge(  # noqa: PLR0913 (the verb of the command line, and its flags)
    targets: Sequence[str | Path | Plan] | str | Path | Plan,
    objectives: Sequence[str | Objective] | str | Objective,
    *,
    models: Mapping[str, str | Path] | None = None,
    samples: int | None = None,
    seed: int = 0,
    folder: str | Path = ".",
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    memory: int | None = None,
    speed: bool = False,
    against: str | Path | None = None,
    on_event: OnEvent = ignore_events,
) -> Judgement:
    """Judge plans, compiled folders and models by objectives such as `nll("text.txt")`.

    A target is a plan or its file, a model's folder, a GGUF file, or a Hub id. `models` gives other
    folders for the plans' names, `samples` bounds what is drawn by `seed`, and relative paths of
    objectives start at `folder`. `dtype` is the live models', else their own; `memory` bounds their
    bytes on the device. With `speed` tokens a second are measured too. Differences are from the
    target `against`, else from each target's base. Plans are bridged and healed as they say;
    `on_event` receives how that and the judging go on.

    What goes wrong with one target is a `Failure` in its results. Raises PlanError for faults of
    plans and objectives, and TailorError or OSError for what concerns all: a file of an
    objective, a device that isn't there.
    """
    several = [targets] if isinstance(targets, str | Path | Plan) else list(targets)
    if against is not None and str(against) not in map(str, several):
        several.append(against)
    found = find_targets(several, models or {})
    wanted = [objectives] if isinstance(objectives, str | Objective) else list(objectives)
    known = names(found)
    stated = [
        (one, True) if isinstance(one, Objective) else read_objective(one, known) for one in wanted
    ]
    drawn = Samples(Path(folder), samples, seed)
    place, beside = Placement(device, dtype, memory), None if against is None else str(against)
    judging = Judging(found, stated, drawn, place, on_event, beside)
    return judging.judgement(speed=speed)


@final
@dataclass(eq=False)
class _Entry:
    """One target, and all that is known of it so far."""

    target: Target
    size: TargetSize
    outcomes: Outcomes = ()

    @classmethod
    def of(cls, target: Target) -> "_Entry":
        """Nothing but what its headers say is known yet."""
        prepared = target.prepared
        return cls(target, TargetSize(target.name, prepared.output_size))


@final
class Judging:
    """One evaluation. Making it reads the objectives' files, and no weights."""

    def __init__(
        self,
        targets: Sequence[Target],
        stated: Sequence[StatedObjective],
        samples: Samples,
        place: Placement,
        on_event: OnEvent = ignore_events,
        against: str | None = None,
    ) -> None:
        self.targets = targets = list(_held_to_bases(targets))
        self._held_to = {one.identity_of_base for one in targets if not one.plain}
        device_of(str(place.device))  # a missing device is no target's failure
        self.on_event = on_event
        self.session = Session(place, on_event)
        self.entries = [_Entry.of(target) for target in targets]
        self._beside = next((one for one in self.entries if one.target.name == against), None)
        plain = [one for one in self.entries if one.target.plain]
        self._base_of = {one.target.identity_of_base: one for one in reversed(plain)}
        self.bases = list(self._bases())
        self.all = [*self.bases, *self.entries]
        self.stated = stated
        self.samples = samples
        for one in self.all:
            self.session.family(one.target.prepared.models)
            self._objectives(one.target)

    def judgement(self, *, speed: bool) -> Judgement:
        """Score all targets and bases, those together that share samples and layers."""
        total = self._count(speed)
        done = count(1)
        self.on_event(StepJudged("", 0, total))

        def step(what: str) -> None:
            self.on_event(StepJudged(what, next(done), total))

        groups: dict[Hashable, list[_Entry]] = {}
        for one in self.all:
            family = self.session.family(one.target.prepared.models)
            key = family, _reading(one.target).key(self.stated)
            groups.setdefault(key, []).append(one)
        for group in groups.values():
            for number, outcomes in self._trials(group, step):
                group[number].outcomes = outcomes
        if speed:
            for one in self.entries:
                if one.size.speed is None:
                    self._speed(one)
                step(f"{one.target.name}: speed")
        return Judgement(
            tuple(result for one in self.entries for result in self._results(one)),
            tuple(one.size for one in self.entries),
            tuple(result for one in self.bases for result in self._results(one)),
            tuple(one.size for one in self.bases),
        )

    def _bases(self) -> Iterator[_Entry]:
        for target in self.targets:
            base, key = target.base, target.identity_of_base
            if base is not None and key not in self._base_of:
                name = source_from_here(base.plan, base.plan.models["base"].source)
                made = self._base_of[key] = _Entry.of(Target(name, base, target.origin, base))
                yield made

    def _objectives(self, target: Target) -> list[PreparedObjective]:
        """The objectives as they are measured on a target.

        Raises CalibrationError for a file, ObjectiveError for an argument, TailorError where there
        is no tokenizer.
        """
        reference = partial(self._reference, target)
        return self.session.objectives(self.stated, self.samples, _reading(target), reference)

    def _count(self, speed: bool) -> int:
        if not self.entries:
            return 0
        kinds = self._objectives(self.targets[0])
        forward = any(isinstance(one, Forward) for one in kinds)
        made = sum(isinstance(one, Generative) for one in kinds)
        return len(self.all) * (forward + made) + len(self.entries) * speed

    def _trials(
        self, group: Sequence[_Entry], step: Callable[[str], None]
    ) -> Iterator[tuple[int, Outcomes]]:
        objectives = list(map(_measurable, self._objectives(group[0].target)))
        forward = any(isinstance(one, Forward) for one in self._objectives(group[0].target))

        def on_step(number: int, model: PreTrainedModel, objective: str) -> None:
            one = group[number]
            if not objective:
                counts = one.size.size._replace(parameters=parameters(model))
                with suppress(Exception):  # a size that can't be had is none
                    kept = cache_bytes(model) // (2 if widened else 1)
                    counts = counts._replace(kv_cache=kept)
                one.size = replace(one.size, size=counts)
            if objective or forward:
                step(one.target.name + (f": {objective}" if objective else ""))

        models = group[0].target.prepared.models
        repairs = attempt(partial(self.session.repairs, models))
        widened = (  # a cache is then twice its size
            isinstance(repairs, Repairs) and repairs.stitcher.dtype != self.session.place.dtype
        )
        plans = [one.target.prepared.plan for one in group]
        return self.session.run(
            models, plans, objectives,
            latency=lambda number: self._latency(group[number]), on_step=on_step,
        )  # fmt: skip

    def _latency(self, one: _Entry) -> Score:
        """Return a target's latency. Raises ObjectiveError if it can't be measured."""
        if one.size.speed is None:
            self._speed(one)
        if one.size.speed is None:
            raise ObjectiveError("its speed can't be measured")
        return latency_score(one.size.speed)

    def _reference(self, target: Target, name: str, work: Work) -> Sequence[Tensor]:
        if name != "base":
            if name not in target.origin.models:
                raise no_reference(name, f"'{target.name}' has none of that name")
            prepared = ready(base_of(target.origin, name))
        elif target.bare and target.plain and target.identity_of_base not in self._held_to:
            why = f"'{target.name}' is a model by itself; --model base=FOLDER says what its base is"
            raise no_reference(name, why)
        elif target.base is None:
            raise no_reference(name, f"the base that '{target.name}' was made of isn't there")
        else:
            prepared = target.base
        repairs = self.session.repairs(prepared.models)
        return self.session.reference(repairs, prepared.plan, name, work)

    def _speed(self, one: _Entry) -> None:
        base = None if one.target.plain else self._base_of.get(one.target.identity_of_base)
        with suppress(Exception):  # a speed that can't be had is none; why is in the scores
            live, *other = (
                self.session.stitch(it.target.prepared.models, it.target.prepared.plan).model
                for it in (one, base)
                if it is not None
            )
            speed, beside = speeds(live, other[0] if other else None)
            one.size = replace(one.size, speed=speed, base_speed=beside)
            if base is not None:
                base.size = replace(base.size, speed=base.size.speed or beside)

    def _results(self, one: _Entry) -> Iterator[Result]:
        base = self._base_of.get(one.target.identity_of_base)
        for number, objective in enumerate(self._objectives(one.target)):
            outcome = one.outcomes[number]
            theirs = None if base is None else base.outcomes[number]
            share = None
            if isinstance(objective, OfPlan) and objective.by == "clock":
                speed = one.size.base_speed  # of the same rounds
                theirs = None if speed is None else latency_score(speed)
            if objective.normalise == "base" and not one.target.plain:
                sized = isinstance(objective, OfPlan)  # half as large is 50 %
                way = "maximize" if sized else objective.direction
                share = retained_score(outcome, theirs, way)
            other, difference, why = self._beside or base, None, ""
            if other is not None and other is not one:
                difference, why = _difference(outcome, other.outcomes[number])
                why = why and f"{why} '{other.target.name}'"
            elif isinstance(outcome, Score) and outcome.each is not None and not self._beside:
                why = "its base is missing" if other is None else self._apart(one.target)
            name = "" if other is None or difference is None else other.target.name
            yield Result(
                one.target.name, objective.name, objective.direction, outcome, share,
                difference, name, why,
            )  # fmt: skip

    def _apart(self, target: Target) -> str:
        """Return why a model by itself is not compared with the base of the other targets."""
        if not target.bare or target.identity_of_base in self._held_to or not self._held_to:
            return ""
        bases = {one.identity_of_base: one.base for one in self.targets if one.base}
        others = [base for key, base in bases.items() if key in self._held_to and base]
        if len(others) > 1:
            return f"the other targets have {len(others)} bases; --against names what to compare"
        parts = differing_parts(tokenizer_model(others[0]), tokenizer_model(target.prepared))
        return f"its tokenizer is not the base's: {listed(parts)} differ"


def _reading(target: Target) -> Reading:
    """Return how a target's texts are read. Raises TailorError without a tokenizer."""
    tokenizer = tokenizer_model(target.prepared)
    return Reading(tokenizer, _positions(target), target.identity_of_base, target.origin)


def _positions(target: Target) -> int | None:
    """Return the model's context length. Raises TailorError, which names the target."""
    try:
        return context_length(target.prepared.compiled.config)
    except TailorError as error:
        raise TailorError(f"'{target.name}': {error}") from error


def _difference(mine: Outcome, theirs: Outcome) -> tuple[ScoreDifference | None, str]:
    """Return how much more a score is than another on the same samples, or why that is unknown.

    There is neither beside what is 0 on every sample, as `kl` is of its own reference.
    """
    if not isinstance(mine, Score):
        return None, ""
    if not isinstance(theirs, Score):
        return None, "there is no score of"
    a, b = mine.each, theirs.each
    if a is None or b is None:
        return None, ""
    if a.counts != b.counts:
        return None, "its samples have other tokens than those of"
    return (paired_difference(a, b) if any(b.sums) else None), ""


def _held_to_bases(targets: Sequence[Target]) -> Iterator[Target]:
    """Yield the targets, models by themselves held to the one base of others if they read alike."""
    bases = {one.identity_of_base: one.base for one in targets if one.base and not one.plain}
    [base] = bases.values() if len(bases) == 1 else [None]
    for one in targets:
        alone = one.bare and one.plain and one.identity_of_base not in bases
        alike = alone and base is not None and _read_alike(base, one.prepared)
        yield replace(one, base=base) if alike else one


def _read_alike(a: Prepared, b: Prepared) -> bool:
    return not differing_parts(tokenizer_model(a), tokenizer_model(b))


def _measurable(objective: PreparedObjective) -> PreparedObjective | Failure:
    """The objective, or why nothing can be measured by it: a reference that isn't there."""
    try:
        if isinstance(objective, Forward):
            objective.work()
    except TailorError as error:
        return Failure("error", str(error))
    return objective
