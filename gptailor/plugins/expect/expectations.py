"""`gptailor test`: measure the expectations of plans, and compare the values with their bounds."""

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Literal, NamedTuple, final

import torch

from gptailor.checkpoint.files import CheckpointError
from gptailor.checks.texts import text_errors_as_faults, text_faults
from gptailor.evaluation.forward.evaluator import attempt
from gptailor.evaluation.meter import (
    Meter,
    Placement,
    Reading,
    Samples,
    StatedObjective,
    common_piece_bytes,
    steps_of,
)
from gptailor.evaluation.objectives.base import PreparedObjective
from gptailor.evaluation.objectives.size_and_speed import size_score
from gptailor.evaluation.scores import Failure, Outcome, paired_difference
from gptailor.evaluation.speed import latency_score
from gptailor.evaluation.targets import Target, as_list, base_of, find_targets
from gptailor.evaluation.trial import Ask
from gptailor.lang.words import bounded_words, measure_words
from gptailor.plan.arguments import NotNegative, Positive
from gptailor.plan.events import OnEvent, ignore_events
from gptailor.plan.faults import Fault, PlanError, TailorError, listed, locate
from gptailor.plan.plan import Expectation, Objective, Plan
from gptailor.plan.registry import OBJECTIVES
from gptailor.plugins.expect.results import ExpectationResult, difference_words
from gptailor.prepare import ModelPaths, Prepared, ready
from gptailor.program.devices import device_of
from gptailor.reporting.measure import SURE, Estimate

LEAST_SAMPLES = 2
"""The least samples of an expectation: one sample has no error."""


def evaluate_expectations(  # noqa: PLR0913 (a verb of the command line, and its flags)
    targets: Sequence[str | Path | Plan] | str | Path | Plan,
    *,
    models: ModelPaths | None = None,
    samples: Annotated[int, LEAST_SAMPLES] | None = None,
    seed: NotNegative = 0,
    device: torch.device | str = "cpu",
    dtype: str | torch.dtype | None = None,
    memory: Positive | str | None = None,
    on_event: OnEvent = ignore_events,
) -> tuple[ExpectationResult, ...]:
    """Evaluate the expectations of plans, and return a result for each of them, in order.

    A target is a plan or its file, a compiled folder or a compiled GGUF file. `models`
    gives other folders for the plans' names. `samples`, 2 or more, bounds the samples that `seed`
    draws. `dtype` and `memory` are as in `evaluate`. Each plan, and each model of a bound, is
    evaluated once on each text.

    An error of one model gives results without a value. Raises PlanError for faults of plans and
    for unusable texts, TailorError or OSError for a missing device, model or file.
    """
    place = Placement.of(device, dtype, memory)
    found = find_targets(
        as_list(targets), models or {}, device=device, memory=place.memory, on_event=on_event
    )
    if not any(target.origin.expects for target in found):
        names = listed(f"'{target.name}'" for target in found)
        raise TailorError(
            f"{names} has no expectation: write 'expect nll(\"text.txt\") <= 1.1 * base'"
        )
    drawn = Samples(Path(), samples, seed)
    return Expectations(found, drawn, place, on_event).results()


@final
@dataclass(eq=False)
class _Asked:
    """The measures of a target that share samples, by their words, and their outcomes.

    A measure has the place of the first expectation that needs it.
    """

    target: Target
    samples: Samples
    piece_bytes: int | None
    measures: dict[str, tuple[StatedObjective, int]] = field(default_factory=dict)
    objectives: Sequence[PreparedObjective] = ()
    outcomes: Mapping[str, Outcome] = field(default_factory=dict)


@final
class _Row(NamedTuple):
    """An expectation of a target, its place in the plan, and the model of its bound."""

    target: Target
    number: int
    entry: Expectation
    bounding: Target | None

    @property
    def targets(self) -> tuple[Target, ...]:
        """The target, and the model of the bound."""
        return (self.target,) if self.bounding is None else (self.target, self.bounding)

    @property
    def stated(self) -> StatedObjective:
        """The measure, in the direction that is better."""
        direction = OBJECTIVES[self.entry.name].direction or "maximize"
        arguments = self.entry.arguments
        return Objective(direction=direction, name=self.entry.name, arguments=arguments), False


@final
class Expectations:
    """One evaluation of expectations. The constructor reads the texts, but no weights.

    Raises PlanError for an unusable text, and ObjectiveError for a wrong argument.
    """

    def __init__(
        self,
        targets: Sequence[Target],
        samples: Samples,
        place: Placement,
        on_event: OnEvent = ignore_events,
    ) -> None:
        device_of(str(place.device))  # a missing device isn't a target's failure
        plans = (target.origin.model_copy(update={"search": None}) for target in targets)
        if faults := [f for plan in plans for f in text_faults(plan) if f.at[0] == "expects"]:
            raise PlanError(faults)
        self.on_event = on_event
        self.meter = Meter(place, on_event)
        self.samples = samples
        self.rows = [row for target in targets for row in _rows(target)]
        for row in self.rows:
            for target in row.targets:
                self.meter.family(target.prepared.models)
        self._asked: dict[Hashable, _Asked] = {}
        for row in self.rows:
            for target in row.targets if OBJECTIVES[row.entry.name].by == "samples" else ():
                self._ask(row, target)
        for asked in self._asked.values():
            stated = [each for each, _ in asked.measures.values()]
            with text_errors_as_faults(asked.target.origin):
                asked.objectives = self.meter.of_target(
                    asked.target, stated, asked.samples, asked.piece_bytes
                )
        for asked in self._asked.values():
            for (_, number), found in zip(asked.measures.values(), asked.objectives, strict=True):
                _refuse_one_sample(asked.target, number, found)

    def results(self) -> tuple[ExpectationResult, ...]:
        """Measure all values, each once, and compare them."""
        asked = list(self._asked.values())
        step = steps_of(self.on_event, (each.objectives for each in asked))
        asks = [
            Ask(each.target.prepared.models, each.target.prepared.plan, each.objectives,
                name=each.target.name)
            for each in asked
        ]  # fmt: skip
        for number, outcomes in self.meter.run(asks, forgiving=True, on_step=step):
            asked[number].outcomes = dict(zip(asked[number].measures, outcomes, strict=True))
        return tuple(self._result(row) for row in self.rows)

    def _ask(self, row: _Row, target: Target) -> tuple[_Asked, str]:
        """Return a target's request, with a row's measure in it, and the measure's words."""
        cut = row.target.prepared.checked.token_cut is not None  # losses count by bytes then
        origin, piece = target.origin.origin, common_piece_bytes(row.targets, by_byte=cut)
        samples = self.samples._replace(folder=Path() if origin is None else origin.folder)
        key = target.content, samples, Reading.of(target, piece).key([row.stated])
        asked = self._asked.setdefault(key, _Asked(target, samples, piece))
        words = measure_words(row.stated[0])
        asked.measures.setdefault(words, (row.stated, row.number))
        return asked, words

    def _outcomes(self, row: _Row) -> list[Outcome]:
        """Return the outcomes of a row's target and of the model of its bound.

        Latencies of both are measured by turns.
        """
        by = OBJECTIVES[row.entry.name].by
        if by == "clock":
            found = attempt(partial(self.meter.speeds, row.targets))
            return [found] if isinstance(found, Failure) else [*map(latency_score, found)]
        if by == "headers":
            size = partial(_size, row.entry.objective)
            return [attempt(partial(size, target.prepared)) for target in row.targets]
        asked = (self._ask(row, target) for target in row.targets)
        return [of_target.outcomes[words] for of_target, words in asked]

    def _result(self, row: _Row) -> ExpectationResult:
        entry, words = row.entry, bounded_words(row.entry)
        score, *beside = self._outcomes(row)
        bound, difference, reason = _compared(entry, score, *beside)
        verdict = "unknown" if difference is None else _verdict(entry.sign, difference)
        value = None if isinstance(score, Failure) else Estimate(score.value, score.stderr)
        result = ExpectationResult(
            row.target.name, words, verdict, value, bound, difference, reason
        )
        if result.passed:
            return result
        origin, why = row.target.origin.origin, difference_words(result)
        settings = "" if origin is None else origin.source.settings
        of = f"the expectation {words}" + (f" with {settings}" if settings else "")
        at = "expects", row.number
        if verdict == "fail":
            fault = Fault("M501", f"{of} is not met: {why}", at)
        else:
            fault = Fault("M502", f"{of} has no score: {why}", at)
        return replace(result, fault=locate([fault], origin)[0])


def _refuse_one_sample(target: Target, number: int, objective: PreparedObjective) -> None:
    """Raise PlanError (M502) for a text with a single sample."""
    if objective.size < LEAST_SAMPLES:
        message = f"expected at least 2 samples for '{objective.name}', got {objective.size}"
        help_ = "one sample has no standard error; give a longer text"
        fault = Fault("M502", message, ("expects", number), help_)
        raise PlanError(locate([fault], target.origin.origin))


def _size(objective: Objective, prepared: Prepared) -> Outcome:
    """Return a size of a plan's output, or the reason against a file, with the plan's drops."""
    try:
        return size_score(objective, prepared.checked, prepared.compiled)
    except CheckpointError as error:
        slots = prepared.resolved.slots
        dropped = listed([f"L{slot.position}" for slot in slots if slot.dropped == "yes"])
        without = f"without {dropped} " * bool(dropped)
        help_ = f"; {error.help}" * bool(error.help)
        return Failure("error", f"[{error.code}] {without}{error.message}{help_}")


def _rows(target: Target) -> list[_Row]:
    rows, bounding = list[_Row](), dict[str | None, Target]()
    for number, entry in enumerate(target.origin.expects):
        if (name := entry.bound.of) is not None and name not in bounding:
            own = target.base if name == "base" else None
            own = own or target.fit_inner(ready(base_of(target.origin, name)))
            bounding[name] = Target(name, own, target.origin, target.base)
        rows.append(_Row(target, number, entry, bounding.get(name)))
    return rows


def _compared(
    entry: Expectation, score: Outcome, beside: Outcome | None = None
) -> tuple[float | None, Estimate | None, str]:
    """Compare a score with a number, or sample by sample with a share of another score.

    Return the bound, and the difference from it or the reason against one.
    """
    bound = times = 1.0 if entry.bound.number is None else float(entry.bound.number)
    if isinstance(score, Failure):
        return None, None, score.message
    if isinstance(beside, Failure):
        return None, None, f"'{entry.bound.of}': {beside.message}"
    difference = Estimate(score.value - bound, score.stderr)
    if beside is not None:
        bound = times * beside.value
        stderr = math.hypot(score.stderr, times * beside.stderr) if times else score.stderr
        difference = Estimate(score.value - bound, stderr)
        if score.each is not None and beside.each is not None:
            if score.each.counts != beside.each.counts:
                reason = f"its samples have other tokens than the samples of '{entry.bound.of}'"
                return bound, None, reason
            difference = paired_difference(score.each, beside.each, times)
    if any(map(math.isnan, difference)):
        return bound, None, "the value and its bound are infinite"
    return bound, difference, ""


def _verdict(sign: str, difference: Estimate) -> Literal["pass", "tie", "fail"]:
    """Return the verdict: a bound is missed if the difference is beyond two standard errors.

    A difference without a known error, such as a latency, is compared without an error.
    """
    beyond = difference.value if sign.startswith("<") else -difference.value
    if 0 < difference.stderr < math.inf and abs(beyond) <= SURE * difference.stderr:
        return "tie"
    missed = beyond > 0 or (beyond == 0 and sign in ("<", ">"))
    return "fail" if missed else "pass"
