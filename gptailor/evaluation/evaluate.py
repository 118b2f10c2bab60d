"""`eval`: run targets and bases by one meter, and tabulate their outcomes."""

from collections.abc import Hashable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import final

import torch
from transformers import PreTrainedModel

from gptailor.checkpoint.models import source_from_here
from gptailor.evaluation.meter import (
    Meter,
    Placement,
    Samples,
    StatedObjective,
    common_piece_bytes,
    steps_of,
)
from gptailor.evaluation.objectives.base import ObjectiveError, PreparedObjective
from gptailor.evaluation.objectives.size_and_speed import OfPlan
from gptailor.evaluation.objectives.tokens import (
    differing_parts,
    tokenizer_model,
)
from gptailor.evaluation.result import EvaluationResult
from gptailor.evaluation.scores import (
    Outcome,
    Outcomes,
    Result,
    Score,
    TargetSize,
    paired_difference,
    retained_score,
)
from gptailor.evaluation.speed import cache_bytes, latency_score
from gptailor.evaluation.targets import (
    Target,
    as_list,
    find_targets,
    names,
    with_uncut,
)
from gptailor.evaluation.trial import Ask
from gptailor.lang.parse import read_objective
from gptailor.plan.arguments import NotNegative, Positive
from gptailor.plan.events import OnEvent, ignore_events
from gptailor.plan.faults import listed
from gptailor.plan.plan import Objective, Plan
from gptailor.prepare import ModelPaths
from gptailor.program.devices import device_of
from gptailor.reporting.measure import Estimate


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
    objectives start at `folder`. `dtype` is the live models' dtype, by default their own; `memory`
    bounds their bytes on the device, also as a text such as `2GB`. With `speed`, tokens a second
    are measured too. Differences are from the target `against`, by default from each target's base.
    The base of a plan and of a compiled folder is evaluated too, which may take longer than the
    target. `models={"base": FOLDER}` with the compiled folder itself evaluates this folder alone. A
    model under several names is one target, with the first name. With `uncut` each plan that drops
    layers is also evaluated without its drops, as the target `NAME, uncut`. Plans are bridged and
    healed as declared. `on_event` receives the progress.

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
    place = Placement.of(device, dtype, memory)
    found = find_targets(
        sources, models or {}, device=device, memory=place.memory, on_event=on_event
    )
    plans = tuple(
        (source, target.name)
        for source, target in zip(sources, found, strict=True)
        if isinstance(source, Plan)
    )
    found = with_uncut(found, models or {}) if uncut else found
    model_names = names(found)
    stated = [
        (objective, True)
        if isinstance(objective, Objective)
        else read_objective(objective, model_names)
        for objective in asked
    ]
    chosen = Samples(Path(folder), samples, seed)
    name = None if against is None else str(against)
    result = EvaluationRun(found, stated, chosen, place, on_event, name).run(speed=speed)
    return replace(result, plans=plans)


@final
class _Entry:
    """One target, its known sizes, its objectives, and their outcomes."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self.size = TargetSize(target.name, target.prepared.output_size)
        self.objectives: Sequence[PreparedObjective] = ()
        self.outcomes: Outcomes = ()


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
        self.targets = list(_with_bases(targets))
        device_of(str(place.device))  # a missing device isn't a target's failure
        self.on_event = on_event
        self.meter = Meter(place, on_event)
        self.entries = [_Entry(target) for target in self.targets]
        self._entry_of = {entry.target.content: entry for entry in self.entries}
        self._compared = None if against is None else self._entry_of[named[against]]
        self.bases = list(self._bases())
        self.all = [*self.bases, *self.entries]
        self.piece_bytes = common_piece_bytes([entry.target for entry in self.all])
        for entry in self.all:
            target = entry.target
            self.meter.family(target.prepared.models)
            entry.objectives = self.meter.of_target(target, stated, samples, self.piece_bytes)

    def run(self, *, speed: bool) -> EvaluationResult:
        """Score all targets and bases, grouped by shared samples and layers."""
        objectives = [entry.objectives for entry in self.all]
        step = steps_of(self.on_event, objectives, len(self.entries) * speed)
        asks = [
            Ask(
                entry.target.prepared.models,
                entry.target.prepared.plan,
                entry.objectives,
                partial(self._latency, entry),
                entry.target.name,
                partial(self._count, entry),
            )
            for entry in self.all
        ]
        for number, outcomes in self.meter.run(asks, forgiving=True, on_step=step):
            self.all[number].outcomes = outcomes
        for entry in self.entries if speed else ():
            self._speed(entry)
            step(f"{entry.target.name}: speed")
        return EvaluationResult(
            tuple(result for entry in self.entries for result in self._results(entry)),
            tuple(entry.size for entry in self.entries),
            tuple(result for base in self.bases for result in self._results(base)),
            tuple(base.size for base in self.bases),
            self.piece_bytes is not None,
        )

    def _bases(self) -> Iterator[_Entry]:
        for target in self.targets:
            base, key = target.base, target.identity_of_base
            if base is not None and key not in self._entry_of:
                name = source_from_here(base.plan, base.plan.models["base"].source)
                entry = self._entry_of[key] = _Entry(Target(name, base, target.origin, base))
                yield entry

    def _count(self, entry: _Entry, model: PreTrainedModel) -> None:
        """Note the parameters of a live model, and the bytes of its KV cache."""
        counts = entry.size.size._replace(parameters=model.num_parameters())
        is_gguf = entry.target.prepared.checked.gguf_file is not None  # llama.cpp has its own cache
        with suppress(Exception):  # a size that can't be measured is omitted
            dtype = self.meter.repairs(entry.target.prepared.models).stitcher.dtype
            widened = dtype != self.meter.place.dtype  # a cache is then twice its size
            if not is_gguf:
                counts = counts._replace(kv_cache=cache_bytes(model) // (2 if widened else 1))
        entry.size = replace(entry.size, size=counts)

    def _latency(self, entry: _Entry) -> Score:
        """Return a target's latency. Raises ObjectiveError if it can't be measured."""
        self._speed(entry)
        if entry.size.speed is None:
            raise ObjectiveError("its speed can't be measured")
        return latency_score(entry.size.speed)

    def _speed(self, entry: _Entry) -> None:
        """Measure the speed of a target, and its base's by turns, unless it is known."""
        if entry.size.speed is not None:
            return
        base = None if entry.target.plain else self._entry_of.get(entry.target.identity_of_base)
        with suppress(Exception):  # a speed that can't be measured is omitted; its score fails
            timed = [entry.target] if base is None else [entry.target, base.target]
            speed, *others = self.meter.speeds(timed)
            base_speed = others[0] if others else None
            entry.size = replace(entry.size, speed=speed, base_speed=base_speed)
            if base is not None:
                base.size = replace(base.size, speed=base.size.speed or base_speed)

    def _results(self, entry: _Entry) -> Iterator[Result]:
        base = self._entry_of.get(entry.target.identity_of_base)
        for number, objective in enumerate(entry.objectives):
            outcome = entry.outcomes[number]
            base_outcome = None if base is None else base.outcomes[number]
            share = None
            if isinstance(objective, OfPlan) and objective.stated.name == "latency":
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
        bases = {t.identity_of_base: t.base for t in self.targets if t.base and not t.plain}
        if not target.bare or not bases:
            return ""
        if len(bases) > 1:
            named = "choose the target to compare with by --against"
            return f"the other targets have {len(bases)} bases; {named}"
        [base] = bases.values()
        parts = differing_parts(tokenizer_model(base), tokenizer_model(target.prepared))
        return f"its tokenizer is not the base's: {listed(parts)} differ"


def _difference(outcome: Outcome, other: Outcome) -> tuple[Estimate | None, str]:
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


def _with_bases(targets: Sequence[Target]) -> Iterator[Target]:
    """Yield the first target of each model, with the base that it is compared with.

    A base of other targets has no base of its own, unless that is a target too. If the plans have
    only one base, it is also the base of bare models that read texts alike. A bare model that is a
    base of plans is known to be its own base.
    """
    named = {target.identity_of_base for target in targets}
    first: dict[Hashable, Target] = {}
    for target in targets:
        first.setdefault(target.content, target)
    distinct = [
        replace(target, base=target.prepared)
        if content in named and target.identity_of_base not in first
        else target
        for content, target in first.items()
    ]
    bases = {t.identity_of_base: t.base for t in distinct if t.base and not t.plain}
    [base] = bases.values() if len(bases) == 1 else [None]
    for target in distinct:
        bare = target.bare and target.identity_of_base not in bases
        alike = (
            bare
            and target.plain
            and base is not None
            and not differing_parts(tokenizer_model(base), tokenizer_model(target.prepared))
        )
        yield replace(target, base=base, bare=False) if alike else replace(target, bare=bare)
